//! What is kept of a guest whose process was killed: a record of that, and its logs.

use std::fs;

use anyhow::{Context, Result};

use super::{GuestDir, GuestIdentity};
use crate::clock::unix_ms;
use crate::durable;
use crate::ended::{Ended, How, KEPT_LOGS};

impl GuestDir {
    /// Records how the guest ended whose process is gone, and keeps its logs beside the record.
    /// Does nothing if there is a record: the process has written it, or never had the guest, since
    /// a guest that runs here has its record removed.
    pub(super) fn keep_evidence(&self) {
        let Ok(process) = self.read_identity() else { return };
        if self.ended.is_recorded(&self.name) {
            return;
        }
        let reason = match boot_unix_ms() {
            Some(boot) if process.started_unix_ms < boot => "was lost when the host went down",
            _ => "died: its process was killed, or crashed",
        };
        let kept = self.keep_logs().and_then(|()| self.record_end(&process, How::Died, reason));
        if let Err(error) = kept {
            tracing::warn!(guest = %self.name, "cannot record that its process has died: {error:#}");
        }
    }

    /// Records how the guest of `process` ended, which did not do so itself; `reason` completes the
    /// sentence "web-1 ...".
    ///
    /// # Errors
    /// If the record cannot be written.
    pub(crate) fn record_end(&self, process: &GuestIdentity, how: How, reason: &str) -> Result<()> {
        self.ended.create_place(&self.name)?;
        self.ended.write(&Ended {
            // The file in the folder may name another guest: the process could write it.
            name: self.name.clone(),
            uuid: process.uuid,
            began_unix_ms: process.started_unix_ms,
            ended_unix_ms: unix_ms(),
            how,
            reason: reason.to_owned(),
        })
    }

    /// Moves the logs that say something to where the record will be.
    fn keep_logs(&self) -> Result<()> {
        self.ended.create_place(&self.name)?;
        let from = |log: &str| self.path.join(log);
        let to = |log: &str| self.ended.place(&self.name).join(log);
        let says_something = |log: &&str| {
            fs::symlink_metadata(from(log)).is_ok_and(|found| found.is_file() && found.len() > 0)
        };
        let (kept, absent): (Vec<&str>, Vec<&str>) =
            KEPT_LOGS.into_iter().partition(says_something);
        // The console's log is moved first, so this is the first attempt, and logs without a
        // successor are of an earlier guest of this name.
        if kept.first() == KEPT_LOGS.first() {
            for log in absent {
                durable::remove_if_there(&to(log))?;
            }
        }
        for log in kept {
            fs::rename(from(log), to(log))
                .with_context(|| format!("cannot keep {}", to(log).display()))?;
        }
        Ok(())
    }
}

/// Returns when the host booted, in milliseconds since 1970 (proc_stat(5)).
fn boot_unix_ms() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    Some(seconds.trim().parse::<u64>().ok()? * 1000)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use crate::names::GuestName;
    use crate::state_dir::StateDir;

    use super::*;

    /// Leaves what a process leaves that is killed.
    fn killed(state: &StateDir, started_unix_ms: u64) -> GuestIdentity {
        let name: GuestName = "web".parse().unwrap();
        let (uuid, pid) = (Uuid::from_u128(5), 7);
        let identity = GuestIdentity { name: name.clone(), uuid, pid, started_unix_ms };
        let dir = state.guest(&name);
        fs::create_dir_all(dir.path()).unwrap();
        fs::write(dir.path().join("lock"), "").unwrap();
        dir.write_identity(&identity).unwrap();
        fs::write(dir.console_log(), "panic").unwrap();
        identity
    }

    #[test]
    fn a_guest_whose_process_was_killed_is_remembered_with_its_logs() {
        let (_folder, state) = StateDir::temporary();
        state.create().unwrap();
        let identity = killed(&state, unix_ms());
        assert!(state.live_guests().unwrap().is_empty());
        let ended = state.ended().read(&identity.name).unwrap();
        let is_its = ended.is_of(identity.uuid, identity.started_unix_ms);
        assert!(is_its && ended.how == How::Died, "{ended:?}");
        assert!(ended.reason.contains("was killed"), "{ended:?}");
        let log = state.ended().log_of(&identity.name).unwrap();
        assert_eq!(fs::read_to_string(log).unwrap(), "panic");

        let earlier = state.ended().place(&identity.name).join("console.log.old");
        fs::write(&earlier, "of the first").unwrap();
        state.ended().forget(&identity.name);
        killed(&state, 1);
        assert!(state.live_guests().unwrap().is_empty());
        let ended = state.ended().read(&identity.name).unwrap();
        assert_eq!(ended.reason, "was lost when the host went down");
        assert!(!earlier.exists(), "logs of two guests are not mixed");
    }

    #[test]
    fn what_is_recorded_of_the_end_of_a_guest_stays() {
        let (_folder, state) = StateDir::temporary();
        state.create().unwrap();
        let identity = killed(&state, unix_ms());
        state.ended().create_place(&identity.name).unwrap();
        let own = Ended {
            name: identity.name.clone(),
            uuid: identity.uuid,
            began_unix_ms: identity.started_unix_ms - 1,
            ended_unix_ms: 9,
            how: How::PoweredOff,
            reason: "powered off".to_owned(),
        };
        state.ended().write(&own).unwrap();
        assert!(state.live_guests().unwrap().is_empty());
        assert_eq!(state.ended().read(&identity.name), Some(own));
        assert_eq!(state.ended().log_of(&identity.name), None);
    }
}
