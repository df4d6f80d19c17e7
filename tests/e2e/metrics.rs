//! What Prometheus sees of a node whose guests come and go: every metric of the catalogue moves, a
//! hung guest delays nothing else, and a node that was killed counts nothing twice.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ::metrics::{Sample, density_definitions, never_moved, parse_samples};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::moved_elsewhere::{self, MovedElsewhere};
use support::checks::{guest_is_gone, nothing_left_behind, one_intact_copy};
use support::{CRAWL, Exit, Guest, GuestPlan, Host, Migration, NodePlan, Pair, Pid, lighter, wait};

/// Limit of a scrape, however many guests hang: a guest's own limit is two seconds.
const SCRAPE_WITHIN: Duration = Duration::from_secs(2 + 2);

/// Metrics that may stay at zero here, because the workload has no network, disks or balloon, its
/// memory comes before it, and no estimate is made; grouped by the file and the test that moves
/// them.
pub(crate) const MOVED_ELSEWHERE: [MovedElsewhere; 9] = [
    (
        "tests/e2e/converging.rs",
        "a_hot_guest_arrives_throttled",
        &["lighter_migration_throttle_ratio", "lighter_migration_decisions_total"],
    ),
    (
        "tests/e2e/converging.rs",
        "a_hot_guest_arrives_before_its_memory",
        &["lighter_migration_page_wait_seconds"],
    ),
    (
        "src/node/scrape.rs",
        "waits_for_pages_are_on_the_page",
        &["lighter_migration_oldest_page_wait_seconds"],
    ),
    (
        "tests/e2e/estimates.rs",
        "an_estimate_agrees_with_the_migration_after_it",
        &["lighter_migrations_estimate_error_ratio"],
    ),
    (
        "tests/e2e/network/relay.rs",
        "a_connection_through_linux_lives_while_it_moves_ten_times",
        &[
            "lighter_guest_network_receive_bytes_total",
            "lighter_guest_network_receive_packets_total",
            "lighter_guest_network_transmit_bytes_total",
            "lighter_guest_network_transmit_packets_total",
        ],
    ),
    (
        "src/node/scrape.rs",
        "frames_that_were_lost_are_on_the_page",
        &[
            "lighter_guest_network_receive_drops_total",
            "lighter_guest_network_transmit_drops_total",
        ],
    ),
    (
        "tests/e2e/disks.rs",
        "a_cancelled_copy_leaves_no_files",
        &[
            "lighter_migration_disk_remaining_bytes",
            "lighter_migration_disk_transferred_bytes_total",
        ],
    ),
    (
        "tests/e2e/network/links.rs",
        "a_link_that_is_out_of_reach_is_said_everywhere",
        &["lighter_migration_links", "lighter_migration_links_lost"],
    ),
    (
        "tests/e2e/linux/balloon.rs",
        "linux_says_which_pages_are_free_and_has_them_back_wherever_it_is",
        &["lighter_migration_hinted_pages_total"],
    ),
];

/// Connects to the metrics address of the node of `host`.
fn connect(host: &Host) -> TcpStream {
    let file = fs::read(host.state_dir().join("node.json")).expect("node.json");
    let node: Value = serde_json::from_slice(&file).expect("JSON");
    let address = node["metrics"].as_str().expect("an address");
    let stream = TcpStream::connect(address).expect("the node listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time-out");
    stream
}

/// Fetches a page from the node of `host`: status and body.
fn get(host: &Host, path: &str) -> (u16, String) {
    let mut stream = connect(host);
    write!(stream, "GET {path} HTTP/1.1\r\nhost: lighter\r\nconnection: close\r\n\r\n")
        .expect("the node hears");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the node answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, body.to_owned())
}

/// Scrapes the metrics of a node.
pub(crate) fn scrape(host: &Host) -> String {
    wait::until("the node has its metrics together in time", || match get(host, "/metrics") {
        (200, page) => Ok(page),
        late => Err(late),
    })
}

/// The value of the series with this name and these label values; `None` if there is no such
/// series.
pub(crate) fn value(page: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let fits = |sample: &Sample| {
        sample.name == name
            && labels.iter().all(|(label, value)| sample.label(label) == Some(*value))
    };
    parse_samples(page).expect("a metrics page").into_iter().find(fits).map(|sample| sample.value)
}

/// Waits until a series has the value `wanted`, and collects the pages scraped on the way.
#[track_caller]
fn await_value(
    host: &Host,
    name: &str,
    labels: &[(&str, &str)],
    wanted: f64,
    pages: &mut Vec<String>,
) {
    wait::until(&format!("{name}{labels:?} is {wanted}"), || {
        let page = scrape(host);
        let seen = value(&page, name, labels);
        pages.push(page);
        wait::holds(seen == Some(wanted), seen)
    });
}

