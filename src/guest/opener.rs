//! Opens what a guest that has arrived boots from again.
//!
//! Which files these are comes with the guest's state, long after its process was confined. So one thread is started before that and keeps
//! the right to read any file: it opens those files alone, hands them over if their content is what the guest was started with, and ends.

use std::sync::mpsc::{Sender, channel};

use anyhow::{Context, Result};
use vmm_core::boot::WantedFile;

/// The thread; it ends when this is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Opener(Sender<WantedFile>);

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
        Ok(Self(ask))
    }

    /// Has these opened. Nobody waits for it but a guest that boots again.
    pub(super) fn open(self, files: Vec<WantedFile>) {
        for file in files {
            // It is there as long as this is.
            let _ = self.0.send(file);
        }
    }
}
