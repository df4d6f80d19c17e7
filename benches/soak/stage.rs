//! Two hosts and their guests.

use std::time::Duration;

use super::nodes::Life;
use super::story::Population;
use support::linux::image::Image;
use support::linux::witness::{CheckConsole, Line};
use support::{GuestPlan, Host, NodePlan, Pair, wait};

/// Name of the Linux guest.
pub(crate) const LINUX: &str = "linux";
/// Number of log lines to print of each host.
const LAST_LINES: usize = 60;

/// Actuators of hosts a and b. There is one ksmd per machine, and only the node of host a drives
/// it.
const ACTUATORS: [&str; 2] = [r#"["balloon", "merge", "huge"]"#, r#"["balloon", "huge"]"#];
/// Takes what guests of this size do not need, which is too little for the default policy, and
/// merges even small gains.
const POLICY: &str = r#"
preset = "dense"
goal = "max density"
[balloon]
dead-band-min = "2MiB"
reserve-min = "8MiB"
floor = "10%"
step = "20%"
[merge]
gain-min = "1MiB"
window = "30s"
pause = "10s"
"#;
/// A run every minute, which is over before the next one begins.
const SCHEDULE: &str = r#"
[[schedule]]
name = "soak"
cron = "* * * * *"
for = "1m"
goal = "max density"
"#;

/// One of the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Host a, whose node is killed repeatedly and drives ksmd.
    A,
    /// Host b, whose node lives all the time.
    B,
}

impl Side {
    /// Both hosts, a first.
    pub(crate) const ALL: [Self; 2] = [Self::A, Self::B];

    /// The host to which guests of this one migrate.
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// A guest that should exist.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// The guest's name.
    pub(crate) name: String,
    /// The host that the guest should be on.
    pub(crate) at: Side,
    /// Whether the guest is paused.
    pub(crate) is_paused: bool,
}

/// The hosts and the guests that should be on them.
pub(crate) struct Stage {
    pair: Pair,
    /// The guests that should be there, Linux first.
    pub(crate) members: Vec<Member>,
    /// The Linux guest's last line.
    pub(crate) last_line: Line,
    image: Image,
    lives: [Life; 2],
    warm_up: Duration,
    clones_born: u64,
}

impl Stage {
    /// Creates two hosts and the Linux guest from `image`, for a soak that lasts for `time`.
    pub(crate) fn set(image: Image, time: Duration) -> Self {
        let mut pair = Pair::without_nodes();
        for (host, actuators) in [&mut pair.a, &mut pair.b].into_iter().zip(ACTUATORS) {
            settle(host, actuators, SCHEDULE);
            host.start_node(&NodePlan::default());
        }
        pair.a.run(&["restore", image.file(), "--name", LINUX, "--detach"]).ok();
        let last_line = CheckConsole::of(&pair.a, LINUX, image.pages()).line();
        let linux = Member { name: LINUX.to_owned(), at: Side::A, is_paused: false };
        let warm_up = Duration::from_secs(180).min(time / 3);
        let lives = pair.hosts().map(|host| Life::of(host.node().pid(), warm_up));
        Self { pair, members: vec![linux], last_line, image, lives, warm_up, clones_born: 0 }
    }

    /// The host on `side`.
    pub(crate) const fn host(&self, side: Side) -> &Host {
        match side {
            Side::A => &self.pair.a,
            Side::B => &self.pair.b,
        }
    }

    /// Both hosts, a first.
    pub(crate) fn hosts(&self) -> [&Host; 2] {
        self.pair.hosts()
    }

    /// The numbers of guests; `is_late` is passed on.
    pub(crate) fn population(&self, is_late: bool) -> Population {
        let paused = self.members.iter().filter(|member| member.is_paused).count();
        let all = self.members.len();
        Population { clones: all - 1, running: all - paused, paused, is_late }
    }

    /// The console of the Linux guest.
    pub(crate) fn witness(&self) -> CheckConsole {
        CheckConsole::of(self.host(self.members[0].at), LINUX, self.image.pages())
    }

    /// Number of pages that the Linux guest checks.
    pub(crate) fn linux_pages(&self) -> u64 {
        self.image.pages()
    }

    /// The plan of a new clone, which has much content in common with the others.
    pub(crate) fn next_clone(&mut self, memory_mib: u64, dirty_rate: u32) -> GuestPlan {
        self.clones_born += 1;
        let common = ["--merge-domain", "soak", "--zero-share", "25", "--image-share", "35"];
        GuestPlan {
            name: format!("clone-{}", self.clones_born),
            memory: format!("{memory_mib}M"),
            dirty_rate,
            options: common.map(str::to_owned).into(),
            ..GuestPlan::default()
        }
    }

    /// Checks the nodes, and returns their usage.
    pub(crate) fn check_nodes(&mut self) -> [String; 2] {
        self.lives.each_mut().map(Life::check)
    }

    /// Kills the node of host a and starts another one; returns the old one's usage.
    pub(crate) fn replace_node(&mut self) -> String {
        let grown = self.lives[0].check();
        self.pair.a.kill_node();
        self.pair.a.start_node(&NodePlan::default());
        self.lives[0] = Life::of(self.pair.a.node().pid(), self.warm_up);
        grown
    }

    /// Removes the schedules, and waits until no run is in progress.
    pub(crate) fn quiet(&self) {
        for (host, actuators) in self.hosts().into_iter().zip(ACTUATORS) {
            settle(host, actuators, "");
        }
        for host in self.hosts() {
            wait::within(Duration::from_secs(180), "no run is due or under way", || {
                let status = host.run(&["density", "status", "--json"]).ok().json();
                let next = host.run(&["density", "next", "--json"]).ok().json();
                let is_quiet = status["running"].is_null() && next == serde_json::json!([]);
                wait::holds(is_quiet, (status, next))
            });
        }
    }

    /// Prints the end of the nodes' logs to stderr.
    pub(crate) fn print_log_tails(&self) {
        for host in self.hosts() {
            let logs = host.logs();
            let lines: Vec<&str> = logs.lines().collect();
            let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
            eprintln!("--- {}\n{}", host.state_dir().display(), last.join("\n"));
        }
    }
}

fn settle(host: &Host, actuators: &str, schedule: &str) {
    let text = format!("actuators = {actuators}{POLICY}{schedule}");
    std::fs::create_dir_all(host.state_dir()).expect("a state folder");
    std::fs::write(host.state_dir().join("lighter.toml"), text).expect("a file");
}