/// Migrates a guest and scrapes both nodes meanwhile.
fn migrate_watched(from: &Host, name: &str, to: &Host, pages: &mut Vec<String>) {
    let migration =
        Migration::start(from, name, to, &["--bandwidth", "10MB/s", "--downtime", "3s"]);
    wait::until("the guest has moved", || {
        pages.extend([scrape(from), scrape(to)]);
        let state = to.guest(name).state();
        wait::holds(state.as_deref() == Some("running"), state)
    });
    migration.finish().ok();
    pages.extend([scrape(from), scrape(to)]);
}

#[test]
fn every_metric_of_the_catalogue_moves_on_a_live_node() {
    let mut pages = Vec::new();
    let mut pair = Pair::new();
    let guest = Guest::start(&pair.a, &GuestPlan { dirty_rate: 2000, ..GuestPlan::default() });
    migrate_watched(&pair.a, guest.name(), &pair.b, &mut pages);

    // A migration that is refused, because a guest of that name is now running there; then one that
    // is cancelled.
    let namesake = Guest::start(&pair.a, &GuestPlan::default());
    Migration::run(&pair.b, guest.name(), &pair.a).stayed(&["already"]);
    pair.a.run(&["stop", namesake.name()]).ok();
    guest_is_gone(&[&pair.a], namesake.name());
    let cancelled = Migration::start(&pair.b, guest.name(), &pair.a, &CRAWL);
    cancelled.await_phase("precopy");
    pair.b.run(&["cancel", guest.name()]).ok();
    cancelled.finish().cancelled();

    // A hung guest.
    let hung = pair.b.guest(guest.name()).pid();
    hung.freeze();
    await_value(&pair.b, "lighter_guests_unreachable", &[], 1.0, &mut pages);
    hung.thaw();
    await_value(&pair.b, "lighter_guests_unreachable", &[], 0.0, &mut pages);

    in_doubt_until_the_other_node_is_back(&mut pair, &mut pages);

    let mut still = never_moved(pages.iter().map(String::as_str)).expect("metrics pages");
    let elsewhere = moved_elsewhere::names(&MOVED_ELSEWHERE);
    still.retain(|name| !elsewhere.contains(name));
    // The metrics of memory optimization need more to move than this test does; see
    // `density_metrics`.
    still.retain(|name| !density_definitions().any(|one| one.name == *name));
    assert!(still.is_empty(), "nothing moves {}", still.join(", "));
    promtool_approves(pages.last().expect("a page"));
    nothing_left_behind(&pair.hosts());
}

/// The source's process dies during a migration while the other node is down: the source's node
/// cannot settle the migration until that one is back.
fn in_doubt_until_the_other_node_is_back(pair: &mut Pair, pages: &mut Vec<String>) {
    let lost =
        Guest::start(&pair.a, &GuestPlan { name: "lost".to_owned(), ..GuestPlan::default() });
    let migration = Migration::start(&pair.a, lost.name(), &pair.b, &CRAWL);
    migration.await_phase("precopy");
    let (source, arriving) = (lost.pid(), pair.b.guest(lost.name()).pid());
    pair.b.kill_node();
    source.kill();
    arriving.kill();
    drop(migration);
    await_value(&pair.a, "lighter_migrations_in_doubt", &[], 1.0, pages);

    let listen = Some(pair.b.last_address().to_owned());
    pair.b.start_node(&NodePlan { listen, ..NodePlan::default() });
    await_value(&pair.a, "lighter_migrations_in_doubt", &[], 0.0, pages);
    guest_is_gone(&pair.hosts(), lost.name());
    await_value(&pair.a, "lighter_guests_failed_total", &[], 1.0, pages);
}

#[test]
fn metrics_that_a_workload_does_not_move_are_moved_by_the_test_that_is_named() {
    MOVED_ELSEWHERE.iter().for_each(moved_elsewhere::check);
}

/// Waits until the metric `name` is above zero for the migration of `guest`.
#[track_caller]
pub(crate) fn is_counted(host: &Host, name: &str, guest: &str, direction: &str) {
    wait::until(&format!("{name} of {guest} ({direction}) is counted"), || {
        let page = scrape(host);
        let seen = value(&page, name, &[("guest", guest), ("direction", direction)]);
        wait::holds(seen > Some(0.0), page)
    });
}

/// Asserts that `promtool check metrics` has no complaints about the page.
fn promtool_approves(page: &str) {
    if std::env::var_os("LIGHTER_SKIP_PROMTOOL").is_some() {
        eprintln!("left out: LIGHTER_SKIP_PROMTOOL is set");
        return;
    }
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect(
            "promtool (Debian's package `prometheus`), or LIGHTER_SKIP_PROMTOOL=1 to go without",
        );
    promtool.stdin.take().expect("its stdin").write_all(page.as_bytes()).expect("it reads");
    let output = promtool.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.trim().is_empty(), "promtool: {said}\n{page}");
}

