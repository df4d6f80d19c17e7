//! Requests that are refused before a guest is transferred: hosts that are not trusted, guests that
//! do not fit, and what a migrating guest cannot do.

use nix::sys::signal::Signal;
use rcgen::{CertificateParams, Issuer, KeyPair, date_time_ymd};

use support::checks::{
    await_life, guest_is_gone, memory_is_intact, nothing_left_behind, one_intact_copy,
};
use support::kernel::sleeper;
use support::{CRAWL, Exit, Guest, GuestPlan, Migration, NodePlan, Pair, wait};

/// Asserts that the guest is still on host a, unharmed, and that the destination has no trace of
/// it.
fn stays(pair: &Pair, name: &str) {
    one_intact_copy(&pair.hosts(), name, &pair.a);
    assert!(pair.b.list().iter().all(|guest| guest["name"] != name));
}

#[test]
fn a_host_with_a_certificate_of_another_authority_gets_no_guest() {
    let (mut pair, stranger) = (Pair::without_nodes(), Pair::without_nodes());
    for file in ["ca.pem", "host.pem", "host.key"] {
        std::fs::copy(stranger.b.certs().join(file), pair.b.certs().join(file))
            .expect("a certificate");
    }
    pair.b.start_node(&NodePlan::default());
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    Migration::run(&pair.a, guest.name(), &pair.b).stayed(&["certificate"]);
    stays(&pair, guest.name());
}

#[test]
fn a_host_with_a_certificate_of_another_authority_cannot_send_a_guest() {
    let (mut pair, stranger) = (Pair::without_nodes(), Pair::without_nodes());
    pair.b.start_node(&NodePlan::default());
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    for file in ["host.pem", "host.key"] {
        std::fs::copy(stranger.a.certs().join(file), pair.a.certs().join(file))
            .expect("a certificate");
    }
    let words = ["not issued by the authority in ca.pem", "lighter certs request"];
    Migration::run(&pair.a, guest.name(), &pair.b).done.complains(Exit::Failed, &words);
    let shown = pair.a.run(&["certs", "show"]);
    assert!(shown.exit == Exit::Failed && shown.stdout.contains(words[0]), "{shown:#?}");

    // The source trusts both authorities, so that only the destination can refuse.
    let authority = |of: &Pair| std::fs::read(of.a.certs().join("ca.pem")).expect("a certificate");
    std::fs::write(
        pair.a.certs().join("ca.pem"),
        [authority(&pair), authority(&stranger)].concat(),
    )
    .expect("a file");
    Migration::run(&pair.a, guest.name(), &pair.b).stayed(&["certificate"]);
    stays(&pair, guest.name());
}

/// Both nodes keep running; the revocation list is installed where the operator would put it.
#[test]
fn a_host_whose_certificate_is_revoked_gets_and_sends_no_guest_any_more() {
    let pair = Pair::new();
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    Migration::run(&pair.a, guest.name(), &pair.b).ok();
    Migration::run(&pair.b, guest.name(), &pair.a).ok();
    let done = pair.a.run(&["certs", "revoke", "nobody"]);
    done.complains(Exit::Failed, &["no certificate recorded for nobody"]);
    assert!(pair.a.run(&["certs", "revoke", "host-b"]).ok().stdout.contains("crl.pem"));
    let file = pair.b.certs().join("host.pem").display().to_string();
    pair.a.run(&["certs", "revoke", &file]).ok();
    // The source notices without a restart: each migration reads its certificates.
    let words = ["has been revoked by its authority"];
    Migration::run(&pair.a, guest.name(), &pair.b).stayed(&words);
    stays(&pair, guest.name());

    // The node of the other host notices within a minute, although it was started before.
    let from_b = GuestPlan { name: "from-b".to_owned(), ..GuestPlan::default() };
    Guest::start(&pair.b, &from_b);
    wait::until("the node of the other host has heard", || {
        let log = pair.a.logs();
        wait::holds(log.contains("revocation lists are in force"), log)
    });
    let words = ["its authority has revoked it"];
    Migration::run(&pair.b, "from-b", &pair.a).stayed(&words);

    // A half-copied file: the node keeps the list that it has read before, and a migration that
    // begins on this host fails for lack of one.
    std::fs::write(pair.a.certs().join("crl.pem"), "").expect("a file");
    wait::until("the node has read the empty file", || {
        let log = pair.a.logs();
        wait::holds(log.contains("read before stay in force"), log)
    });
    Migration::run(&pair.b, "from-b", &pair.a).stayed(&words);
    let done = Migration::run(&pair.a, guest.name(), &pair.b).done;
    done.complains(Exit::Failed, &["crl.pem", "it holds no list"]);
    one_intact_copy(&pair.hosts(), "from-b", &pair.b);
}

