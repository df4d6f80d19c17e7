//! Disks of a virtual machine: evidence and sizes.

use std::path::Path;
use std::sync::{Arc, PoisonError};

use super::{RunState, Vm};
use crate::error::{Error, Result};
use crate::shape::VmShape;
use crate::virtio::block::BlockConfig;
use crate::virtio::{DeviceConfig, DeviceError};

impl Vm {
    /// Replaces the evidence from which a destination recognizes the disks, see
    /// [`VmShape::take_evidence`].
    pub fn take_evidence(&self, known: &[BlockConfig]) {
        self.change_shape(|shape| shape.take_evidence(known));
    }

    /// Durably grows the disk at `path`, which the guest must be able to write, to `bytes`, or to
    /// the size that the file or device has by now; returns the size. The guest is told; what it
    /// does with the space is up to it.
    ///
    /// # Errors
    /// [`DeviceError::NoDisk`]; [`DeviceError::Resize`]; [`Error::WrongState`] if the guest has
    /// ended.
    pub fn grow_disk(&self, path: &Path, bytes: Option<u64>) -> Result<u64> {
        let _control = self.control();
        if self.run_state() == RunState::Stopped {
            let (action, state) = ("resize a disk", RunState::Stopped);
            return Err(Error::WrongState { action, state });
        }
        let is_it = |device: &DeviceConfig| match device {
            DeviceConfig::Block(disk) => disk.path() == path,
            _ => false,
        };
        let index = self.shape().devices.iter().position(is_it).ok_or(DeviceError::NoDisk)?;
        let bytes = self.machine.bus.grow_disk(index, bytes)?;
        self.change_shape(|shape| {
            if let Some(DeviceConfig::Block(disk)) = shape.devices.get_mut(index) {
                *disk = disk.clone().with_bytes(bytes);
            }
        });
        Ok(bytes)
    }

    pub(super) fn change_shape(&self, change: impl FnOnce(&mut VmShape)) {
        let mut shape = self.shape.lock().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut shape));
    }
}
