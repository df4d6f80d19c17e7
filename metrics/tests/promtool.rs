//! The page of a busy node passes `promtool check metrics` and leaves no metric out.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use metrics::{
    DepartedSample, Direction, Exporter, FailureReason, GuestSample, GuestState, HostMemory,
    MigrationSample, NetworkFlow, NetworkSample, Phase, RefusalReason, Snapshot, Traffic,
};

fn migration() -> MigrationSample {
    MigrationSample {
        direction: Direction::Outgoing,
        phase: Some(Phase::Precopy),
        phase_durations: vec![(Phase::Connect, Duration::from_millis(3))],
        duration: Duration::from_secs(1),
        rounds: Some(3),
        raw: Traffic { pages: 10, bytes: 40_960 },
        lz4: Traffic { pages: 10, bytes: 9_000 },
        zero_pages: 100,
        hinted_pages: Some(50),
        remaining_bytes: Some(4096),
        disk_remaining_bytes: Some(4096),
        disk_transferred_bytes: 8192,
        transfer_rate: Some(1e9),
        dirty_rate: Some(1e8),
        expected_downtime: Some(Duration::from_millis(30)),
        downtime: Some(Duration::from_millis(12)),
        guest_downtime: Some(Duration::from_millis(13)),
    }
}

fn network() -> NetworkSample {
    let flow = NetworkFlow { bytes: 3, packets: 2, drops: 1 };
    NetworkSample { device: "tap0".into(), received: flow, transmitted: flow }
}

fn busy_snapshot() -> Snapshot {
    let guest = GuestSample {
        name: "web-1".into(),
        uuid: "1b4e28ba-2fa1-11d2-883f-0016d3cca427".into(),
        state: GuestState::Running,
        started: SystemTime::now(),
        memory_bytes: 512 << 20,
        vcpus: 2,
        resident_bytes: Some(530 << 20),
        proportional_bytes: Some(520 << 20),
        networks: vec![network()],
        longest_stall: Some(Duration::from_millis(12)),
        migration: Some(migration()),
    };
    let host = HostMemory { available_bytes: 3, reserved_bytes: 2, promised_bytes: 1 };
    Snapshot {
        scrape_duration: Duration::from_millis(2),
        guests: vec![guest],
        departed: vec![DepartedSample { guest: "web-2".into(), migration: migration() }],
        guests_unreachable: 1,
        migrations_in_doubt: 1,
        host: Some(host),
    }
}

fn busy_page() -> String {
    let exporter = Exporter::new("1.0.0", "abc", SystemTime::now()).expect("a sound catalogue");
    let counted = exporter.counted();
    counted.migrations_started.inc(&(Direction::Outgoing,));
    counted.migrations_completed.inc(&(Direction::Outgoing,));
    counted.migrations_cancelled.inc(&(Phase::Precopy,));
    counted.migrations_failed.inc(&(Phase::Connect, FailureReason::ConnectionLost));
    counted.admissions.inc(&());
    counted.admissions_refused.inc(&(RefusalReason::Memory,));
    counted.completed_downtime.observe(&(Direction::Outgoing,), 0.012);
    counted.completed_duration.observe(&(Direction::Outgoing,), 1.4);
    exporter.render(&busy_snapshot()).expect("a page")
}

#[test]
fn a_busy_node_moves_every_metric_of_the_catalogue() {
    let page = busy_page();
    let still = metrics::never_moved([page.as_str()]).expect("a page");
    assert!(still.is_empty(), "no value other than zero for: {}", still.join(", "));
}

#[test]
fn every_series_on_the_page_is_in_the_catalogue() {
    let names: Vec<_> = metrics::definitions().map(|definition| definition.name).collect();
    for sample in metrics::parse_samples(&busy_page()).expect("a page") {
        let histogram = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| sample.name.strip_suffix(suffix))
            .filter(|stem| names.contains(stem));
        assert!(histogram.is_some() || names.contains(&sample.name.as_str()), "{}", sample.name);
    }
}

#[test]
fn promtool_finds_nothing_to_say() {
    if std::env::var_os("LIGHTER_SKIP_PROMTOOL").is_some() {
        eprintln!("skipped: LIGHTER_SKIP_PROMTOOL is set");
        return;
    }
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect(
            "promtool is needed (Debian's package `prometheus`); \
             set LIGHTER_SKIP_PROMTOOL=1 to go without this check",
        );
    let mut input = promtool.stdin.take().expect("promtool's input");
    input.write_all(busy_page().as_bytes()).expect("promtool reads the page");
    drop(input);
    let output = promtool.wait_with_output().expect("promtool ends");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.trim().is_empty(), "promtool: {said}");
}
