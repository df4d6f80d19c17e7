//! Events: changes of guests, reported while they happen.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use support::{Exit, Guest, GuestPlan, Host, Migration, Pair, Running, lighter, wait};

/// Starts `lighter events --json` and waits until it listens, that is, until it has reported a
/// guest that came and went.
pub(crate) fn listen(host: &Host) -> Running {
    let listener = Running::start(lighter(host.state_dir(), &["events", "--json"]));
    wait::until("somebody listens", || {
        Guest::start(host, &GuestPlan { name: "canary".to_owned(), ..GuestPlan::default() });
        host.run(&["destroy", "canary"]).ok();
        let reported = events(&listener);
        wait::holds(!reported.is_empty(), reported)
    });
    listener
}

/// The events reported so far.
fn events(listener: &Running) -> Vec<Value> {
    let lines = listener.said().0;
    // The last line may not be complete yet.
    lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Waits until these events of web-1 have been reported in this order, with any others in between.
#[track_caller]
pub(crate) fn await_events(listener: &Running, names: &[&str]) -> Vec<Value> {
    wait::until(&format!("{names:?} are told"), || {
        let reported: Vec<Value> =
            events(listener).into_iter().filter(|event| event["guest"] == "web-1").collect();
        let mut awaited = names.iter().peekable();
        for event in &reported {
            awaited.next_if(|name| event["event"] == **name);
        }
        if awaited.peek().is_none() { Ok(reported) } else { Err(reported) }
    })
}

#[test]
fn guest_events_are_reported_as_they_happen() {
    let pair = Pair::without_nodes();
    let listener = listen(&pair.a);
    Guest::start(&pair.a, &GuestPlan::default());
    await_events(&listener, &["started"]);
    // Even the shortest pause is reported.
    pair.a.run(&["pause", "web-1"]).ok();
    pair.a.run(&["resume", "web-1"]).ok();
    await_events(&listener, &["started", "paused", "resumed"]);
    pair.a.run(&["reset", "web-1"]).ok();
    await_events(&listener, &["started", "paused", "resumed", "reset"]);
    pair.a.run(&["destroy", "web-1"]).ok();
    let reported = await_events(&listener, &["started", "paused", "resumed", "reset", "stopped"]);
    assert_eq!(reported.len(), 5, "{reported:#?}");
    assert_eq!(reported[3]["reason"], "reset on request", "{reported:#?}");
    assert_eq!(reported[4]["reason"], "was ended on request", "{reported:#?}");

    listener.pid().signal(Signal::SIGINT);
    assert_eq!(listener.finish().exit, Exit::Done);
}

#[test]
fn the_node_reports_the_same_events_as_the_guests_processes() {
    let pair = Pair::new();
    let host = &pair.a;
    let listener = listen(host);
    let mut stream = UnixStream::connect(host.state_dir().join("node.sock")).unwrap();
    stream.write_all(b"GET /v1/events HTTP/1.1\r\nhost: node\r\n\r\n").unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut head = [0];
    stream.read_exact(&mut head).expect("an answer begins at once");
    Guest::start(host, &GuestPlan::default());
    host.run(&["pause", "web-1"]).ok();
    Migration::run(host, "web-1", &pair.b).ok();
    let reported = await_events(&listener, &["started", "paused", "migration-phase", "stopped"]);

    let lines = BufReader::new(stream).lines().map(|line| line.expect("a line in time"));
    let events = lines.filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    let of_guest = events.filter(|event| event["guest"] == "web-1");
    assert_eq!(of_guest.take(reported.len()).collect::<Vec<_>>(), reported);
    let numbers: Vec<_> = reported.iter().filter_map(|event| event["number"].as_u64()).collect();
    assert_eq!(numbers, (0..reported.len() as u64).collect::<Vec<_>>(), "{reported:#?}");
    let phases = reported.iter().filter_map(|event| event["phase"].as_str()).collect::<Vec<_>>();
    let all = ["connect", "prepare", "precopy", "switchover", "ready", "commit", "resume"];
    assert_eq!(phases, all);
    // A killed guest reports nothing more; its end is reported all the same.
    let guest = Guest::start(host, &GuestPlan::default());
    await_events(&listener, &["stopped", "started"]);
    guest.pid().signal(Signal::SIGKILL);
    let reported = await_events(&listener, &["stopped", "started", "stopped"]);
    let reason = &reported.last().expect("an end")["reason"];
    assert_eq!(reason, "died (its process was killed, or crashed)", "{reported:#?}");
}

#[test]
fn a_migration_is_reported_on_both_hosts() {
    let pair = Pair::new();
    Guest::start(&pair.a, &GuestPlan::default());
    let listeners = pair.hosts().map(listen);
    Migration::run(&pair.a, "web-1", &pair.b).ok();

    let left = await_events(&listeners[0], &["migration-started", "migration-ended", "stopped"]);
    let ended = left.iter().find(|event| event["event"] == "migration-ended").expect("an end");
    assert_eq!((&ended["role"], &ended["outcome"]), (&"source".into(), &"migrated".into()));
    let stopped = left.last().expect("an end");
    assert!(stopped["reason"].as_str().is_some_and(|it| it.starts_with("moved to")), "{stopped:#}");

    let arrived = await_events(&listeners[1], &["migration-started", "migration-ended", "started"]);
    assert_eq!(arrived[0]["migration_id"], ended["migration_id"], "{arrived:#?}");
}
