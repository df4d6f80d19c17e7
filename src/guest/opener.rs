//! Opens what a guest that has arrived boots from again.
//!
//! Which files these are comes with the guest's state, long after its process was confined. So one thread is started before that and keeps
//! the right to read any file: it opens those files alone, hands them over if their content is what the guest was started with, and ends.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use vmm_core::boot::WantedFile;

/// The thread; it ends when it has been used, or when this is dropped.
#[derive(Debug)]
pub(crate) struct Opener(Mutex<Option<Sender<WantedFile>>>);

impl Opener {
    /// Starts it, in a process that is not confined yet.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn start() -> Result<Self> {
        let (ask, asked) = channel();
        let open = move || asked.into_iter().for_each(WantedFile::open);
        let thread = std::thread::Builder::new().name("opener".to_owned()).spawn(open);
        thread.context("cannot start a thread")?;
        Ok(Self(Mutex::new(Some(ask))))
    }

    /// Has these opened, once. Only a guest that boots again waits for it.
    pub(super) fn open(&self, files: Vec<WantedFile>) {
        let Some(ask) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return;
        };
        for file in files {
            // The thread is there as long as it can be asked.
            let _ = ask.send(file);
        }
    }
}
