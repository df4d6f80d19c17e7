//! Two hosts, and who lives on them.

use std::time::Duration;

use super::nodes::Life;
use super::story::Cast;
use support::linux::image::Image;
use support::linux::witness::{Line, Witness};
use support::{GuestPlan, Host, NodePlan, Pair, wait};

/// The guest of Linux.
pub(crate) const LINUX: &str = "linux";
/// What nodes log last, in lines.
const LAST_LINES: usize = 60;

/// ksmd is the machine's, and one node drives it: that of host a.
const ACTUATORS: [&str; 2] = [r#"["balloon", "merge", "huge"]"#, r#"["balloon", "huge"]"#];
/// Takes what guests of this size do not need, which is less than the usual policy looks at, and
/// merges what little there is.
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
/// A run every minute, which is over when the next one begins.
const SCHEDULE: &str = r#"
[[schedule]]
name = "soak"
cron = "* * * * *"
for = "1m"
goal = "max density"
"#;

/// One of the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The one whose nodes are killed, and drive ksmd.
    A,
    /// The one whose node lives all the time.
    B,
}

impl Side {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::A, Self::B];

    /// Where a guest here migrates to.
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// A guest that should be there.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// Its name.
    pub(crate) name: String,
    /// Where.
    pub(crate) at: Side,
    /// Whether its vCPUs stand.
    pub(crate) is_paused: bool,
}

/// All of it.
pub(crate) struct Stage {
    pair: Pair,
    /// The guests that should be there, Linux first.
    pub(crate) members: Vec<Member>,
    /// What Linux said last.
    pub(crate) last_line: Line,
    image: Image,
    lives: [Life; 2],
    warm_up: Duration,
    clones_born: u64,
}

impl Stage {
    /// Two hosts and the guest of Linux from `image`, for a soak that lasts for `time`.
    pub(crate) fn set(image: Image, time: Duration) -> Self {
        let mut pair = Pair::without_nodes();
        for (host, actuators) in [&mut pair.a, &mut pair.b].into_iter().zip(ACTUATORS) {
            settle(host, actuators, SCHEDULE);
            host.start_node(&NodePlan::default());
        }
        pair.a.run(&["restore", image.file(), "--name", LINUX, "--detach"]).ok();
        let last_line = Witness::of(&pair.a, LINUX, image.pages()).line();
        let linux = Member { name: LINUX.to_owned(), at: Side::A, is_paused: false };
        let warm_up = Duration::from_secs(180).min(time / 3);
        let lives = pair.hosts().map(|host| Life::of(host.node().pid(), warm_up));
        Self { pair, members: vec![linux], last_line, image, lives, warm_up, clones_born: 0 }
    }

    /// A host.
    pub(crate) const fn host(&self, side: Side) -> &Host {
        match side {
            Side::A => &self.pair.a,
            Side::B => &self.pair.b,
        }
    }

    /// Both.
    pub(crate) fn hosts(&self) -> [&Host; 2] {
        self.pair.hosts()
    }

    /// How many guests there are, and whether the end is near.
    pub(crate) fn cast(&self, is_late: bool) -> Cast {
        let paused = self.members.iter().filter(|member| member.is_paused).count();
        let all = self.members.len();
        Cast { clones: all - 1, running: all - paused, paused, is_late }
    }

    /// What Linux says.
    pub(crate) fn witness(&self) -> Witness {
        Witness::of(self.host(self.members[0].at), LINUX, self.image.pages())
    }

    /// Pages that Linux checks.
    pub(crate) fn linux_pages(&self) -> u64 {
        self.image.pages()
    }

    /// A clone that is to be started, with much in common with the others.
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

    /// Looks at the nodes, and says what they have grown by.
    pub(crate) fn look_at_nodes(&mut self) -> [String; 2] {
        self.lives.each_mut().map(Life::look)
    }

    /// Kills the node of host a, and starts another.
    pub(crate) fn replace_node(&mut self) -> String {
        let grown = self.lives[0].look();
        self.pair.a.kill_node();
        self.pair.a.start_node(&NodePlan::default());
        self.lives[0] = Life::of(self.pair.a.node().pid(), self.warm_up);
        grown
    }

    /// Ends the schedules, and waits until no run is under way.
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

    /// The end of what the nodes have logged, to stderr.
    pub(crate) fn say_last_words(&self) {
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
