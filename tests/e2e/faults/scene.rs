//! Two hosts, a guest, and a migration that runs into a failpoint.

use std::path::PathBuf;

use super::phase::{Phase, Side};
use support::checks::one_intact_copy;
use support::{
    Guest, GuestPlan, HELD, Host, Migration, NodePlan, Pair, Pid, WITHOUT_EARLY_COMMIT, wait,
};

/// The guest's name.
pub(super) const GUEST: &str = "web-1";

/// A failpoint that holds a process until the test releases it: the process creates a file and
/// waits until the test removes it.
#[derive(Debug)]
pub(super) struct Stall(PathBuf);

impl Stall {
    /// A stall for the test that owns `pair`.
    pub(super) fn new(pair: &Pair) -> Self {
        Self(pair.folder().join("stall"))
    }

    /// The environment that stalls `phase`, for the processes of `side`; empty for the other side.
    pub(super) fn environment(&self, phase: &Phase, side: Side) -> Vec<(String, String)> {
        environment(phase.side, side, &format!("{}:stall={}", phase.point, self.0.display()))
    }

    /// Waits until a process is held.
    #[track_caller]
    pub(super) fn await_reached(&self) {
        wait::until("the migration stands", || wait::holds(self.0.exists(), &self.0));
    }

    /// Releases the held process.
    pub(super) fn release(&self) {
        std::fs::remove_file(&self.0).expect("a process that stands");
    }
}

/// The environment of the processes of `side`, with the failpoint if it is one of side `of`. Only
/// releases without early commits reach a failpoint at `Ready`.
pub(super) fn environment(of: Side, side: Side, failpoint: &str) -> Vec<(String, String)> {
    let mut set = vec![("LIGHTER_FAILPOINT".to_owned(), failpoint.to_owned())];
    if failpoint.contains(".ready:") {
        let (variable, value) = WITHOUT_EARLY_COMMIT;
        set.push((variable.to_owned(), value.to_owned()));
    }
    if of == side { set } else { Vec::new() }
}

/// A migration of [`GUEST`] from host a to host b.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) pair: Pair,
    migration: Option<Migration>,
    stall: Stall,
}

impl Scene {
    /// Two hosts and the guest, with a failpoint on one side; no migration yet.
    pub(super) fn with_failpoint(side: Side, failpoint: &str) -> Self {
        Self::prepare(|_, of| environment(side, of, failpoint))
    }

    /// Two hosts and the guest, with the same failpoint in the processes of both sides; no
    /// migration yet.
    pub(super) fn with_failpoint_on_both(failpoint: &str) -> Self {
        Self::prepare(|_, of| environment(of, of, failpoint))
    }

    /// Two hosts and the guest, with failpoints on each side. Those whose action is `stall` hold
    /// until [`Self::release`]. No migration yet.
    pub(super) fn with_failpoints(source: &str, destination: &str) -> Self {
        Self::prepare(|stall, of| {
            let failpoints = match of {
                Side::Source => source,
                Side::Destination => destination,
            };
            let stalls = format!(":stall={}", stall.0.display());
            environment(of, of, &failpoints.replace(":stall", &stalls))
        })
    }

    /// Two hosts and the guest of this plan; no migration yet.
    pub(super) fn with_guest(guest: &GuestPlan) -> Self {
        let pair = Pair::new();
        let stall = Stall::new(&pair);
        Guest::start(&pair.a, guest);
        Self { pair, migration: None, stall }
    }

    /// Two hosts and the guest; no migration yet.
    pub(super) fn without_failpoint() -> Self {
        Self::prepare(|_, _| Vec::new())
    }

    /// A migration that is held in `phase` forever: the next step never happens. A source that is
    /// about to send its commit does not know whether the last pages have arrived; they have.
    pub(super) fn held_in(phase: &Phase) -> Self {
        let mut scene = Self::with_failpoint(phase.side, &format!("{}:hold", phase.point));
        scene.migrate();
        scene.await_failpoint(phase.side, phase.point);
        if phase.point == "source.send.commit" {
            scene.pair.b.guest(GUEST).await_received();
        }
        scene
    }

    /// A migration that is held in `phase` until [`Self::release`].
    pub(super) fn stalled_in(phase: &Phase) -> Self {
        let mut scene = Self::stalling_in(phase);
        scene.migrate();
        scene.await_stalled();
        scene
    }

    /// Two hosts and the guest, whose first migration will be held in `phase`; it has not started
    /// yet.
    pub(super) fn stalling_in(phase: &Phase) -> Self {
        Self::prepare(|stall, of| stall.environment(phase, of))
    }

    /// Waits until the stall holds the migration.
    #[track_caller]
    pub(super) fn await_stalled(&self) {
        self.stall.await_reached();
    }

    /// Releases a stalled migration.
    pub(super) fn release(&self) {
        self.stall.release();
    }

    fn prepare(environment: impl Fn(&Stall, Side) -> Vec<(String, String)>) -> Self {
        let mut pair = Pair::without_nodes();
        let stall = Stall::new(&pair);
        let destination = environment(&stall, Side::Destination);
        pair.a.start_node(&NodePlan::default());
        pair.b.start_node(&NodePlan { environment: destination, ..NodePlan::default() });
        let source = environment(&stall, Side::Source);
        Guest::start(&pair.a, &GuestPlan { environment: source, ..GuestPlan::default() });
        Self { pair, migration: None, stall }
    }

    /// Starts the migration.
    pub(super) fn migrate(&mut self) {
        self.migrate_with(&HELD);
    }

    /// Starts the migration with `more` arguments.
    pub(super) fn migrate_with(&mut self, more: &[&str]) {
        self.migration = Some(Migration::start(&self.pair.a, GUEST, &self.pair.b, more));
    }

    /// Takes the migration's command out of the scene.
    pub(super) fn take_migration(&mut self) -> Migration {
        self.migration.take().expect("a migration was started")
    }

    /// Waits until the process of `side` has reached the failpoint.
    #[track_caller]
    pub(super) fn await_failpoint(&self, side: Side, point: &str) {
        let host = match side {
            Side::Source => &self.pair.a,
            Side::Destination => &self.pair.b,
        };
        wait::until(&format!("{point} is reached"), || {
            let logs = host.logs();
            let struck =
                logs.lines().any(|line| line.contains("failpoint") && line.contains(point));
            wait::holds(struck, format!("{:?}\n{logs}", self.migration))
        });
    }

    /// The guest's process on host a.
    pub(super) fn source(&self) -> Pid {
        self.pair.a.guest(GUEST).pid()
    }

    /// The process on host b that receives the guest.
    pub(super) fn destination(&self) -> Pid {
        let children = self.pair.b.node().pid().children();
        assert_eq!(children.len(), 1, "one guest is on its way");
        children[0]
    }

    /// Asserts that the guest runs on `host` and nowhere else, intact, and that nothing is left
    /// behind.
    #[track_caller]
    pub(super) fn runs_only_on(&self, host: &Host) {
        one_intact_copy(&self.pair.hosts(), GUEST, host);
    }

    /// Asserts that another migration to host b succeeds. Restarts the destination's node first,
    /// because the environment of the old one contains the failpoint.
    #[track_caller]
    pub(super) fn another_migration_succeeds(mut self) {
        self.pair.b.kill_node();
        self.pair.b.start_node(&NodePlan::default());
        Migration::run(&self.pair.a, GUEST, &self.pair.b).ok();
        self.runs_only_on(&self.pair.b);
    }
}