#[test]
fn a_guest_arrives_at_the_ports_that_the_firewall_lets_through() {
    let mut pair = Pair::without_nodes();
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its number").port();
    let last = port.saturating_add(1);
    let neighbour = std::net::UdpSocket::bind(("127.0.0.1", last));
    let ports = format!("{port}-{last}");
    pair.a.start_node(&NodePlan::default());
    let arguments = vec!["--ports".to_owned(), ports];
    pair.b.start_node(&NodePlan { arguments, ..NodePlan::default() });
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    let range = format!("any of the ports {port} to {last}");
    let words = [&*range, "Address already in use", "lighter node --ports"];
    Migration::run(&pair.a, guest.name(), &pair.b).stayed(&words);
    stays(&pair, guest.name());
    drop((taken, neighbour));
    Migration::run(&pair.a, guest.name(), &pair.b).ok();
}

#[test]
fn a_host_without_certificates_learns_how_to_create_them() {
    let pair = Pair::new();
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    for file in ["host.pem", "host.key"] {
        std::fs::remove_file(pair.a.certs().join(file)).expect("a certificate");
    }
    let done = Migration::run(&pair.a, guest.name(), &pair.b).done;
    done.complains(Exit::Failed, &["lighter: ", "host.pem", "lighter certs"]);
    stays(&pair, guest.name());
}

/// Gives host b a certificate of host a's authority, valid from the start of year `from` to that of
/// `until`.
fn issue_for_years(pair: &Pair, from: i32, until: i32) {
    let read = |file| std::fs::read_to_string(pair.a.certs().join(file)).expect("a file");
    let key = KeyPair::from_pem(&read("ca.key")).expect("a key");
    let authority = Issuer::from_ca_cert_pem(&read("ca.pem"), key).expect("an authority");
    let names = ["host-b".to_owned(), "127.0.0.1".to_owned()];
    let mut parameters = CertificateParams::new(names).expect("names");
    parameters.not_before = date_time_ymd(from, 1, 1);
    parameters.not_after = date_time_ymd(until, 1, 1);
    let key = KeyPair::generate().expect("a key");
    let certificate = parameters.signed_by(&key, &authority).expect("a certificate");
    let write = |file, pem| std::fs::write(pair.b.certs().join(file), pem).expect("a file");
    write("host.pem", certificate.pem());
    write("host.key", key.serialize_pem());
}

#[test]
fn a_certificate_outside_its_validity_is_refused_on_its_own_host() {
    let mut pair = Pair::without_nodes();
    pair.a.start_node(&NodePlan::default());
    let guest = Guest::start(&pair.b, &GuestPlan::default());
    let shown = pair.b.run(&["certs", "show"]).ok().stdout;
    assert!(shown.contains("usable") && shown.contains("host-b, 127.0.0.1"), "{shown}");

    for (from, until, words) in [
        (2020, 2021, ["expired at 2021-01-01 00:00:00 UTC", "lighter certs renew"]),
        (2090, 2091, ["not valid before 2090-01-01 00:00:00 UTC", "clock"]),
    ] {
        issue_for_years(&pair, from, until);
        pair.b.run(&["node"]).complains(Exit::Failed, &words);
        Migration::run(&pair.b, guest.name(), &pair.a).done.complains(Exit::Failed, &words);
        let shown = pair.b.run(&["certs", "show"]);
        assert_eq!(shown.exit, Exit::Failed, "{shown:#?}");
        assert!(shown.stdout.contains(words[0]), "{shown:#?}");
        let json = pair.b.run(&["certs", "show", "--json"]).json();
        assert_eq!(json["names"], serde_json::json!(["host-b", "127.0.0.1"]), "{json:#}");
        assert!(json["valid_until_unix_s"].is_i64(), "{json:#}");
    }
    one_intact_copy(&pair.hosts(), guest.name(), &pair.b);
}

#[test]
fn a_node_without_certificates_does_not_start_and_says_how_to_make_them() {
    let pair = Pair::without_nodes();
    std::fs::remove_dir_all(pair.b.certs()).expect("certificates");
    let done = pair.b.run(&["node", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]);
    done.complains(Exit::Failed, &["lighter: ", "lighter certs"]);
    nothing_left_behind(&[&pair.b]);
}

