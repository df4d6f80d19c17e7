//! A migration as a user starts it: `lighter migrate`, observed from outside.

use serde_json::Value;

use super::program::{Done, Running, lighter};
use super::{Exit, Guest, Host, Pid, wait};

/// A bandwidth below the dirty rate of [`GuestPlan::default`](super::GuestPlan): the migration
/// stays in precopy for as long as a test needs.
pub const CRAWL: [&str; 2] = ["--bandwidth", "500KB/s"];

/// A downtime limit for tests that hold a migration while the guest is paused: longer than they
/// hold it.
pub const HELD: [&str; 2] = ["--downtime", "10s"];

/// Downtime limit for tests of other things: enough for a switchover while other tests run beside
/// it. A host that is fully emulated needs more, and sets it by the environment variable.
fn downtime() -> [String; 2] {
    let limit = std::env::var("LIGHTER_TEST_DOWNTIME").unwrap_or_else(|_| "3s".to_owned());
    ["--downtime".to_owned(), limit]
}

/// A running `lighter migrate --json`. Dropping it kills the command; the migration itself
/// continues.
#[derive(Debug)]
pub struct Migration {
    verb: Running,
    guest: Guest,
}

/// The end of a migration command.
#[derive(Debug)]
pub struct Outcome {
    /// The command's exit code and output.
    pub done: Done,
}

impl Migration {
    /// Starts to migrate guest `name` from one host to the other; `more` are further arguments.
    pub fn start(from: &Host, name: &str, to: &Host, more: &[&str]) -> Self {
        Self::to_address(from, name, to.node().address(), more)
    }

    /// As [`Self::start`], to an address.
    pub fn to_address(from: &Host, name: &str, address: &str, more: &[&str]) -> Self {
        let (mut arguments, downtime) =
            ([&["migrate", name, address, "--json"], more].concat(), downtime());
        // A migration with limited bandwidth is not meant to complete.
        let is_said = |options: &[&str]| more.iter().any(|option| options.contains(option));
        if !is_said(&["--downtime", "--bandwidth"]) {
            arguments.extend(downtime.iter().map(String::as_str));
        }
        if !is_said(&["--on-stall", "--preset"]) {
            arguments.extend(["--on-stall", "wait"]);
        }
        let command = lighter(from.state_dir(), &arguments);
        Self { verb: Running::start(command), guest: from.guest(name) }
    }

    /// Migrates the guest and waits for the end.
    pub fn run(from: &Host, name: &str, to: &Host) -> Outcome {
        Self::start(from, name, to, &[]).finish()
    }

    /// The process of the `lighter migrate` command.
    pub fn pid(&self) -> Pid {
        self.verb.pid()
    }

    /// Waits until the source reports `phase`.
    #[track_caller]
    pub fn await_phase(&self, phase: &str) {
        wait::until(&format!("the migration reaches {phase}"), || {
            let status = self.guest.get("/v1/guest/migration")?;
            let is_there = status["progress"]["phase"] == phase && status["report"].is_null();
            wait::holds(is_there, format!("{status} and the verb said {:?}", self.verb.said()))
        });
    }

    /// Waits until the command ends.
    #[track_caller]
    pub fn finish(self) -> Outcome {
        let Self { verb, guest } = self;
        Outcome { done: verb.finish_watched(|| guest.get("/v1/guest/migration")) }
    }
}

impl Outcome {
    /// Asserts that the migration succeeded; returns its report.
    #[track_caller]
    pub fn ok(self) -> Value {
        let report = self.done.ok().json();
        assert_eq!(report["outcome"], "migrated", "{report:#}");
        assert!(report["error"].is_null(), "{report:#}");
        report
    }

    /// Asserts that the migration failed and the guest continues on the source, and that the
    /// message says so and contains all of `words`. Returns the command's output.
    #[track_caller]
    pub fn stayed(self, words: &[&str]) -> Done {
        self.done
            .complains(Exit::Failed, &["lighter: ", "the guest keeps running here"])
            .complains(Exit::Failed, words)
    }

    /// Asserts that the migration was cancelled.
    #[track_caller]
    pub fn cancelled(self) -> Done {
        self.done.complains(Exit::Cancelled, &["cancelled", "the guest keeps running here"])
    }

    /// Asserts that the migration is in doubt: the guest runs on neither host, and the message
    /// names the way out.
    #[track_caller]
    pub fn in_doubt(self) -> Done {
        self.done.complains(Exit::InDoubt, &["in doubt", "paused here", "--resolve"])
    }
}
