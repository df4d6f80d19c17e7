//! Why a guest's process ends, and how that is recorded.

use std::path::PathBuf;

use uuid::Uuid;
use vmm_core::StopReason;

use crate::ended::{Ended, How, SAVED_TO};
use crate::state_dir::GuestIdentity;

/// Why a guest process ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// A user asked for it, over the API, with a signal or a key.
    Asked,
    /// The guest ended on its own.
    Guest(StopReason),
    /// The guest runs on another host.
    Moved {
        /// The other host.
        destination: String,
    },
    /// The guest was saved to a file.
    Saved {
        /// Path of the file.
        file: PathBuf,
    },
    /// The guest was on its way here, and did not arrive.
    NotArrived {
        /// Why not.
        cause: String,
    },
    /// The guest ran here, and its source ended before all of its memory was here.
    Stranded {
        /// What happened.
        cause: String,
    },
    /// The copy in this process will never run.
    Discarded {
        /// Why it was given up.
        cause: String,
    },
}

impl Ending {
    /// Returns the record of this ending, for the guest `uuid` in the process of this identity,
    /// which ends at `ended_unix_ms`.
    pub(crate) fn record(&self, process: &GuestIdentity, uuid: Uuid, ended_unix_ms: u64) -> Ended {
        let (how, reason) = self.described();
        let (name, began_unix_ms) = (process.name.clone(), process.started_unix_ms);
        Ended { name, uuid, began_unix_ms, ended_unix_ms, how, reason, console_bytes: 0 }
    }

    /// Returns the kind of this ending, and the end of the sentence "web-1 ...".
    pub(super) fn described(&self) -> (How, String) {
        match self {
            Self::Asked => (How::Destroyed, "was ended on request".to_owned()),
            Self::Guest(StopReason::PowerOff) => (How::PoweredOff, "powered off".to_owned()),
            Self::Guest(StopReason::Reset) => (How::Reset, "reset itself".to_owned()),
            Self::Guest(StopReason::Asked) => (How::Destroyed, "was ended on request".to_owned()),
            Self::Guest(reason) => (How::Crashed, format!("crashed ({reason})")),
            Self::Moved { destination } => (How::Moved, format!("moved to {destination}")),
            Self::Saved { file } => (How::Saved, format!("{SAVED_TO}{}", file.display())),
            Self::NotArrived { cause } => {
                (How::Discarded, format!("was given up (it did not arrive here: {cause})"))
            }
            Self::Stranded { cause } => (How::Crashed, format!("lost its memory ({cause})")),
            Self::Discarded { cause } => (How::Discarded, format!("was given up ({cause})")),
        }
    }
}
