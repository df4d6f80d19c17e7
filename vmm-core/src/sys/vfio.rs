//! VFIO (`linux/vfio.h`): devices of the host in the hands of this process. Their structures come
//! from vfio-bindings; the crate above it, vfio-ioctls, opens everything by its path, which a
//! confined process may not.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Error, ErrorKind};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::FileExt;

use kvm_bindings::{
    KVM_DEV_VFIO_GROUP, KVM_DEV_VFIO_GROUP_ADD, KVM_DEV_VFIO_GROUP_DEL, kvm_create_device,
    kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_VFIO, kvm_userspace_memory_region,
};
use kvm_ioctls::{DeviceFd, VmFd};
use vfio_bindings::bindings::vfio::*;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{GuestMemoryRegion, GuestRegionMmap};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::{
    ioctl, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref, ioctl_with_val,
};
use vmm_sys_util::ioctl_io_nr;

use super::{PAGE_BYTES, check, host_address};

const TYPE: u32 = VFIO_TYPE as u32;
ioctl_io_nr!(VFIO_GET_API_VERSION, TYPE, VFIO_BASE);
ioctl_io_nr!(VFIO_SET_IOMMU, TYPE, VFIO_BASE + 2);
ioctl_io_nr!(VFIO_GROUP_GET_STATUS, TYPE, VFIO_BASE + 3);
ioctl_io_nr!(VFIO_GROUP_SET_CONTAINER, TYPE, VFIO_BASE + 4);
ioctl_io_nr!(VFIO_GROUP_UNSET_CONTAINER, TYPE, VFIO_BASE + 5);
ioctl_io_nr!(VFIO_GROUP_GET_DEVICE_FD, TYPE, VFIO_BASE + 6);
ioctl_io_nr!(VFIO_DEVICE_GET_INFO, TYPE, VFIO_BASE + 7);
ioctl_io_nr!(VFIO_DEVICE_GET_REGION_INFO, TYPE, VFIO_BASE + 8);
ioctl_io_nr!(VFIO_DEVICE_SET_IRQS, TYPE, VFIO_BASE + 10);
ioctl_io_nr!(VFIO_DEVICE_RESET, TYPE, VFIO_BASE + 11);
ioctl_io_nr!(VFIO_IOMMU_MAP_DMA, TYPE, VFIO_BASE + 13);

/// Most bytes of what the kernel says about a region.
const REGION_INFO_BYTES_MAX: usize = 4096;

/// What devices are given to a guest in: an IOMMU's table of addresses.
#[derive(Debug)]
pub(crate) struct Container(File);

impl Container {
    /// Takes `file`, which is `/dev/vfio/vfio`, opened for this container alone.
    ///
    /// # Errors
    /// If it is something else.
    pub(crate) fn new(file: File) -> io::Result<Self> {
        // SAFETY: the ioctl takes no argument.
        let version = unsafe { ioctl(&file, VFIO_GET_API_VERSION()) };
        if version != VFIO_API_VERSION as i32 {
            return Err(Error::new(ErrorKind::InvalidInput, "no container of VFIO"));
        }
        Ok(Self(file))
    }

    /// Chooses the kind of IOMMU, that of x86. A group must have joined.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(crate) fn set_iommu(&self) -> io::Result<()> {
        // SAFETY: the argument is a number.
        check(unsafe { ioctl_with_val(&self.0, VFIO_SET_IOMMU(), VFIO_TYPE1v2_IOMMU.into()) })
    }

    /// Lets the container's devices reach a region of guest memory at its guest-physical address.
    /// The kernel makes all of it present, and pins it, until the container is closed.
    ///
    /// The region must not be unmapped, nor parts of it dropped or replaced, while the container is
    /// open: its devices would go on with the pages of before.
    ///
    /// # Errors
    /// `ENOMEM` beyond this process's limit of locked memory; otherwise the error from the kernel.
    pub(crate) fn map(&self, region: &GuestRegionMmap<AtomicBitmap>) -> io::Result<()> {
        let map = vfio_iommu_type1_dma_map {
            argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
            flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
            vaddr: host_address(region) as u64,
            iova: region.start_addr().0,
            size: region.len(),
        };
        // SAFETY: the kernel reads the structure, and pins pages of one whole mapping that belongs
        // to the guest alone, whose memory is only ever accessed as volatile.
        check(unsafe { ioctl_with_ref(&self.0, VFIO_IOMMU_MAP_DMA(), &map) })
    }
}

