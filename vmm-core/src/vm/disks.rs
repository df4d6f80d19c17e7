//! The disks of a virtual machine, and what it knows of them.

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

    /// Durably grows the disk at `path`, which the guest must write, to `bytes`; a block device
    /// without this argument to the size that the device has by now. The guest is told; what it
    /// does with the space is up to it. Returns the size in bytes.
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
        let is_it = |device: &DeviceConfig| matches!(device, DeviceConfig::Block(disk) if disk.path() == path);
        let index = self.shape().devices.iter().position(is_it).ok_or(DeviceError::NoDisk)?;
        let bytes = self.machine.bus.grow_disk(index, bytes)?;
        self.change_shape(|shape| {
            if let Some(DeviceConfig::Block(disk)) = shape.devices.get_mut(index) {
                *disk = disk.clone().with_bytes(bytes);
            }
        });
        Ok(bytes)
    }

    fn change_shape(&self, change: impl FnOnce(&mut VmShape)) {
        let mut shape = self.shape.lock().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut shape));
    }
}
