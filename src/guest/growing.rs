//! Grows a disk of a guest.

use std::io;

use vmm_core::virtio::block::Access;
use vmm_core::{DeviceError, DiskContent};

use super::machine::SharedMachine;
use crate::api::types::DiskSizeRequest;
use crate::api::{ApiError, Reason};
use crate::names::GuestName;

/// Makes durable what the guest has written to the disk, if it may write it.
///
/// # Errors
/// If that fails.
pub(super) fn flush(machine: &SharedMachine, request: &DiskSizeRequest) -> Result<(), ApiError> {
    let is_it =
        |disk: &DiskContent| disk.path() == request.path && disk.access() == Access::ReadWrite;
    let mut disks = machine.disks().filter(|(_, disk)| is_it(disk));
    disks.try_for_each(|(_, disk)| disk.sync()).map_err(ApiError::failed)
}

/// Grows a disk, or tells the guest that its block device has grown.
///
/// # Errors
/// If the guest has no such disk, or the disk cannot have that size.
pub(super) fn grow(
    machine: &SharedMachine,
    name: &GuestName,
    request: &DiskSizeRequest,
) -> Result<(), ApiError> {
    let grown = machine.vm().grow_disk(&request.path, request.bytes);
    let bytes = grown.map_err(|error| refusal(error, name, request))?;
    tracing::info!(disk = %request.path.display(), bytes, "the guest's disk has a new size");
    Ok(())
}

/// Returns the error of a request for a disk that the guest does not have.
pub(super) fn no_disk(name: &GuestName, request: &DiskSizeRequest) -> ApiError {
    let path = request.path.display();
    let text = format!("{name} has no disk {path}: `lighter show {name}` lists its disks");
    ApiError::new(Reason::NotFound, text)
}

fn refusal(error: vmm_core::Error, name: &GuestName, request: &DiskSizeRequest) -> ApiError {
    match &error {
        vmm_core::Error::Device(DeviceError::NoDisk) => no_disk(name, request),
        vmm_core::Error::Device(DeviceError::Resize { cause, .. })
            if cause.kind() == io::ErrorKind::InvalidInput =>
        {
            ApiError::new(Reason::BadRequest, error.to_string())
        }
        vmm_core::Error::WrongState { .. } => ApiError::new(Reason::WrongState, error.to_string()),
        _ => ApiError::failed(error),
    }
}