/// An IOMMU group: the devices that the host cannot tell apart.
#[derive(Debug)]
pub(crate) struct Group(File);

impl Group {
    /// Takes `file`, which is `/dev/vfio/` and the group's number.
    ///
    /// # Errors
    /// If it is something else.
    pub(crate) fn new(file: File) -> io::Result<Self> {
        let group = Self(file);
        group.is_viable().map(|_| group)
    }

    /// Returns whether all devices of the group are in the hands of VFIO, or of no driver.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(crate) fn is_viable(&self) -> io::Result<bool> {
        let argsz = size_of::<vfio_group_status>() as u32;
        let mut status = vfio_group_status { argsz, flags: 0 };
        // SAFETY: the kernel writes the structure, whose size it is told.
        check(unsafe { ioctl_with_mut_ref(&self.0, VFIO_GROUP_GET_STATUS(), &mut status) })?;
        Ok(status.flags & VFIO_GROUP_FLAGS_VIABLE != 0)
    }

    /// Puts the group into a container.
    ///
    /// # Errors
    /// `EINVAL` if it is in one already; otherwise the error from the kernel.
    pub(crate) fn join(&self, container: &Container) -> io::Result<()> {
        let descriptor = container.0.as_raw_fd();
        // SAFETY: the kernel reads the number of a descriptor.
        check(unsafe { ioctl_with_ref(&self.0, VFIO_GROUP_SET_CONTAINER(), &descriptor) })
    }

    /// Takes the group out of its container. None of its devices may be open.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(crate) fn leave(&self) -> io::Result<()> {
        // SAFETY: the ioctl takes no argument.
        check(unsafe { ioctl(&self.0, VFIO_GROUP_UNSET_CONTAINER()) })
    }

    /// Opens a device of the group, which the kernel resets if it can.
    ///
    /// # Errors
    /// `ENODEV` if it is in another group; otherwise the error from the kernel.
    pub(crate) fn open(&self, device: &CStr) -> io::Result<Device> {
        // SAFETY: the kernel reads the name up to its zero.
        let descriptor =
            unsafe { ioctl_with_ptr(&self.0, VFIO_GROUP_GET_DEVICE_FD(), device.as_ptr()) };
        check(descriptor)?;
        // SAFETY: the kernel has just created the descriptor, so nothing else owns it.
        Ok(Device(unsafe { File::from_raw_fd(descriptor) }))
    }
}

/// What KVM has to know of the groups that a guest has devices of.
#[derive(Debug)]
pub(crate) struct KvmGroups(DeviceFd);

impl KvmGroups {
    /// Tells KVM that there will be such groups.
    ///
    /// # Errors
    /// The error from KVM.
    pub(crate) fn new(vm: &VmFd) -> Result<Self, kvm_ioctls::Error> {
        let type_ = kvm_device_type_KVM_DEV_TYPE_VFIO;
        let mut device = kvm_create_device { type_, fd: 0, flags: 0 };
        vm.create_device(&mut device).map(Self)
    }

    /// Tells KVM of a group that has joined its container.
    ///
    /// # Errors
    /// The error from KVM.
    pub(crate) fn add(&self, group: &Group) -> Result<(), kvm_ioctls::Error> {
        self.set(KVM_DEV_VFIO_GROUP_ADD, group)
    }

    /// Tells KVM that the guest has no device of the group any more.
    ///
    /// # Errors
    /// The error from KVM.
    pub(crate) fn remove(&self, group: &Group) -> Result<(), kvm_ioctls::Error> {
        self.set(KVM_DEV_VFIO_GROUP_DEL, group)
    }