#[test]
fn a_host_under_another_name_than_its_certificates_gets_no_guest() {
    let mut pair = Pair::without_nodes();
    std::fs::remove_dir_all(pair.b.certs()).expect("certificates");
    pair.issue_certificate(&["host-b"]);
    pair.b.start_node(&NodePlan::default());
    let guest = Guest::start(&pair.a, &GuestPlan::default());

    // By the host's address, which is not in its certificate; then by the name of another host.
    Migration::run(&pair.a, guest.name(), &pair.b).stayed(&["certificate", "127.0.0.1"]);
    let other = Migration::start(&pair.a, guest.name(), &pair.b, &["--tls-name", "host-c"]);
    other.finish().stayed(&["certificate", "host-c"]);
    stays(&pair, guest.name());

    Migration::start(&pair.a, guest.name(), &pair.b, &["--tls-name", "host-b"]).finish().ok();
    one_intact_copy(&pair.hosts(), guest.name(), &pair.b);
}

#[test]
fn a_destination_without_enough_memory_refuses_with_figures_and_a_remedy() {
    let full = NodePlan {
        arguments: vec!["--reserve-memory".into(), "100T".into()],
        ..NodePlan::default()
    };
    let pair = Pair::with_nodes(&NodePlan::default(), &full);
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    let words = ["not enough memory", "64 MiB", "--reserve-memory"];
    Migration::run(&pair.a, guest.name(), &pair.b).stayed(&words);
    stays(&pair, guest.name());
}

#[test]
fn a_device_that_a_guest_would_not_get_is_refused_before_it_moves() {
    let gives = NodePlan {
        arguments: vec!["--device".into(), "vfio=7e:1f.7".into()],
        ..NodePlan::default()
    };
    let pair = Pair::with_nodes(&NodePlan::default(), &gives);
    let ask = |name: &str, device: &str| {
        let options = ["--attach-there", device];
        Migration::to_address(&pair.a, name, pair.b.node().address(), &options).finish().done
    };
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    let words = ["no PCI bus", "--machine pci"];
    ask(guest.name(), "vfio=7e:1f.7").complains(Exit::Failed, &words);
    stays(&pair, guest.name());

    let kernel = sleeper(pair.folder()).display().to_string();
    pair.a
        .run(&["run", "--detach", "--name", "asleep", "--memory", "64M", "--kernel", &kernel])
        .ok();
    for (device, why) in [
        ("vfio=03:00.0", "start its node with --device vfio=0000:03:00.0"),
        ("vfio=7e:1f.7", "the host has no such device"),
    ] {
        ask("asleep", device).complains(Exit::Failed, &["would not get vfio=0000", why]);
    }
    assert_eq!(pair.b.list(), [] as [serde_json::Value; 0]);
    pair.a.run(&["destroy", "asleep"]).ok();
}

#[test]
fn a_destination_that_has_a_guest_of_that_name_refuses() {
    let pair = Pair::new();
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    let namesake = Guest::start(&pair.b, &GuestPlan::default());
    let pid = namesake.pid();
    Migration::run(&pair.a, guest.name(), &pair.b).stayed(&["web-1", "already"]);
    await_life(&guest);
    memory_is_intact(&guest);
    await_life(&namesake);
    assert_eq!(namesake.pid(), pid);
    nothing_left_behind(&pair.hosts());
}

#[test]
fn a_guest_cannot_move_to_the_host_where_it_is() {
    let pair = Pair::new();
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    Migration::run(&pair.a, guest.name(), &pair.a).stayed(&["web-1", "already"]);
    stays(&pair, guest.name());
}

#[test]
fn a_host_where_no_node_listens_is_named() {
    let mut pair = Pair::new();
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    let address = pair.b.node().address().to_owned();
    pair.b.kill_node();
    let outcome = Migration::to_address(&pair.a, guest.name(), &address, &[]).finish();
    outcome.stayed(&[&address, "lighter node"]);
    let nowhere =
        Migration::to_address(&pair.a, guest.name(), "no-such-host.invalid", &[]).finish();
    nowhere.done.complains(Exit::Failed, &["no-such-host.invalid"]);
    stays(&pair, guest.name());
}

