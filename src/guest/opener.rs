//! Opens what only a guest's description, or its state, says that it needs.
//!
//! Which files a guest that has arrived boots from again comes with its state, long after its
//! process was confined; and only with its description, whether it has a merge domain. So one
//! thread is started before that and keeps the right to open any file: it joins the domain, opens
//! those files alone, hands over what it has, the files only if their content is what the guest was
//! started with, and ends.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use vmm_core::boot::WantedFile;
use vmm_core::memory::MergeDomain;

use super::merging::Merging;

/// The thread; it ends when it has opened files, or when this is dropped.
#[derive(Debug)]
pub(crate) struct Opener(Mutex<Option<Sender<Wanted>>>);

/// What the thread is asked for.
#[derive(Debug)]
enum Wanted {
    File(WantedFile),
    Domain { domain: MergeDomain, path: PathBuf, joined: SyncSender<Result<Merging>> },
}

impl Wanted {
    fn serve(self) {
        match self {
            Self::File(file) => file.open(),
            // The guest may be gone.
            Self::Domain { domain, path, joined } => {
                let _ = joined.send(Merging::join(Some(&domain), &path));
            }
        }
    }
}

impl Opener {
    /// Starts it, in a process that is not confined yet.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn start() -> Result<Self> {
        let (ask, asked) = channel::<Wanted>();
        let open = move || asked.into_iter().for_each(Wanted::serve);
        let thread = std::thread::Builder::new().name("opener".to_owned()).spawn(open);
        thread.context("cannot start a thread")?;
        Ok(Self(Mutex::new(Some(ask))))
    }

    /// Has these opened, once. Only a guest that boots again waits for it.
    pub(super) fn open(&self, files: Vec<WantedFile>) {
        let Some(ask) = self.ask().take() else { return };
        for file in files {
            // The thread is there as long as it can be asked.
            let _ = ask.send(Wanted::File(file));
        }
    }

    /// Has `domain` joined, whose lock is at `path`.
    ///
    /// # Errors
    /// As [`Merging::join`], or the thread has ended.
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