    fn set(&self, attr: u32, group: &Group) -> Result<(), kvm_ioctls::Error> {
        let descriptor: RawFd = group.0.as_raw_fd();
        // KVM reads the number of the descriptor from there, during the call.
        let addr = (&raw const descriptor) as u64;
        let (group, attr) = (KVM_DEV_VFIO_GROUP, attr.into());
        self.0.set_device_attr(&kvm_device_attr { group, attr, addr, flags: 0 })
    }
}

/// A part of a device's registers or memory: a BAR, or its configuration space.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Region {
    /// Bytes; 0 if the device has no such region.
    pub(crate) bytes: u64,
    /// Offset in the device's file.
    offset: u64,
    /// What of it may be mapped, in whole pages.
    pub(crate) mappable: Vec<Range<u64>>,
}

/// An open device.
#[derive(Debug)]
pub(crate) struct Device(File);

impl Device {
    /// Returns whether it is a PCI device, and whether it can be reset.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(crate) fn is_pci_and_resets(&self) -> io::Result<(bool, bool)> {
        let argsz = size_of::<vfio_device_info>() as u32;
        let mut info = vfio_device_info { argsz, ..Default::default() };
        // SAFETY: the kernel writes the structure, whose size it is told.
        check(unsafe { ioctl_with_mut_ref(&self.0, VFIO_DEVICE_GET_INFO(), &mut info) })?;
        let has = |flag: u32| info.flags & flag != 0;
        Ok((has(VFIO_DEVICE_FLAGS_PCI), has(VFIO_DEVICE_FLAGS_RESET)))
    }

    /// Returns the region of this number: 0 to 5 are BARs, 7 is the configuration space.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(crate) fn region(&self, index: u32) -> io::Result<Region> {
        let mut answer = vec![0_u8; size_of::<vfio_region_info>()];
        let mut told = self.region_info(index, &mut answer)?;
        if told.argsz as usize > answer.len() {
            answer.resize((told.argsz as usize).min(REGION_INFO_BYTES_MAX), 0);
            told = self.region_info(index, &mut answer)?;
        }
        let has = |flag: u32| told.flags & flag != 0;
        let areas = has(VFIO_REGION_INFO_FLAG_CAPS).then(|| sparse_areas(&answer, told.cap_offset));
        let areas = areas.flatten().unwrap_or_else(|| std::iter::once(0..told.size).collect());
        let mappable = if has(VFIO_REGION_INFO_FLAG_MMAP) { areas } else { Vec::new() };
        Ok(Region { bytes: told.size, offset: told.offset, mappable })
    }

    fn region_info(&self, index: u32, answer: &mut [u8]) -> io::Result<vfio_region_info> {
        const BYTES: usize = size_of::<vfio_region_info>();
        answer[..8].fill(0);
        let bytes = (answer.len() as u32).to_le_bytes();
        answer[..4].copy_from_slice(&bytes);
        answer[8..12].copy_from_slice(&index.to_le_bytes());
        let request = VFIO_DEVICE_GET_REGION_INFO();
        // SAFETY: the kernel reads the head, and writes at most as many bytes as it says; it copies
        // bytewise.
        check(unsafe { ioctl_with_ptr(&self.0, request, answer.as_mut_ptr()) })?;
        let mut head = [0; BYTES];
        head.copy_from_slice(&answer[..BYTES]);
        let word =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        Ok(vfio_region_info {
            argsz: word(0),
            flags: word(4),
            index: word(8),
            cap_offset: word(12),
            size: long(16),
            offset: long(24),
        })
    }

    /// Reads from a region; beyond its end, or if the device does not answer, all ones.
    pub(crate) fn read(&self, region: &Region, offset: u64, data: &mut [u8]) {
        let end = offset.checked_add(data.len() as u64);
        let is_inside = end.is_some_and(|end| end <= region.bytes);
        if !is_inside || self.0.read_exact_at(data, region.offset + offset).is_err() {
            data.fill(0xff);
        }
    }

    /// Writes to a region; nothing beyond its end.
    pub(crate) fn write(&self, region: &Region, offset: u64, data: &[u8]) {
        let end = offset.checked_add(data.len() as u64);
        if end.is_some_and(|end| end <= region.bytes)
            && let Err(error) = self.0.write_all_at(data, region.offset + offset)
        {
            tracing::debug!(%error, "a device of the host does not take a write");
        }
    }

    /// Maps a part of a region that may be mapped.
    ///
    /// # Errors
    /// `EINVAL` unless it consists of whole pages; otherwise the error from the kernel.
    pub(crate) fn map(&self, region: &Region, part: &Range<u64>) -> io::Result<DeviceMemory> {
        let bytes = part.end.saturating_sub(part.start) as usize;
        let is_whole = bytes > 0 && bytes.is_multiple_of(PAGE_BYTES) && part.end <= region.bytes;
        if !is_whole {
            return Err(Error::from_raw_os_error(libc::EINVAL));
        }
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let offset = (region.offset + part.start) as libc::off_t;
        let (nowhere, file) = (std::ptr::null_mut(), self.0.as_raw_fd());
        // SAFETY: the kernel chooses the address, so nothing that exists is replaced; no Rust
        // reference to this memory is ever made: only the guest accesses it.
        let address = unsafe { libc::mmap(nowhere, bytes, access, libc::MAP_SHARED, file, offset) };
        if address == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        Ok(DeviceMemory { address: address as u64, bytes, is_shown: false })
    }

    /// Has the kernel signal an event for each interrupt by MSI-X, in their order; no events turn
    /// MSI-X off. Returns how many of the interrupts the host has room for: fewer than asked for,
    /// and then none is connected.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(crate) fn signal_msix(&self, signals: &[&EventFd]) -> io::Result<usize> {
        self.signal(VFIO_PCI_MSIX_IRQ_INDEX, 0, signals)
    }

    /// Has the kernel signal `event` again for one interrupt by MSI-X, all of which it signals: it
    /// also writes the message of that vector into the device again, which may have lost it.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(crate) fn signal_vector(&self, vector: u32, event: &EventFd) -> io::Result<()> {
        self.signal(VFIO_PCI_MSIX_IRQ_INDEX, vector, &[event]).map(drop)
    }

    /// Has the kernel signal `event` when the host wants the device back.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(crate) fn signal_request(&self, event: &EventFd) -> io::Result<()> {
        self.signal(VFIO_PCI_REQ_IRQ_INDEX, 0, &[event]).map(drop)
    }

    fn signal(&self, index: u32, start: u32, signals: &[&EventFd]) -> io::Result<usize> {
        let data =
            if signals.is_empty() { VFIO_IRQ_SET_DATA_NONE } else { VFIO_IRQ_SET_DATA_EVENTFD };
        let head = size_of::<vfio_irq_set>() as u32;
        let count = signals.len() as u32;
        let argsz = head + count * size_of::<RawFd>() as u32;
        let flags = data | VFIO_IRQ_SET_ACTION_TRIGGER;
        let mut request = vec![argsz, flags, index, start, count];
        request.extend(signals.iter().map(|signal| signal.as_raw_fd() as u32));
        // SAFETY: the kernel reads as many bytes as `argsz` says, which are those of `request`: a
        // head of five words, and a descriptor's number for each signal.
        let answer = unsafe { ioctl_with_ptr(&self.0, VFIO_DEVICE_SET_IRQS(), request.as_ptr()) };
        check(answer)?;
        Ok(if answer == 0 { signals.len() } else { answer as usize })
    }

    /// Resets the device.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(crate) fn reset(&self) -> io::Result<()> {
        // SAFETY: the ioctl takes no argument.
        check(unsafe { ioctl(&self.0, VFIO_DEVICE_RESET()) })
    }
}

