//! A thread that opens files which only a guest's description or its state names.
//!
//! The files that an incoming guest boots from after a reset come with its state, long after its
//! process was confined. Whether the guest has a merge domain comes with its description. So one
//! thread starts before confinement and keeps the right to open any file. It joins the domain,
//! opens only those files, hands them over if their content is what the guest was started with, and
//! ends.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use vmm_core::boot::WantedFile;
use vmm_core::memory::MergeDomain;

use super::merging::Merging;

/// The handle of the thread; the thread ends when it has opened files, or when this is dropped.
#[derive(Debug)]
pub(crate) struct Opener(Mutex<Option<Sender<Wanted>>>);

/// A request to the thread.
#[derive(Debug)]
enum Wanted {
    File(WantedFile),
    Domain { domain: MergeDomain, path: PathBuf, joined: SyncSender<Result<Merging>> },
}

impl Wanted {
    fn serve(self) {
        match self {
            Self::File(file) => file.open(),
            // The guest, and the receiver with it, may be gone.
            Self::Domain { domain, path, joined } => {
                let _ = joined.send(Merging::join(Some(&domain), &path));
            }
        }
    }
}

impl Opener {
    /// Starts the thread, in a process that is not confined yet.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(super) fn start() -> Result<Self> {
        let (ask, asked) = channel::<Wanted>();
        let open = move || asked.into_iter().for_each(Wanted::serve);
        let thread = std::thread::Builder::new().name("opener".to_owned()).spawn(open);
        thread.context("cannot start a thread")?;
        Ok(Self(Mutex::new(Some(ask))))
    }

    /// Opens these files, once. Only a guest that boots again waits for them.
    pub(super) fn open(&self, files: Vec<WantedFile>) {
        let Some(ask) = self.ask().take() else { return };
        for file in files {
            // The thread lives as long as it has a sender.
            let _ = ask.send(Wanted::File(file));
        }
    }

    /// Joins `domain`, whose lock is at `path`.
    ///
    /// # Errors
    /// As for [`Merging::join`], or if the thread has ended.
    pub(super) fn join(&self, domain: &MergeDomain, path: &Path) -> Result<Merging> {
        let (joined, answer) = sync_channel(1);
        let wanted = Wanted::Domain { domain: domain.clone(), path: path.to_owned(), joined };
        let asked = self.ask().as_ref().map(|ask| ask.send(wanted).is_ok());
        asked.context("the thread that opens files has ended")?;
        answer.recv().context("the thread that opens files has ended")?
    }

    fn ask(&self) -> MutexGuard<'_, Option<Sender<Wanted>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
