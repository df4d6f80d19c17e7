//! Migrations over two cables at once, one of which is unplugged; and over one whose address
//! changes.

use serde_json::Value;

use super::cable::Cable;
use super::{await_reach, hurry};
use support::checks::one_intact_copy;
use support::{CRAWL, Exit, Guest, GuestPlan, HELD, Host, Migration, NodePlan, Pair, wait};

/// Two hosts on two cables, and a guest at the first.
fn scene(cable: &Cable) -> (Pair, Guest) {
    scene_with(cable, GuestPlan::default())
}

/// The same, with a guest of this plan.
fn scene_with(cable: &Cable, plan: GuestPlan) -> (Pair, Guest) {
    cable.double();
    let mut pair = cable.hosts();
    pair.a.start_node(&cable.node_plan_of_both(0));
    pair.b.start_node(&cable.node_plan_of_both(1));
    let guest = Guest::start(&pair.a, &GuestPlan { namespace: cable.end_a(), ..plan });
    (pair, guest)
}

/// Starts to migrate the guest from one host to the other, which is at this end of the cables.
fn start(guest: &Guest, from: &Host, (to, end): (&Host, usize), more: &[&str]) -> Migration {
    let (_, port) = to.node().address().rsplit_once(':').expect("a port");
    let address = format!("{}:{port}", Cable::addresses(end)[0]);
    let via = Cable::via(end);
    Migration::to_address(from, guest.name(), &address, &[&["--via", &via], more].concat())
}

/// Waits until the source says that the link to `address` is lost.
fn await_loss(guest: &Guest, address: &str) {
    wait::until(&format!("the link to {address} is lost"), || {
        let status = guest.get("/v1/guest/migration")?;
        let links = status["progress"]["links"].as_array().cloned().unwrap_or_default();
        let is_lost = |link: &Value| link["address"] == address && !link["lost"].is_null();
        wait::holds(links.iter().any(is_lost), status)
    });
}

/// Asserts which links the report says are lost.
#[track_caller]
fn assert_lost(report: &Value, lost: [bool; 2]) {
    let links = report["links"].as_array().expect("links");
    let seen: Vec<_> = links.iter().map(|link| !link["lost"].is_null()).collect();
    assert_eq!(seen, lost, "{report:#}");
}

#[test]
fn two_links_carry_a_guest_together() {
    let Some(cable) = Cable::lay() else { return };
    let (pair, guest) = scene(&cable);
    // The second limits its share even where an emulated processor limits the sum of both.
    cable.shape_both(["40mbit", "4mbit"]);
    let before = cable.sent(0);

    let more = ["--compress", "off"];
    let report = start(&guest, &pair.a, (&pair.b, 1), &more).finish().ok();

    let after = cable.sent(0);
    let sent = [after[0] - before[0], after[1] - before[1]];
    let wire = report["transfer"]["wire_bytes"].as_u64().expect("a count");
    assert!(sent.iter().all(|bytes| *bytes > wire / 25), "{sent:?} {report:#}");
    assert!(sent[0] > sent[1], "{sent:?}: the second link is slower");
    assert!(sent.iter().sum::<u64>() >= wire, "{sent:?} {report:#}");
    assert_lost(&report, [false; 2]);
    one_intact_copy(&pair.hosts(), guest.name(), &pair.b);
}

/// One cable is unplugged while memory is sent in rounds.
fn goes_on_in_precopy_without(pulled: usize) {
    let Some(cable) = Cable::lay() else { return };
    let (pair, guest) = scene(&cable);
    let migration = start(&guest, &pair.a, (&pair.b, 1), &CRAWL);
    migration.await_phase("precopy");

    cable.pull_one(pulled);
    await_loss(&guest, Cable::addresses(1)[pulled]);
    hurry(&pair, &guest);

    let report = migration.finish().ok();
    assert_lost(&report, [pulled == 0, pulled == 1]);
    one_intact_copy(&pair.hosts(), guest.name(), &pair.b);
}

#[test]
fn a_migration_goes_on_in_precopy_without_its_first_link() {
    goes_on_in_precopy_without(0);
}

#[test]
fn a_migration_goes_on_in_precopy_without_its_second_link() {
    goes_on_in_precopy_without(1);
}

/// Keeps all memory from following the guest, until a link is lost and the hosts connect again.
const KEPT_BACK: &str =
    "source.take.background:hold,source.take.background:hold,source.data.requested:hold";