const _: () = assert!(size_of::<vfio_irq_set>() == 5 * size_of::<u32>());

/// Returns the areas of a region that may be mapped, if the answer about it, whose capabilities
/// start at `at`, lists them.
fn sparse_areas(answer: &[u8], at: u32) -> Option<Vec<Range<u64>>> {
    const AREAS: usize = size_of::<vfio_region_info_cap_sparse_mmap>();
    const AREA_BYTES: usize = size_of::<vfio_region_sparse_mmap_area>();
    let word = |at: usize| Some(u32::from_le_bytes(*answer.get(at..)?.first_chunk()?));
    let long = |at: usize| Some(u64::from_le_bytes(*answer.get(at..)?.first_chunk()?));
    let mut at = at as usize;
    // Each capability is behind the one before it.
    while at >= size_of::<vfio_region_info>() {
        if word(at)? & 0xffff == VFIO_REGION_INFO_CAP_SPARSE_MMAP {
            let count = (word(at + 8)? as usize).min(answer.len() / AREA_BYTES);
            let area = |index: usize| {
                let at = at + AREAS + index * AREA_BYTES;
                let start = long(at)?;
                Some(start..start.checked_add(long(at + 8)?)?)
            };
            return (0..count).map(area).collect();
        }
        let next = word(at + 4)? as usize;
        at = if next > at { next } else { 0 };
    }
    None
}

