//! Saves of the guest, and what becomes of the guest after one.

use std::fs::File;
use std::sync::{Arc, Weak};

use vmm_core::RunState;

use super::ProcessControl;
use crate::api::saving::{SaveId, SaveRequest, Saved};
use crate::api::types::{GuestState, LandlockState, StateAnswer};
use crate::api::{ApiError, Reason};
use crate::guest::ending::Ending;
use crate::guest::host_devices;
use crate::guest::process::{Occupation, Saving};
use crate::guest::saved::{self, PausedForSave};

impl ProcessControl {
    /// Writes memory and state to a file: to `handed`, or else to the one that `request` names.
    /// `asker` is gone when no client waits for the answer.
    ///
    /// # Errors
    /// As for [`Self::pause`]; if the guest should keep running and writes disks; or if the file
    /// cannot be written.
    pub(in crate::guest) fn save(
        &self,
        request: &SaveRequest,
        handed: Option<File>,
        asker: &Weak<()>,
    ) -> Result<Saved, ApiError> {
        if !request.file.is_absolute() {
            return Err(ApiError::new(
                Reason::BadRequest,
                format!("{} must be an absolute path", request.file.display()),
            ));
        }
        let folder = self.process().state().guest(self.process().name());
        if request.file.starts_with(folder.path()) {
            return Err(ApiError::new(
                Reason::BadRequest,
                format!("{} goes when the guest ends: save it elsewhere", folder.path().display()),
            ));
        }
        let landlock = self.process().confinement().landlock;
        if handed.is_none() && matches!(landlock, LandlockState::Full | LandlockState::Partial) {
            return Err(ApiError::new(
                Reason::BadRequest,
                "the guest's process may not open files: send an open one along (SCM_RIGHTS), as `lighter save` does",
            ));
        }
        let machine = self.machine()?;
        let mut occupation = self.process().occupation();
        self.refuse_when_busy(&occupation)?;
        host_devices::expect_none(machine, self.process().name(), "saved")?;
        if request.keep_running {
            saved::expect_no_written_disks(machine, self.process().name(), request.format)?;
        }
        saved::expect_disks(machine, request)?;
        let saving = Saving::begin(self.process(), &mut occupation);
        self.process().surveys().call_off(machine);
        drop(occupation);
        let saved = saved::save(machine, self.process().events(), request, handed);
        let (file_bytes, guest) = saved.map_err(ApiError::failed)?;
        let (id, since) = (guest.id().id, guest.since());
        if !request.keep_running && asker.strong_count() > 0 {
            let guest = Arc::new(guest);
            PausedForSave::limit(&guest, &self.0);
            saving.leave_standing(guest);
        }
        Ok(Saved {
            id,
            file_bytes,
            paused_ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// Keeps the guest paused for another minute.
    ///
    /// # Errors
    /// If the guest is not paused since this save; the same holds for `release_save` and
    /// `finish_save`.
    pub(in crate::guest) fn hold_save(&self, save: SaveId) -> Result<StateAnswer, ApiError> {
        self.paused_since(Some(save))?.hold();
        Ok(self.state())
    }

    /// Lets the guest continue as it was before the save.
    pub(in crate::guest) fn release_save(&self, save: SaveId) -> Result<StateAnswer, ApiError> {
        let guest = self.paused_since(Some(save))?;
        self.process().release_after_save(&guest);
        // The guest continues when the last reference to it is dropped.
        drop(guest);
        Ok(self.state())
    }

    /// Ends the guest, after the client has given its file the final name. Refuses if the guest has
    /// run since: then the file does not match its disks.
    pub(in crate::guest) fn finish_save(&self, save: SaveId) -> Result<StateAnswer, ApiError> {
        // While this is locked, no request resumes the guest.
        let occupation = self.process().occupation();
        let guest = self.saved(&occupation, Some(save))?;
        if !self.is_as_saved(&guest) {
            return Err(self.not_paused());
        }
        let ending = Ending::Saved { file: guest.file().to_owned() };
        // Only this record says where the guest is: without it, a start would boot the guest.
        if let Err(error) = self.process().remember(&ending) {
            // It may be written in part, and the guest continues.
            self.process().state().ended().forget(self.process().name());
            return Err(ApiError::failed(error));
        }
        self.process().end(ending);
        Ok(StateAnswer { state: GuestState::Ended })
    }

    /// Returns the guest if it is paused since it was saved; if `save` is given, since that save.
    pub(super) fn paused_since(
        &self,
        save: Option<SaveId>,
    ) -> Result<Arc<PausedForSave>, ApiError> {
        self.saved(&self.process().occupation(), save)
    }

    /// As [`Self::paused_since`], for a caller that has locked the occupation.
    fn saved(
        &self,
        occupation: &Occupation,
        save: Option<SaveId>,
    ) -> Result<Arc<PausedForSave>, ApiError> {
        match occupation {
            Occupation::Saved(guest) if save.is_none_or(|save| save == guest.id()) => {
                Ok(Arc::clone(guest))
            }
            _ => Err(self.not_paused()),
        }
    }

    /// Whether the machine of `guest` has not run since its save.
    fn is_as_saved(&self, guest: &PausedForSave) -> bool {
        let process = self.process();
        match guest.run_state() {
            RunState::Paused => true,
            RunState::Running => false,
            // A process that is told to end stops a paused guest; one that ended on its own ran.
            RunState::Stopped => {
                process.is_ending() && !matches!(process.ending(), Ending::Guest(_))
            }
        }
    }

    fn not_paused(&self) -> ApiError {
        let name = self.process().name();
        let text = format!("{name} is not paused since this save any more");
        ApiError::new(Reason::WrongState, text)
    }
}
