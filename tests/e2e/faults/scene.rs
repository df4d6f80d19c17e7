//! Two hosts, a guest, and a migration with a failpoint in its way.

use std::path::PathBuf;

use super::phase::{Phase, Side};
use crate::host::checks::one_intact_copy;
use crate::host::{Guest, GuestPlan, Host, Migration, NodePlan, Pair, Pid, children_of, wait};

/// The guest's name.
pub(super) const GUEST: &str = "web-1";

/// A migration of [`GUEST`] from host a to host b.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) pair: Pair,
    pub(super) migration: Option<Migration>,
    stall: PathBuf,
}

impl Scene {
    /// Two hosts and the guest, with a failpoint on one side; no migration yet.
    pub(super) fn with_failpoint(side: Side, failpoint: &str) -> Self {
        Self::prepare(|_| (side, failpoint.to_owned()))
    }

    /// A migration that stands in `phase` for good: what should come next there does not.
    pub(super) fn held_in(phase: &Phase) -> Self {
        let mut scene = Self::with_failpoint(phase.side, &format!("{}:hold", phase.point));
        scene.migrate();
        scene.await_failpoint(phase.side, phase.point);
        scene
    }

    /// A migration that stands in `phase` until [`Self::release`].
    pub(super) fn stalled_in(phase: &Phase) -> Self {
        let mut scene =
            Self::prepare(|stall| (phase.side, format!("{}:stall={stall}", phase.point)));
        scene.migrate();
        scene.await_failpoint(phase.side, phase.point);
        scene
    }

    /// Lets a stalled migration go on.
    pub(super) fn release(&self) {
        std::fs::remove_file(&self.stall).expect("a migration that is stalled");
    }

    fn prepare(failpoint: impl FnOnce(&str) -> (Side, String)) -> Self {
        let mut pair = Pair::without_nodes();
        let stall = pair.folder().join("stall");
        let (side, failpoint) = failpoint(&stall.display().to_string());
        let environment = |of: Side| {
            let set = of == side;
            set.then(|| ("LIGHTER_FAILPOINT".to_owned(), failpoint.clone())).into_iter().collect()
        };
        pair.a.start_node(&NodePlan::default());
        pair.b.start_node(&NodePlan {
            environment: environment(Side::Destination),
            ..NodePlan::default()
        });
        Guest::start(
            &pair.a,
            &GuestPlan { environment: environment(Side::Source), ..GuestPlan::default() },
        );
        Self { pair, migration: None, stall }
    }

    /// Starts the migration.
    pub(super) fn migrate(&mut self) {
        self.migration = Some(Migration::start(&self.pair.a, GUEST, &self.pair.b, &[]));
    }

    /// The migration's command.
    pub(super) fn take_migration(&mut self) -> Migration {
        self.migration.take().expect("a migration was started")
    }

    /// Waits until the failpoint has struck.
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

    /// The process on host b that takes the guest in.
    pub(super) fn destination(&self) -> Pid {
        let children = children_of(self.pair.b.node().pid());
        assert_eq!(children.len(), 1, "one guest is on its way");
        children[0]
    }

    /// The guest runs on `host` and nowhere else, intact, and nothing is left behind.
    #[track_caller]
    pub(super) fn runs_only_on(&self, host: &Host) {
        one_intact_copy(&self.pair.hosts(), GUEST, host);
    }

    /// Nothing stands in the way of another migration to host b: it succeeds. The destination's node is started anew, since
    /// its environment holds the failpoint.
    #[track_caller]
    pub(super) fn another_migration_succeeds(mut self) {
        self.pair.b.kill_node();
        self.pair.b.start_node(&NodePlan::default());
        Migration::run(&self.pair.a, GUEST, &self.pair.b).ok();
        self.runs_only_on(&self.pair.b);
    }
}
