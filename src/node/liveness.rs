//! Whether the process that owns a record is still alive.
//!
//! PIDs are reused, so a PID alone proves nothing. A guest's lock does: the process that has the
//! guest's name holds it, and `guest.json` beside it has that process's PID. A record of any other
//! process is an orphan.

use std::time::Duration;

use migrate::record::{DestinationState, Record, Side};

use super::launch::LINGER;
use crate::names::GuestName;
use crate::state_dir::StateDir;

/// Whether the process that owns `record` is certainly gone. False in doubt, i.e. if a process has
/// just taken the name and not published its PID: the caller checks again a moment later.
pub(crate) fn is_dead(state: &StateDir, record: &Record) -> bool {
    let Ok(name) = record.guest.parse::<GuestName>() else { return true };
    is_gone(state, &name, record.pid)
}

/// Whether process `pid`, which had the guest's name, is certainly gone. False in doubt, as in
/// [`is_dead`].
pub(crate) fn is_gone(state: &StateDir, name: &GuestName, pid: u32) -> bool {
    let guest = state.guest(name);
    if !guest.is_live() {
        return true;
    }
    // Same name and same PID: this is the owner, or, very rarely, a later process that got both.
    // Start times would tell them apart, but clocks can be set back, and taking a live process for
    // dead does harm, while waiting for its end does not.
    guest.read_identity().is_ok_and(|owner| owner.pid != pid)
}

/// Whether the process that owns `record` no longer answers for it, although it may live: its guest
/// runs or is lost, and at `now_unix_ms` the time in which it confirms that to the source is over.
/// The record says all that the process would.
pub(crate) fn is_silent(record: &Record, now_unix_ms: u64) -> bool {
    let age = Duration::from_millis(now_unix_ms.saturating_sub(record.updated_unix_ms));
    let says_all = [DestinationState::Running, DestinationState::Lost];
    matches!(record.side, Side::Destination { state, .. } if says_all.contains(&state))
        && age > LINGER
}

#[cfg(test)]
pub(crate) mod tests {
    use migrate::record::SourceState;
    use migrate::{MigrationId, Token};
    use uuid::Uuid;

    use super::*;
    use crate::state_dir::GuestIdentity;

    /// Returns a source's record for the guest `web`, owned by `pid`.
    pub(crate) fn source_record(state: SourceState, pid: u32) -> Record {
        let side = Side::Source {
            state,
            destination: "host-b:4950".into(),
            server_name: "host-b".into(),
            node_address: ([127, 0, 0, 1], 4950).into(),
            process_address: ([127, 0, 0, 1], 4951).into(),
            token: Token([7; 32]),
        };
        record(side, pid)
    }

    /// Returns a destination's record for the guest `web`, owned by `pid`.
    pub(crate) fn destination_record(state: DestinationState, pid: u32) -> Record {
        let source_address = ([127, 0, 0, 1], 4952).into();
        let side = Side::Destination {
            state,
            source_address,
            source_name: None,
            source_node_port: None,
            port: 4951,
            token: Token([7; 32]),
        };
        record(side, pid)
    }

    fn record(side: Side, pid: u32) -> Record {
        Record {
            migration: MigrationId::random(),
            guest: "web".into(),
            guest_uuid: Uuid::from_u128(5),
            pid,
            started_unix_ms: 1000,
            updated_unix_ms: 1000,
            side,
            report: None,
        }
    }

    fn identity(pid: u32) -> GuestIdentity {
        GuestIdentity {
            name: "web".parse().unwrap(),
            uuid: Uuid::from_u128(5),
            pid,
            started_unix_ms: 900,
        }
    }

    #[test]
    fn a_record_lives_with_the_process_that_holds_the_name() {
        let (_folder, state) = StateDir::temporary();
        let record = source_record(SourceState::Undecided, 77);
        assert!(is_dead(&state, &record));

        let claim = state.guest(&"web".parse().unwrap()).claim().unwrap();
        assert!(!is_dead(&state, &record), "held by a process that has not told who it is");
        claim.dir().write_identity(&identity(77)).unwrap();
        assert!(!is_dead(&state, &record));

        drop(claim);
        assert!(is_dead(&state, &record));
    }

    #[test]
    fn the_record_decides_only_for_a_guest_that_has_run_for_a_while() {
        let running = destination_record(DestinationState::Running, 77);
        let ready = destination_record(DestinationState::Ready, 77);
        assert!(!is_silent(&running, 0), "the clock was set back");
        assert!(!is_silent(&running, 1000 + 30_000));
        assert!(is_silent(&running, 1000 + 30_001));
        assert!(!is_silent(&ready, u64::MAX));
    }

    #[test]
    fn another_process_of_the_same_name_does_not_own_the_record() {
        let (_folder, state) = StateDir::temporary();
        let record = source_record(SourceState::Committed, 77);
        let claim = state.guest(&"web".parse().unwrap()).claim().unwrap();
        claim.dir().write_identity(&identity(78)).unwrap();
        assert!(is_dead(&state, &record));
    }
}