/// Memory of a device, mapped into this process for its guest.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    address: u64,
    bytes: usize,
    /// Whether KVM may have it in the guest's memory.
    is_shown: bool,
}

impl DeviceMemory {
    /// Puts it into the guest's memory at `gpa`, as KVM memory slot `slot`.
    ///
    /// # Errors
    /// `EEXIST` where something else is; otherwise the error from KVM.
    pub(crate) fn show(&mut self, vm: &VmFd, slot: u32, gpa: u64) -> Result<(), kvm_ioctls::Error> {
        self.set(vm, slot, gpa, self.bytes as u64)?;
        self.is_shown = true;
        Ok(())
    }

    /// Takes it from the guest's memory again.
    ///
    /// # Errors
    /// The error from KVM.
    pub(crate) fn hide(&mut self, vm: &VmFd, slot: u32) -> Result<(), kvm_ioctls::Error> {
        self.set(vm, slot, 0, 0)?;
        self.is_shown = false;
        Ok(())
    }

    fn set(&self, vm: &VmFd, slot: u32, gpa: u64, bytes: u64) -> Result<(), kvm_ioctls::Error> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: gpa,
            memory_size: bytes,
            userspace_addr: self.address,
        };
        // SAFETY: the range is one whole mapping of a device's memory, of which this process has no
        // reference, and which stays mapped for as long as KVM has it: see `drop`.
        unsafe { vm.set_user_memory_region(region) }
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // Another mapping at these addresses would be the guest's.
        if self.is_shown {
            return;
        }
        // SAFETY: KVM does not have the range, which is one whole mapping that this type made, and
        // nothing refers to it.
        let unmapped = unsafe { libc::munmap(self.address as *mut libc::c_void, self.bytes) };
        debug_assert_eq!(unmapped, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(capabilities: &[&[u32]]) -> Vec<u8> {
        let words = [0; 8].into_iter().chain(capabilities.iter().copied().flatten().copied());
        words.flat_map(u32::to_le_bytes).collect()
    }

    #[test]
    fn areas_are_found_behind_other_capabilities() {
        let other = [2 | 1 << 16, 48, 0, 0];
        let sparse = [1 | 1 << 16, 0, 2, 0, 0, 0, 0x1000, 0, 0x3000, 0, 0x2000, 1];
        let bytes = answer(&[&other, &sparse]);
        let areas = vec![0..0x1000, 0x3000..0x1_0000_5000];
        assert_eq!(sparse_areas(&bytes, 32), Some(areas));
        assert_eq!(sparse_areas(&answer(&[&[2, 0, 0, 0]]), 32), None);
    }

    #[test]
    fn an_answer_of_nonsense_lists_no_areas() {
        let sparse = [1, 0, u32::MAX, 0, u32::MAX, u32::MAX, 1, 0];
        for at in 0..80 {
            assert_eq!(sparse_areas(&answer(&[&sparse]), at), None, "{at}");
            assert_eq!(sparse_areas(&answer(&[&[2, 32, 0, 0]]), at), None, "a loop, {at}");
        }
    }

    #[test]
    fn other_files_are_no_vfio() {
        let file = || File::open("/dev/null").unwrap();
        assert!(Container::new(file()).is_err());
        assert!(Group::new(file()).is_err());
    }
}
