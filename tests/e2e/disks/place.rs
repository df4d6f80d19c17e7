//! Two hosts, each with a folder for disks, and a guest with a disk on the first.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use support::kernel::sleeper;
use support::{Done, Host, Migration, NodePlan, Pair, lighter, run, wait};

/// The guest's name.
pub(super) const GUEST: &str = "db";
/// Size of the guest's disk, deliberately not a multiple of the page size.
pub(super) const DISK_BYTES: u64 = (24 << 20) + 512;
/// Bytes of data on the disk; the rest is holes.
const CONTENT_BYTES: usize = 3 << 20;
/// Offset of the data.
const CONTENT_AT: u64 = 9 << 20;

/// The two hosts; their folders are beside them.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) pair: Pair,
}

/// The result of a migration command.
type Outcome = support::Outcome;

impl Place {
    /// Two hosts, and the guest running on the first.
    pub(super) fn new() -> Self {
        Self::with_environment(&[], &[])
    }

    /// As [`Self::new`], with environment variables for the processes of either side.
    pub(super) fn with_environment(
        source: &[(String, String)],
        target: &[(String, String)],
    ) -> Self {
        let mut place = Self { pair: Pair::without_nodes() };
        for name in ["a", "b", "c"] {
            fs::create_dir(place.folder(name)).expect("a folder");
        }
        let plan = |folder: PathBuf, environment: &[(String, String)]| NodePlan {
            arguments: vec!["--disk-dir".to_owned(), folder.display().to_string()],
            environment: environment.to_vec(),
            ..NodePlan::default()
        };
        let (a, b) = (place.folder("a"), place.folder("b"));
        place.pair.a.start_node(&plan(a, &[]));
        place.pair.b.start_node(&plan(b, target));
        make_disk(&place.disk_a());
        place.start_guest(source);
        place
    }

    /// Starts the guest on the first host, with these environment variables.
    pub(super) fn start_guest(&self, environment: &[(String, String)]) {
        self.run_with(GUEST, &self.disk_a(), environment).ok();
    }

    /// Starts a guest called `name` with `disk` on the first host.
    pub(super) fn run_on(&self, name: &str, disk: &Path) -> Done {
        self.run_with(name, disk, &[])
    }

    fn run_with(&self, name: &str, disk: &Path, environment: &[(String, String)]) -> Done {
        let kernel = sleeper(self.pair.folder());
        let (kernel, disk) = (kernel.display().to_string(), disk.display().to_string());
        let start = ["run", "--detach", "--name", name, "--memory", "64M"];
        let made_of = ["--kernel", &kernel, "--disk", &disk];
        let mut command = lighter(self.pair.a.state_dir(), &[&start[..], &made_of].concat());
        command.envs(environment.iter().cloned());
        run(command)
    }

    /// The disk folder `host`: `a` and `b` are those of the hosts, and neither host may create
    /// disks in `c`.
    pub(super) fn folder(&self, host: &str) -> PathBuf {
        self.pair.folder().join(format!("disks-{host}"))
    }

    /// The path of the disk on the first host.
    pub(super) fn disk_a(&self) -> PathBuf {
        self.folder("a").join("disk.raw")
    }

    /// The path of the disk on the second host.
    pub(super) fn disk_b(&self) -> PathBuf {
        self.folder("b").join("disk.raw")
    }

    /// The names of the files in a host's disk folder.
    pub(super) fn files_of(&self, host: &str) -> Vec<String> {
        let entries = fs::read_dir(self.folder(host)).expect("a folder").flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Starts to migrate the guest with its disk to the second host.
    pub(super) fn start(&self, more: &[&str]) -> Migration {
        self.start_between([&self.pair.a, &self.pair.b], [&self.disk_a(), &self.disk_b()], more)
    }

    /// Migrates the guest with its disk to the second host.
    pub(super) fn migrate(&self, more: &[&str]) -> Outcome {
        self.start(more).finish()
    }

    /// Migrates the guest with its disk back to the first host.
    pub(super) fn migrate_back(&self, more: &[&str]) -> Outcome {
        let (hosts, disks) = ([&self.pair.b, &self.pair.a], [&*self.disk_b(), &*self.disk_a()]);
        self.start_between(hosts, disks, more).finish()
    }

    fn start_between(&self, [from, to]: [&Host; 2], disks: [&Path; 2], more: &[&str]) -> Migration {
        let path = format!("{}={}", disks[0].display(), disks[1].display());
        let arguments = ["--copy-disks", "--disk-path", &path];
        Migration::start(from, GUEST, to, &[&arguments, more].concat())
    }

    /// Asserts that the guest runs on `host`, and nowhere else.
    #[track_caller]
    pub(super) fn runs_only_on(&self, host: &Host) {
        host.guest(GUEST).await_state("running");
        wait::until("one process has the guest", || {
            let hosts = self.pair.hosts();
            let states: Vec<_> =
                hosts.iter().filter_map(|host| host.guest(GUEST).state()).collect();
            wait::holds(states == ["running"], states)
        });
    }
}

/// Makes a disk with data and holes.
pub(super) fn make_disk(path: &Path) {
    let disk = fs::File::create(path).expect("a disk");
    disk.set_len(DISK_BYTES).expect("its size");
    let mut state = 1_u64;
    let random = std::iter::repeat_with(|| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (state >> 56) as u8
    });
    let content: Vec<u8> = random.take(CONTENT_BYTES).collect();
    disk.write_all_at(&content, CONTENT_AT).expect("content");
    disk.write_all_at(&[7; 512], DISK_BYTES - 512).expect("content");
}
