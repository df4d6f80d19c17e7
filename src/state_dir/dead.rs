//! What is kept of a guest whose process was killed: a record of that, and its logs.

use anyhow::Result;
use migrate::record::{DestinationState, Side, SourceState};

use super::{GUEST_FILE_BYTES_MAX, GuestDir, GuestIdentity, HERE, HERE_PREPARED};
use crate::clock;
use crate::ended::{Ended, How, KEPT_LOGS};

/// How a guest ended that ran when its host lost power, or was reset.
pub(crate) const LOST_WITH_HOST: &str = "was lost when the host went down";

impl GuestDir {
    /// Records how the guest ended whose process is gone, unless that process has, and keeps its
    /// logs beside the record. Does nothing if the process never had the guest: it failed to start
    /// it, or the guest was still arriving, and is where it was. Returns the record if it is new.
    pub(super) fn keep_evidence(&self) -> Option<(GuestIdentity, Ended)> {
        let process = self.read_identity().ok()?;
        let boot = self.boot_with_guest(&process)?;
        let ended = self.state.ended();
        let mut lost = None;
        if !self.has_recorded_its_end(&process) {
            let (how, reason) = self.how_it_ended(&process, &boot);
            match self.record_end(&process, how, &reason) {
                Ok(ended) => lost = (how == How::Died).then_some((process, ended)),
                Err(error) => {
                    tracing::warn!(guest = %self.name, "cannot record that its process has died: {error:#}");
                }
            }
        }
        for log in KEPT_LOGS {
            if let Err(error) = ended.keep_log(&self.name, log, &self.path.join(log)) {
                tracing::warn!(guest = %self.name, "its log is lost: {error:#}");
            }
        }
        lost
    }

    /// Whether it is recorded how the guest of `process` ended. The record may be that of another
    /// life, if the process was killed as the guest arrived; a damaged one may say that the guest
    /// was saved, or has moved.
    fn has_recorded_its_end(&self, process: &GuestIdentity) -> bool {
        match self.state.ended().expect(&self.name) {
            Ok(None) => false,
            Ok(Some(ended)) if ended.began_unix_ms == 0 => ended.uuid == process.uuid,
            Ok(Some(ended)) => ended.is_of(process.uuid, process.started_unix_ms),
            Err(_) => true,
        }
    }

    /// Returns how the guest of a process that is gone ended, and the end of the sentence "web-1
    /// ...". `boot` is the boot of the host in which it had the guest.
    fn how_it_ended(&self, process: &GuestIdentity, boot: &str) -> (How, String) {
        if let Some(destination) = self.moved_to(process) {
            return (How::Moved, format!("moved to {destination}"));
        }
        let reason = match clock::boot_id() {
            Ok(now) if now != boot.trim() => LOST_WITH_HOST,
            _ => "died (its process was killed, or crashed)",
        };
        (How::Died, reason.to_owned())
    }

    /// Returns in which boot of the host the process had its guest; none if it never had it. The
    /// host may have lost power after a guest arrived, and before that was marked.
    fn boot_with_guest(&self, process: &GuestIdentity) -> Option<String> {
        let read = |file| regular_file::read_text(&self.path.join(file), GUEST_FILE_BYTES_MAX).ok();
        let has_arrived = || {
            let side = self.last_migration(process);
            matches!(side, Some(Side::Destination { state: DestinationState::Running, .. }))
        };
        read(HERE).or_else(|| if has_arrived() { read(HERE_PREPARED) } else { None })
    }

    /// Returns where the guest has moved to, if its process knew that.
    fn moved_to(&self, process: &GuestIdentity) -> Option<String> {
        match self.last_migration(process)? {
            Side::Source { state: SourceState::Done, destination, .. } => Some(destination),
            _ => None,
        }
    }