/// One cable is unplugged while memory follows the guest.
fn goes_on_in_postcopy_without(pulled: usize) {
    let Some(cable) = Cable::lay() else { return };
    let environment = vec![("LIGHTER_FAILPOINT".to_owned(), KEPT_BACK.to_owned())];
    let plan = GuestPlan { environment, ..GuestPlan::default() };
    let (pair, guest) = scene_with(&cable, plan);
    let migration = start(&guest, &pair.a, (&pair.b, 1), &[CRAWL, HELD].concat());
    migration.await_phase("precopy");
    pair.a.run(&["migrate", guest.name(), "--postcopy-now"]).ok();
    migration.await_phase("postcopy");
    pair.a.run(&["migrate", guest.name(), "--set", "bandwidth=none"]).ok();

    cable.pull_one(pulled);

    let report = migration.finish().ok();
    assert_lost(&report, [pulled == 0, pulled == 1]);
    one_intact_copy(&pair.hosts(), guest.name(), &pair.b);
}

#[test]
fn memory_follows_a_guest_without_the_first_link() {
    goes_on_in_postcopy_without(0);
}

#[test]
fn memory_follows_a_guest_without_the_second_link() {
    goes_on_in_postcopy_without(1);
}

#[test]
fn a_migration_goes_on_when_the_address_of_its_source_changes() {
    let Some(cable) = Cable::lay() else { return };
    let mut pair = cable.hosts();
    pair.a.start_node(&cable.node_plan(0));
    pair.b.start_node(&cable.node_plan(1));
    let plan = GuestPlan { namespace: cable.end_a(), ..GuestPlan::default() };
    let guest = Guest::start(&pair.a, &plan);
    let migration = Migration::start(&pair.a, guest.name(), &pair.b, &CRAWL);
    migration.await_phase("precopy");

    cable.renumber_a("192.0.2.77");

    hurry(&pair, &guest);
    migration.finish().ok();
    one_intact_copy(&pair.hosts(), guest.name(), &pair.b);
}

#[test]
fn a_migration_over_one_link_goes_on_at_another_address_of_its_destination() {
    let Some(cable) = Cable::lay() else { return };
    let (pair, guest) = scene(&cable);
    let (_, port) = pair.b.node().address().rsplit_once(':').expect("a port");
    let [first, other] = Cable::addresses(1);
    let address = format!("{first}:{port}");
    let migration = Migration::to_address(&pair.a, guest.name(), &address, &CRAWL);
    migration.await_phase("precopy");
    let other = format!("{other}:{port}");
    let recover = ["migrate", guest.name(), "--recover", &other];
    pair.a.run(&recover).complains(Exit::Failed, &["the destination is in reach"]);

    cable.pull_one(0);
    await_reach(&guest, false);
    pair.a.run(&recover).ok();
    await_reach(&guest, true);
    hurry(&pair, &guest);

    migration.finish().ok();
    one_intact_copy(&pair.hosts(), guest.name(), &pair.b);
}

/// All addresses of 127.0.0.0/8 lead to this host; nothing answers at the last one (RFC 1112 §4).
const LOOPBACK_LINKS: [&str; 3] = ["127.0.0.1", "127.0.0.2", "240.0.0.1"];

#[test]
fn a_link_that_is_out_of_reach_is_said_everywhere() {
    let reachable = NodePlan { listen: Some("0.0.0.0:0".to_owned()), ..NodePlan::default() };
    let pair = Pair::with_nodes(&NodePlan::default(), &reachable);
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    let (_, port) = pair.b.node().address().rsplit_once(':').expect("a port");
    let (to, via) = (format!("127.0.0.1:{port}"), LOOPBACK_LINKS.join(","));

    let report = Migration::to_address(&pair.a, guest.name(), &to, &["--via", &via]).finish().ok();

    let links = report["links"].as_array().expect("links");
    let lost: Vec<_> = links.iter().map(|link| !link["lost"].is_null()).collect();
    assert_eq!(lost, [false, false, true], "{report:#}");
    for metric in ["lighter_migration_links", "lighter_migration_links_lost"] {
        crate::metrics::is_counted(&pair.a, metric, guest.name(), "outgoing");
    }
    one_intact_copy(&pair.hosts(), guest.name(), &pair.b);
}

#[test]
fn what_a_process_cannot_use_as_links_is_refused() {
    let pair = Pair::new();
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    let to = pair.b.node().address();
    for (via, word) in [
        ("127.0.0.1,127.0.0.1", "given twice"),
        ("127.0.0.1,127.0.0.2,127.0.0.3,127.0.0.4,127.0.0.5", "at most four links"),
    ] {
        let migration = Migration::to_address(&pair.a, guest.name(), to, &["--via", via]);
        migration.finish().done.complains(Exit::Failed, &[word]);
    }
    one_intact_copy(&pair.hosts(), guest.name(), &pair.a);
}
