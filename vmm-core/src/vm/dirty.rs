//! The log of pages that change while the guest runs.

#[cfg(test)]
use std::sync::Arc;

#[cfg(test)]
use kvm_ioctls::VmFd;

use super::Vm;
#[cfg(test)]
use crate::dirty::Tracker;
use crate::error::Result;

impl Vm {
    /// Starts the dirty log. Afterwards every page counts as dirty once.
    ///
    /// # Errors
    /// [`crate::Error::DirtyTracking`] if it runs already; [`crate::DeviceError::Network`]; the
    /// error of a KVM call.
    pub fn start_dirty_log(&self) -> Result<()> {
        let mut dirty = self.dirty();
        dirty.start()?;
        let logged = self.machine.bus.log_writes(true);
        if logged.is_err() {
            let _ = self.machine.bus.log_writes(false);
            dirty.stop()?;
        }
        Ok(logged?)
    }

    /// Stops the dirty log, so that KVM can map the guest with huge pages again. Does nothing if it
    /// does not run.
    ///
    /// # Errors
    /// [`crate::DeviceError::Network`]; the error of a KVM call.
    pub fn stop_dirty_log(&self) -> Result<()> {
        let mut dirty = self.dirty();
        let stopped = self.machine.bus.log_writes(false);
        dirty.stop()?;
        Ok(stopped?)
    }

    /// Sets in `words`, one word for each chunk of guest memory, the bits of pages that have been
    /// written by the guest, by the host's kernel for a device, or through [`Vm::ram`]. Clears no
    /// bits. Pages that the guest wrote are reported again until they are re-armed.
    ///
    /// # Errors
    /// [`crate::Error::DirtyTracking`] if the log does not run; [`crate::Error::DirtyRange`] if
    /// `words` has the wrong length; the error of a KVM call.
    pub fn collect_dirty(&self, words: &mut [u64]) -> Result<()> {
        self.dirty().collect(words)
    }

    /// Has KVM log the next write to the pages whose bits are set in `words`, which start at chunk
    /// `first_chunk`. Call it before copying these pages. Each call briefly stops the guest's
    /// vCPUs, so re-arm many chunks at once.
    ///
    /// # Errors
    /// [`crate::Error::DirtyTracking`] if the log does not run; [`crate::Error::DirtyRange`] if
    /// `words` extends beyond guest memory; the error of a KVM call.
    pub fn rearm_dirty(&self, first_chunk: usize, words: &[u64]) -> Result<()> {
        self.dirty().rearm(first_chunk, words)?;
        self.throttle.note_rearmed(words);
        Ok(())
    }

    /// Replaces the tracker of dirty pages by one with another backend.
    #[cfg(test)]
    pub(crate) fn track_dirty_by(
        &self,
        backend: impl FnOnce(Arc<VmFd>) -> Box<dyn crate::dirty::DirtyBackend>,
    ) {
        let machine = &self.machine;
        let backend = backend(Arc::clone(&machine.vm));
        *self.dirty() = Tracker::by(backend, Arc::clone(&machine.ram));
    }
}