    /// Returns what is recorded of the guest's last migration, if that was of this process.
    fn last_migration(&self, process: &GuestIdentity) -> Option<Side> {
        let records = self.state.records().ok()?;
        let last = records.of(self.name.as_str(), Some(process.uuid)).ok()?.into_iter().next()?;
        let is_its = last.guest_uuid == process.uuid
            && last.pid == process.pid
            && last.started_unix_ms >= process.started_unix_ms;
        is_its.then_some(last.side)
    }

    /// Records how the guest of `process` ended, which does not do so itself; `reason` completes
    /// the sentence "web-1 ...". Returns the record.
    ///
    /// # Errors
    /// If the record cannot be written.
    pub(crate) fn record_end(
        &self,
        process: &GuestIdentity,
        how: How,
        reason: &str,
    ) -> Result<Ended> {
        let ended = Ended {
            // The file in the folder may name another guest: the process could write it.
            name: self.name.clone(),
            uuid: process.uuid,
            began_unix_ms: process.started_unix_ms,
            ended_unix_ms: self.state.timestamp_after_records(&self.name),
            how,
            reason: reason.to_owned(),
            console_bytes: 0,
        };
        self.state.ended().create_place(&self.name)?;
        self.state.ended().write(&ended)?;
        Ok(ended)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use migrate::record::Record;
    use uuid::Uuid;

    use crate::clock::unix_ms;
    use crate::names::GuestName;
    use crate::node::liveness::tests::{destination_record, source_record};
    use crate::state_dir::StateDir;

    use super::*;

    /// Leaves what a process leaves that is killed in this boot, with its guest.
    fn killed(state: &StateDir) -> GuestIdentity {
        let identity = arriving(state);
        let guest = state.guest(&identity.name);
        guest.prepare_mark().unwrap();
        guest.mark_here().unwrap();
        // A guest whose memory follows it is here twice: when it runs, and when all of it is there.
        guest.mark_here().unwrap();
        identity
    }

    /// Leaves what a process leaves that is killed before it has its guest.
    fn arriving(state: &StateDir) -> GuestIdentity {
        let name: GuestName = "web".parse().unwrap();
        let uuid = Uuid::from_u128(5);
        let identity =
            GuestIdentity { name: name.clone(), uuid, pid: 7, started_unix_ms: unix_ms() };
        let dir = state.guest(&name);
        fs::create_dir_all(dir.path()).unwrap();
        fs::write(dir.path().join("lock"), "").unwrap();
        dir.write_identity(&identity).unwrap();
        fs::write(dir.console_log(), "panic").unwrap();
        identity
    }

    /// The kept log of the guest of `identity`.
    fn log(state: &StateDir, identity: &GuestIdentity) -> Option<String> {
        Some(fs::read_to_string(state.ended().log_of(&identity.name)?).unwrap())
    }

    #[test]
    fn a_guest_whose_process_was_killed_is_remembered_with_its_logs() {
        let (_folder, state) = StateDir::temporary();
        let identity = killed(&state);
        assert!(state.live_guests().unwrap().is_empty());
        let ended = state.ended().read(&identity.name).unwrap();
        let is_its = ended.is_of(identity.uuid, identity.started_unix_ms);
        assert!(is_its && ended.how == How::Died, "{ended:?}");
        assert!(ended.reason.contains("was killed"), "{ended:?}");
        assert_eq!(log(&state, &identity).as_deref(), Some("panic"));

        state.ended().forget(&identity.name);
        assert_eq!(state.ended().last_failure(&identity.name), Some(ended), "while it runs again");
        killed(&state);
        fs::write(state.guest(&identity.name).path().join(HERE), "another boot").unwrap();
        fs::write(state.guest(&identity.name).console_log(), "").unwrap();
        let lost = state.settle_guests().unwrap().lost;
        let ended = state.ended().read(&identity.name).unwrap();
        assert_eq!(ended.reason, LOST_WITH_HOST);
        assert_eq!(lost.into_iter().map(|(_, ended)| ended).collect::<Vec<_>>(), [ended]);
        assert_eq!(state.settle_guests().unwrap().lost, []);
        assert_eq!(
            log(&state, &identity),
            None,
            "that of an earlier life is not taken for its own"
        );
    }

    #[test]
    fn a_process_that_did_not_have_the_guest_leaves_no_record() {
        let (_folder, state) = StateDir::temporary();
        let identity = arriving(&state);
        assert!(state.live_guests().unwrap().is_empty());
        assert_eq!(state.ended().read(&identity.name), None);
        assert!(!state.guest(&identity.name).path().exists());
    }

    #[test]
    fn a_guest_that_had_moved_when_its_process_was_killed_is_not_lost() {
        let (_folder, state) = StateDir::temporary();
        let identity = killed(&state);
        let record = Record {
            guest: identity.name.to_string(),
            guest_uuid: identity.uuid,
            started_unix_ms: identity.started_unix_ms,
            ..source_record(SourceState::Done, identity.pid)
        };
        state.records().unwrap().create(&record).unwrap();
        assert_eq!(state.settle_guests().unwrap().lost, [], "it is not started again");
        let ended = state.ended().read(&identity.name).unwrap();
        assert_eq!((ended.how, &*ended.reason), (How::Moved, "moved to host-b:4950"));
    }

    #[test]
    fn a_guest_that_arrived_right_before_the_power_was_cut_is_lost_with_its_host() {
        for (state_there, is_lost) in
            [(DestinationState::Running, true), (DestinationState::Discarded, false)]
        {
            let (_folder, state) = StateDir::temporary();
            let identity = arriving(&state);
            let guest = state.guest(&identity.name);
            let started_unix_ms = identity.started_unix_ms - 1;
            let before = GuestIdentity { started_unix_ms, ..identity.clone() };
            guest.record_end(&before, How::Moved, "moved to b").unwrap();
            guest.prepare_mark().unwrap();
            fs::write(guest.path().join(HERE_PREPARED), "another boot").unwrap();
            let record = Record {
                guest: identity.name.to_string(),
                guest_uuid: identity.uuid,
                started_unix_ms: identity.started_unix_ms,
                ..destination_record(state_there, identity.pid)
            };
            state.records().unwrap().create(&record).unwrap();
            state.settle_guests().unwrap();
            let reason = state.ended().read(&identity.name).map(|ended| ended.reason);
            assert_eq!(
                reason.as_deref(),
                Some(if is_lost { LOST_WITH_HOST } else { "moved to b" })
            );
        }
    }

    #[test]
    fn the_logs_of_a_guest_that_was_destroyed_by_force_are_kept() {
        let (_folder, state) = StateDir::temporary();
        let identity = killed(&state);
        let guest = state.guest(&identity.name);
        guest.record_end(&identity, How::Destroyed, "was ended on request").unwrap();
        assert!(state.live_guests().unwrap().is_empty());
        let ended = state.ended().read(&identity.name).unwrap();
        assert_eq!(ended.how, How::Destroyed);
        assert_eq!(log(&state, &identity).as_deref(), Some("panic"));
    }

    #[test]
    fn what_the_process_recorded_of_its_guests_end_stays() {
        let (_folder, state) = StateDir::temporary();
        let identity = killed(&state);
        let own = Ended {
            name: identity.name.clone(),
            uuid: identity.uuid,
            began_unix_ms: identity.started_unix_ms,
            ended_unix_ms: 9,
            how: How::PoweredOff,
            reason: "powered off".to_owned(),
            console_bytes: 3,
        };
        state.ended().create_place(&identity.name).unwrap();
        state.ended().write(&own).unwrap();
        state.ended().keep_console(&identity.name, b"own").unwrap();
        assert!(state.live_guests().unwrap().is_empty());
        assert_eq!(state.ended().read(&identity.name), Some(own));
        assert_eq!(log(&state, &identity).as_deref(), Some("own"));
    }
}
