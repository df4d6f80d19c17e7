//! The failpoints that hold or cut each phase: at the message that would end it, or the work that
//! fills it.

/// The side of a migration that reaches a failpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The process that the guest leaves.
    Source,
    /// The process that receives the guest.
    Destination,
}

impl Side {
    /// The side of a failpoint: its first word.
    pub(super) fn of(point: &str) -> Self {
        match point.split('.').next() {
            Some("source") => Self::Source,
            Some("destination") => Self::Destination,
            _ => panic!("{point} is on neither side"),
        }
    }
}

/// The side that may run the guest once the connection is lost for good in a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// The source, because it has not committed.
    Source,
    /// The destination, because the source's commit is on disk.
    Destination,
}

/// A phase of a migration, and its failpoint.
#[derive(Debug)]
pub(super) struct Phase {
    /// Name of the phase in the source's progress and reports.
    pub(super) name: &'static str,
    /// The side that is held.
    pub(super) side: Side,
    /// The failpoint that holds it.
    pub(super) point: &'static str,
    /// The failpoint at which the connection is cut.
    pub(super) cut: &'static str,
    /// The side that may run the guest.
    pub(super) owner: Owner,
}

impl Phase {
    /// Whether the source goes on with rounds once it reaches the destination again: it does until
    /// the last pages are on their way.
    pub(super) fn is_repaired(&self) -> bool {
        ["source.act.sendround", "source.act.savestate"].contains(&self.cut)
    }
}

pub(super) fn connect() -> Phase {
    let point = "source.send.hello";
    Phase { name: "connect", side: Side::Source, point, cut: point, owner: Owner::Source }
}

pub(super) fn prepare() -> Phase {
    let point = "destination.send.prepared";
    Phase { name: "prepare", side: Side::Destination, point, cut: point, owner: Owner::Source }
}

pub(super) fn precopy() -> Phase {
    let (point, cut) = ("source.data.pages", "source.act.sendround");
    Phase { name: "precopy", side: Side::Source, point, cut, owner: Owner::Source }
}

pub(super) fn switchover() -> Phase {
    let point = "source.act.savestate";
    Phase { name: "switchover", side: Side::Source, point, cut: point, owner: Owner::Source }
}

/// The flush of the paused guest's disks, which runs on a thread of its own.
pub(super) fn flush() -> Phase {
    let point = "source.guest.flush";
    Phase { name: "switchover", side: Side::Source, point, cut: point, owner: Owner::Source }
}

/// The wait of a source for a destination of a release without early commits.
pub(super) fn ready() -> Phase {
    let point = "destination.send.ready";
    Phase { name: "ready", side: Side::Destination, point, cut: point, owner: Owner::Source }
}

/// The last step before an early commit: the destination needs nothing more to be ready.
pub(super) fn remainder() -> Phase {
    let point = "source.act.sendremainder";
    Phase { name: "switchover", side: Side::Source, point, cut: point, owner: Owner::Source }
}

/// The load of the state. The source, which does not wait for it, has committed.
pub(super) fn loading() -> Phase {
    let point = "destination.act.loadstate";
    Phase { name: "commit", side: Side::Destination, point, cut: point, owner: Owner::Destination }
}

pub(super) fn commit() -> Phase {
    // A cut there might keep the last pages from the destination.
    let (point, cut) = ("source.send.commit", "destination.act.recordtaking");
    Phase { name: "commit", side: Side::Source, point, cut, owner: Owner::Destination }
}

pub(super) fn taking() -> Phase {
    let point = "destination.act.adoptguest";
    Phase { name: "commit", side: Side::Destination, point, cut: point, owner: Owner::Destination }
}

pub(super) fn resume() -> Phase {
    let point = "destination.send.running";
    Phase { name: "resume", side: Side::Destination, point, cut: point, owner: Owner::Destination }
}