#[test]
fn a_guest_that_hangs_does_not_hang_the_page_of_the_others() {
    let pair = Pair::new();
    let plan = |name: &str| GuestPlan {
        name: name.to_owned(),
        memory: "32M".to_owned(),
        ..GuestPlan::default()
    };
    let hung = [Guest::start(&pair.a, &plan("hung-1")), Guest::start(&pair.a, &plan("hung-2"))];
    let fine = Guest::start(&pair.a, &plan("fine"));
    let pids = hung.map(|guest| guest.pid());
    pids.iter().for_each(|pid| pid.freeze());

    // A signal needs some time to stop every thread.
    await_value(&pair.a, "lighter_guests_unreachable", &[], 2.0, &mut Vec::new());
    // A node that waited for one guest after the other would never be this fast.
    let page = wait::until("a page comes in time, with all but those that hang", || {
        let begin = Instant::now();
        let page = scrape(&pair.a);
        let took = begin.elapsed();
        let hang = value(&page, "lighter_guests_unreachable", &[]);
        if took < SCRAPE_WITHIN && hang == Some(2.0) { Ok(page) } else { Err((took, page)) }
    });
    pids.iter().for_each(|pid| pid.thaw());

    assert_eq!(value(&page, "lighter_guest_vcpus", &[("guest", fine.name())]), Some(1.0));
    assert_eq!(value(&page, "lighter_guest_vcpus", &[("guest", "hung-1")]), None);
    assert_eq!(get(&pair.a, "/healthz"), (200, "ok\n".to_owned()));
}

#[test]
fn a_killed_node_leaves_guests_running_and_the_next_finds_them_and_counts_nothing_twice() {
    let mut pair = Pair::new();
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    Migration::run(&pair.a, guest.name(), &pair.b).ok();
    let arrived = [("direction", "incoming")];
    await_value(&pair.b, "lighter_migrations_completed_total", &arrived, 1.0, &mut Vec::new());
    let pid = pair.b.guest(guest.name()).pid();

    pair.b.kill_node();
    pair.b.start_node(&NodePlan::default());

    let page = scrape(&pair.b);
    assert_eq!(value(&page, "lighter_migrations_completed_total", &arrived), Some(0.0));
    assert_eq!(
        value(&page, "lighter_guest_state", &[("guest", guest.name()), ("state", "running")]),
        Some(1.0)
    );
    assert_eq!(one_intact_copy(&pair.hosts(), guest.name(), &pair.b).pid(), pid);

    // The next node counts what happened while none was running.
    let left = [("direction", "outgoing")];
    pair.b.kill_node();
    Migration::run(&pair.b, guest.name(), &pair.a).ok();
    pair.b.start_node(&NodePlan::default());
    let completed = "lighter_migrations_completed_total";
    assert_eq!(value(&scrape(&pair.b), completed, &left), Some(1.0));
    one_intact_copy(&pair.hosts(), guest.name(), &pair.a);
}

#[test]
fn a_restarted_node_keeps_memory_promised_to_incoming_guests() {
    let mut pair = Pair::new();
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    let migration = Migration::start(&pair.a, guest.name(), &pair.b, &CRAWL);
    migration.await_phase("precopy");
    pair.b.kill_node();
    pair.b.start_node(&NodePlan::default());

    let promised = "lighter_host_memory_promised_bytes";
    let page = scrape(&pair.b);
    assert!(value(&page, promised, &[]) > Some(f64::from(1 << 20)), "{page}");

    pair.a.run(&["cancel", guest.name()]).ok();
    migration.finish().cancelled();
    await_value(&pair.b, promised, &[], 0.0, &mut Vec::new());
    one_intact_copy(&pair.hosts(), guest.name(), &pair.a);
}

#[test]
fn silent_peers_do_not_block_the_metrics() {
    let pair = Pair::new();
    wait::until("the node answers in time", || {
        let _silent: Vec<TcpStream> = (0..160).map(|_| connect(&pair.a)).collect();
        let begin = Instant::now();
        assert_eq!(get(&pair.a, "/healthz"), (200, "ok\n".to_owned()));
        wait::holds(begin.elapsed() < SCRAPE_WITHIN, begin.elapsed())
    });
}

#[test]
fn a_node_whose_log_cannot_be_written_serves_all_the_same() {
    let pair = Pair::without_nodes();
    let full = fs::File::options().write(true).open("/dev/full").expect("a full device");
    let arguments = ["node", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"];
    let mut node = lighter(pair.a.state_dir(), &arguments).stderr(full).spawn().expect("a node");
    wait::until("the node serves or ends", || {
        let ended = node.try_wait().expect("a child").is_some();
        let serves = pair.a.state_dir().join("node.json").exists();
        wait::holds(ended || serves, "neither")
    });
    assert_eq!(get(&pair.a, "/healthz"), (200, "ok\n".to_owned()));
    Pid(node.id()).signal(Signal::SIGTERM);
    assert!(node.wait().expect("a child").success());
}

#[test]
fn a_state_folder_has_one_node() {
    let pair = Pair::new();
    let second = pair.a.run(&["node", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]);
    second.complains(Exit::Failed, &["lighter: ", "node", "already", "--state-dir"]);
    assert_eq!(get(&pair.a, "/healthz").0, 200);
}
