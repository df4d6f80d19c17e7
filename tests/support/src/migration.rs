//! A migration as a user starts it: `lighter migrate`, watched from outside.

use serde_json::Value;

use super::program::{Done, Running, lighter};
use super::{Exit, Guest, Host, Pid, wait};

/// Slower than a guest of [`GuestPlan::default`](super::GuestPlan) writes: it is on its way for as
/// long as a test needs.
pub const CRAWL: [&str; 2] = ["--bandwidth", "500KB/s"];

/// For tests that hold a migration while the guest stands still: longer than they do.
pub const HELD: [&str; 2] = ["--downtime", "10s"];

/// Limit of the downtime for tests that are not about it: what a hand-over needs when other tests
/// run beside it. Where all of the host is emulated it needs more, which the environment then says.
fn downtime() -> [String; 2] {
    let limit = std::env::var("LIGHTER_TEST_DOWNTIME").unwrap_or_else(|_| "3s".to_owned());
    ["--downtime".to_owned(), limit]
}

/// A running `lighter migrate --json`; killed when dropped (the migration itself goes on then).
#[derive(Debug)]
pub struct Migration {
    verb: Running,
    guest: Guest,
}

/// How it ended.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code and words.
    pub done: Done,
}

impl Migration {
    /// Starts to migrate `name` from one host to the other, with more arguments.
    pub fn start(from: &Host, name: &str, to: &Host, more: &[&str]) -> Self {
        Self::to_address(from, name, to.node().address(), more)
    }

    /// As [`Self::start`], to an address.
    pub fn to_address(from: &Host, name: &str, address: &str, more: &[&str]) -> Self {
        let (mut arguments, downtime) =
            ([&["migrate", name, address, "--json"], more].concat(), downtime());
        // One that crawls is not to arrive.
        let is_said = |option: &&str| ["--downtime", "--bandwidth"].contains(option);
        if !more.iter().any(is_said) {
            arguments.extend(downtime.iter().map(String::as_str));
        }
        let command = lighter(from.state_dir(), &arguments);
        Self { verb: Running::start(command), guest: from.guest(name) }
    }

    /// Migrates and waits for the end.
    pub fn run(from: &Host, name: &str, to: &Host) -> Outcome {
        Self::start(from, name, to, &[]).finish()
    }

    /// The process of the command line.
    pub fn pid(&self) -> Pid {
        self.verb.pid()
    }

    /// Waits until the source says that it is in `phase`.
    #[track_caller]
    pub fn await_phase(&self, phase: &str) {
        wait::until(&format!("the migration reaches {phase}"), || {
            let status = self.guest.get("/v1/guest/migration")?;
            let is_there = status["progress"]["phase"] == phase && status["report"].is_null();
            wait::holds(is_there, format!("{status} and the verb said {:?}", self.verb.said()))
        });
    }

    /// Waits for the end of the command.
    #[track_caller]
    pub fn finish(self) -> Outcome {
        let Self { verb, guest } = self;
        Outcome { done: verb.finish_watched(|| guest.get("/v1/guest/migration")) }
    }
}

impl Outcome {
    /// It succeeded; the report.
    #[track_caller]
    pub fn ok(self) -> Value {
        let report = self.done.ok().json();
        assert_eq!(report["outcome"], "migrated", "{report:#}");
        assert!(report["error"].is_null(), "{report:#}");
        report
    }

    /// It failed and the guest goes on where it was; the message says so, and has all of `words`.
    /// Returns the report, when there is one.
    #[track_caller]
    pub fn stayed(self, words: &[&str]) -> Done {
        self.done
            .complains(Exit::Failed, &["lighter: ", "the guest goes on here"])
            .complains(Exit::Failed, words)
    }

    /// It was called off.
    #[track_caller]
    pub fn cancelled(self) -> Done {
        self.done.complains(Exit::Cancelled, &["called off", "the guest goes on here"])
    }

    /// Nobody can tell: the guest runs nowhere, and the way out is printed.
    #[track_caller]
    pub fn in_doubt(self) -> Done {
        self.done.complains(Exit::InDoubt, &["in doubt", "paused here", "--resolve"])
    }
}