#[test]
fn a_migrating_guest_cannot_be_migrated_again_or_changed() {
    let pair = Pair::new();
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    let first = Migration::start(&pair.a, guest.name(), &pair.b, &CRAWL);
    first.await_phase("precopy");

    Migration::run(&pair.a, guest.name(), &pair.b)
        .done
        .complains(Exit::Failed, &["web-1", "being migrated"]);
    let file = pair.folder().join("saved").display().to_string();
    for verb in [
        &["pause", "web-1"][..],
        &["resume", "web-1"],
        &["stop", "web-1"],
        &["save", "web-1", &file],
    ] {
        pair.a.run(verb).complains(Exit::Failed, &["web-1", "migrat", "lighter cancel"]);
    }
    assert_eq!(guest.state().as_deref(), Some("migrating"));
    let arriving = pair.b.guest(guest.name());
    arriving.await_state("incoming");
    let shown = pair.b.run(&["show", "web-1"]).ok().stdout;
    assert!(shown.contains(" received") && !shown.contains(" sent"), "{shown}");
    assert!(!shown.contains("Linux"), "its kind is not known yet: {shown}");
    pair.b
        .run(&["run", "--detach", "--name", "web-1", "--memory", "64M"])
        .complains(Exit::Failed, &["web-1 is arriving on this host from 127.0.0.1"]);
    for verb in [&["pause", "web-1"][..], &["resume", "web-1"], &["save", "web-1", &file]] {
        pair.b.run(verb).complains(Exit::Failed, &["web-1"]);
    }

    pair.a.run(&["cancel", "web-1"]).ok();
    first.finish().cancelled();
    stays(&pair, guest.name());
    Migration::run(&pair.a, guest.name(), &pair.b).ok();
    one_intact_copy(&pair.hosts(), guest.name(), &pair.b);
}

#[test]
fn a_migration_can_be_cancelled_at_its_destination() {
    let pair = Pair::new();
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    let migration = Migration::start(&pair.a, guest.name(), &pair.b, &CRAWL);
    migration.await_phase("precopy");
    pair.b.guest(guest.name()).await_state("incoming");

    let said = pair.b.run(&["cancel", "web-1"]).ok().stdout;

    assert!(said.contains("cancelled") && said.contains("nothing of it is left here"), "{said}");
    assert!(pair.b.list().is_empty(), "{:#?}", pair.b.list());
    migration.finish().cancelled();
    stays(&pair, guest.name());
}

#[test]
fn a_paused_guest_whose_migration_is_cancelled_is_said_to_stay_paused() {
    let pair = Pair::new();
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    pair.a.run(&["pause", "web-1"]).ok();
    let migration = Migration::start(&pair.a, guest.name(), &pair.b, &CRAWL);
    migration.await_phase("precopy");

    let said = pair.a.run(&["cancel", "web-1"]).ok().stdout;

    let words = ["cancelled", "the guest stays paused here"];
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    migration.finish().done.complains(Exit::Cancelled, &words);
    pair.a.run(&["resume", "web-1"]).ok();
    stays(&pair, guest.name());
}

#[test]
fn ctrl_c_cancels_the_migration() {
    let pair = Pair::new();
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    let migration = Migration::start(&pair.a, guest.name(), &pair.b, &CRAWL);
    migration.await_phase("precopy");
    migration.pid().signal(Signal::SIGINT);
    migration.finish().cancelled();
    stays(&pair, guest.name());
}

#[test]
fn a_guest_terminated_during_migration_is_reported_as_ended() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let pair = Pair::new();
        let guest = Guest::start(&pair.a, &GuestPlan::default());
        let migration = Migration::start(&pair.a, guest.name(), &pair.b, &CRAWL);
        migration.await_phase("precopy");
        guest.pid().signal(signal);
        let done = migration.finish().done;
        assert!(!done.stderr.contains("keeps running"), "{done:#?}");
        done.complains(Exit::Failed, &["web-1", "it is gone", "its process was told to end"]);
        guest_is_gone(&pair.hosts(), guest.name());
    }
}

#[test]
fn a_migration_whose_process_hangs_is_no_longer_followed() {
    let pair = Pair::new();
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    let migration = Migration::start(&pair.a, guest.name(), &pair.b, &CRAWL);
    migration.await_phase("precopy");
    let pid = guest.pid();
    pid.freeze();
    let unwatched = migration.finish().done;
    pid.thaw();
    unwatched.complains(Exit::Unwatched, &["did not answer", "it continues", "lighter show web-1"]);

    // The guest continues, or its process has noticed that the other host gave up on it.
    let _too_late = pair.a.run(&["cancel", guest.name()]);
    stays(&pair, guest.name());
}

#[test]
fn a_migration_that_takes_too_long_gives_up() {
    let pair = Pair::new();
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    let arguments = [CRAWL.as_slice(), &["--timeout", "2s"]].concat();
    let migration = Migration::start(&pair.a, guest.name(), &pair.b, &arguments);
    migration.finish().stayed(&["2 s", "limit"]);
    stays(&pair, guest.name());
}
