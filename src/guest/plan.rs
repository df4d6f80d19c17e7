//! Translates the specification of a guest for this host.

use std::fs::File;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use uuid::Uuid;
use vmm_core::boot::{Acpi, DEFAULT_CMDLINE, DEFAULT_CMDLINE_WITHOUT_ACPI, KernelSource};
use vmm_core::virtio::balloon::FreePages;
use vmm_core::virtio::block::{Access, BlockConfig, is_qcow2};
use vmm_core::virtio::net::{MacAddress, NetConfig};
use vmm_core::workload::{Order, Pattern, WorkloadParams};
use vmm_core::{BootSource, CpuModel, DeviceConfig, Nested, OnReboot, VmShape};

use super::seed::seed;
use crate::cli::cpu::CpuArg;
use crate::cli::disk::{DiskAccess, DiskArg, QUEUES_MAX};
use crate::cli::net::NetArg;
use crate::cli::spec::{BalloonArg, GuestSpec, OnRebootArg, PatternArg, SwitchArg, WriteOrderArg};
use crate::names::GuestName;
use crate::output;
use crate::units::{MIB, PAGE_BYTES, Size};

/// What boots a guest's disk when no firmware is named: what `build-firmware` makes.
const FIRMWARE: &str = "/usr/local/share/lighter/CLOUDHV.fd";

/// A guest that is about to start.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Name of the guest, which is already settled.
    pub(crate) name: GuestName,
    /// Configuration of its machine.
    pub(crate) shape: VmShape,
    /// What it boots.
    pub(crate) boot: BootSource,
    /// What happens when it resets itself.
    pub(crate) on_reboot: OnReboot,
}

impl Plan {
    /// Translates `spec` for this host, under a name that is already settled.
    ///
    /// # Errors
    /// If this host cannot run such a guest, or a file is missing.
    pub(crate) fn new(spec: &GuestSpec, name: GuestName) -> Result<Self> {
        let cannot = || format!("cannot run {name}");
        spec.check().and_then(|()| spec.check_boots()).with_context(cannot)?;
        let mut shape = shape(spec).with_context(cannot)?;
        shape.devices = devices(spec).with_context(cannot)?;
        shape.devices.extend(seed(spec, &name).with_context(cannot)?.map(DeviceConfig::Seed));
        let boot = boot(spec, Path::new(FIRMWARE)).with_context(cannot)?;
        let on_reboot = match (spec.on_reboot, &boot) {
            (Some(OnRebootArg::Restart), _) => OnReboot::Restart,
            (Some(OnRebootArg::Stop), _) => OnReboot::Stop,
            // The workload never resets itself: a reset means that something is wrong, and should
            // be seen.
            (None, BootSource::Workload(_)) => OnReboot::Stop,
            (None, BootSource::Kernel(_) | BootSource::Firmware(_)) => OnReboot::Restart,
        };
        Ok(Self { name, shape, boot, on_reboot })
    }
}

/// Checks what can be checked of `spec` without opening its disks, which may still carry the note
/// of a migration that the user is about to withdraw.
///
/// # Errors
/// If this host cannot run such a guest, or a file is missing.
pub(super) fn check(spec: &GuestSpec, name: &GuestName) -> Result<()> {
    spec.check()?;
    if spec.template.is_none() {
        shape(spec)?;
        seed(spec, name)?;
        boot(spec, Path::new(FIRMWARE))?;
    }
    spec.disk.iter().try_for_each(|disk| expect_disk(&disk.path))
}

/// Checks that there is a file or block device at `path`.
///
/// # Errors
/// If there is none.
pub(super) fn expect_disk(path: &Path) -> Result<()> {
    let found = std::fs::metadata(path);
    let found = found.with_context(|| format!("cannot find the disk {}", path.display()))?;
    if !found.is_file() && !found.file_type().is_block_device() {
        bail!("{} is neither a regular file nor a block device", path.display());
    }
    Ok(())
}

/// What the guest boots. Firmware that is not named is at `firmware`.
fn boot(spec: &GuestSpec, firmware: &Path) -> Result<BootSource> {
    Ok(match (&spec.kernel, &spec.firmware) {
        (Some(kernel), _) => BootSource::Kernel(kernel_source(spec, kernel)?),
        (None, Some(firmware)) => BootSource::Firmware(find("firmware", firmware)?),
        (None, None) if spec.boots_by_firmware() => {
            BootSource::Firmware(firmware_of_host(firmware)?)
        }
        (None, None) => BootSource::Workload(workload(spec)),
    })
}

/// Returns the firmware at `place`.
///
/// # Errors
/// If there is none.
fn firmware_of_host(place: &Path) -> Result<PathBuf> {
    if !place.is_file() {
        bail!(
            "this host has no firmware to boot its disk, {}: build it with lighter's script build-firmware \
             (in /usr/share/lighter or /usr/local/share/lighter), or give a `firmware` or a `kernel`",
            place.display()
        );
    }
    Ok(place.to_path_buf())
}

/// The machine without its devices.
fn shape(spec: &GuestSpec) -> Result<VmShape> {
    let model = spec.cpu.as_ref().map_or_else(|| Ok(CpuModel::default()), CpuArg::model)?;
    let (Some(bytes), Some(vcpus)) = (spec.memory_bytes(), spec.vcpus()) else {
        bail!("a guest from a template is made of what the template says");
    };
    let nested = match spec.nested.unwrap_or(SwitchArg::Off) {
        SwitchArg::On => Nested::On,
        SwitchArg::Off => Nested::Off,
    };
    let mut shape = VmShape::with_cpu(bytes, vcpus, &model.with_nested(nested))?;
    shape.memory = spec.memory_config();
    shape.machine = spec.machine();
    shape.labels = spec.labels();
    Ok(shape)
}

/// The disks, /dev/vda first.
///
/// # Errors
/// If one does not exist, or is not a disk.
pub(super) fn disks(spec: &GuestSpec) -> Result<Vec<BlockConfig>> {
    // For a clone this does not matter: its disks have the queues of its template's disks.
    let vcpus = spec.vcpus().unwrap_or(1);
    spec.disk.iter().map(|disk| self::disk(disk, vcpus)).collect()
}

/// A disk of a guest with so many vCPUs.
///
/// # Errors
/// If it does not exist, or is not a disk.
pub(super) fn disk(disk: &DiskArg, vcpus: u8) -> Result<BlockConfig> {
    let access = match disk.access() {
        DiskAccess::ReadWrite => Access::ReadWrite,
        DiskAccess::ReadOnly => Access::ReadOnly,
    };
    let queues = disk.queues.unwrap_or_else(|| u16::from(vcpus).min(QUEUES_MAX));
    let config = BlockConfig::new(&disk.path, access, &disk.serial)?;
    warn_of_image(config.path());
    Ok(config.with_queues(queues).with_cache(disk.cache).with_engine(disk.engine))
}

/// Warns of a raw disk that begins as a qcow2 image does: its user may have expected an image.
fn warn_of_image(path: &Path) {
    let mut magic = [0; 4];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut magic, 0));
    if !is_qcow2(path) && read.is_ok() && magic == QCOW2_MAGIC {
        output::note(format_args!(
            "warning: {} looks like a qcow2 image but is used as a raw disk; if it is an image, rename it to end in .qcow2",
            path.display()
        ));
    }
}

/// The path at which a guest that was migrated finds this file when it boots again on the other
/// host.
fn find(what: &str, file: &Path) -> Result<PathBuf> {
    let found = std::path::absolute(file);
    let found = found.and_then(|path| std::fs::metadata(&path).map(|_| path));
    found.with_context(|| format!("cannot read the {what} {}", file.display()))
}

fn kernel_source(spec: &GuestSpec, kernel: &Path) -> Result<KernelSource> {
    let (acpi, cmdline) = match spec.acpi.unwrap_or_default() {
        SwitchArg::On => (Acpi::On, DEFAULT_CMDLINE),
        SwitchArg::Off => (Acpi::Off, DEFAULT_CMDLINE_WITHOUT_ACPI),
    };
    Ok(KernelSource {
        kernel: find("kernel", kernel)?,
        initrd: spec.initrd.as_deref().map(|file| find("initrd", file)).transpose()?,
        cmdline: spec.cmdline.clone().unwrap_or_else(|| cmdline.to_owned()),
        acpi,
    })
}

/// The virtio devices, disks first: /dev/vda is the first disk. The built-in workload has no
/// drivers.
fn devices(spec: &GuestSpec) -> Result<Vec<DeviceConfig>> {
    let disks = disks(spec)?.into_iter().map(|disk| Ok(DeviceConfig::Block(disk)));
    let nets = spec.net.iter().map(|it| Ok(DeviceConfig::Net(net(it)?)));
    let rng = spec.rng.then_some(Ok(DeviceConfig::Rng));
    let balloon = match spec.balloon.unwrap_or_default() {
        BalloonArg::On => Some(DeviceConfig::Balloon(FreePages::Reported)),
        BalloonArg::Hints => Some(DeviceConfig::Balloon(FreePages::Hinted)),
        BalloonArg::Off => None,
    };
    let balloon = balloon.filter(|_| spec.has_system()).map(Ok);
    let vsock = spec.vsock.map(|cid| Ok(DeviceConfig::Vsock { cid }));
    disks.chain(nets).chain(rng).chain(balloon).chain(vsock).collect()
}

/// A network device, with an address of its own.
///
/// # Errors
/// If this host has no such bridge or tap.
pub(super) fn net(net: &NetArg) -> Result<NetConfig> {
    let link = net.link().map_err(anyhow::Error::msg)?;
    let mac = match net.mac {
        Some(mac) => mac,
        None => MacAddress::random().context("cannot choose an address for a network device")?,
    };
    let pairs = net.queues.unwrap_or(1);
    Ok(NetConfig::new(link, mac)?.with_standby(net.standby).with_queue_pairs(pairs))
}

/// How a qcow2 image begins.
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// Default working set of the workload, in bytes.
const WORKING_SET_BYTES: u64 = 64 * MIB;

/// Default number of pages that the workload writes per second.
const DIRTY_RATE_PAGES_PER_S: u32 = 2000;

fn workload(spec: &GuestSpec) -> WorkloadParams {
    let working_set = spec.working_set.unwrap_or(Size(WORKING_SET_BYTES));
    let dirty_rate = spec.dirty_rate.unwrap_or(DIRTY_RATE_PAGES_PER_S);
    let defaults = WorkloadParams::default();
    WorkloadParams {
        working_set_bytes: working_set.0,
        dirty_rate_pages_per_second: u64::from(dirty_rate),
        pattern: pattern(spec),
        order: match spec.write_order.unwrap_or_default() {
            WriteOrderArg::Sequential => Order::Sequential,
            WriteOrderArg::Random => Order::Random,
            WriteOrderArg::Hot => Order::Hot,
        },
        image_percent: spec.image_share.unwrap_or(defaults.image_percent),
        run_pages: spec.run_length.map_or(defaults.run_pages, |length| length.0 / PAGE_BYTES),
        piece_pages: spec.shuffle.map_or(defaults.piece_pages, |size| size.0 / PAGE_BYTES),
        read_pages_per_second: spec.read_rate.map_or(0, u64::from),
        own_seed: Uuid::new_v4().as_u64_pair().1,
        ..defaults
    }
}

fn pattern(spec: &GuestSpec) -> Pattern {
    let pattern = match spec.pattern.unwrap_or_default() {
        PatternArg::Mixed => Pattern::MIXED,
        PatternArg::Random => Pattern::Random,
        PatternArg::Text => Pattern::Text,
        PatternArg::Zero => Pattern::Zero,
    };
    spec.zero_share.map_or(pattern, |percent| pattern.with_zeros(percent))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use vmm_core::MachineKind;

    use super::*;
    use crate::cli::{Cli, Verb};

    fn spec(arguments: &[&str]) -> GuestSpec {
        match Cli::try_parse_from([&["lighter", "run"], arguments].concat()).unwrap().verb {
            Verb::Run(args) => args.spec,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_disk_has_a_queue_for_each_vcpu_as_far_as_there_can_be_queues() {
        let disk = tempfile::NamedTempFile::new().unwrap();
        disk.as_file().set_len(1 << 20).unwrap();
        let path = disk.path().to_str().unwrap();
        for (cpus, queues) in [("1", 1), ("8", 8), ("9", 8), ("255", 8)] {
            let spec = spec(&["--kernel", "/k", "--cpus", cpus, "--disk", path]);
            let disks = disks(&spec).unwrap();
            assert_eq!(disks[0].queues(), queues, "{cpus} vCPUs");
            let mut shape = VmShape::for_host(64 << 20, 1).unwrap();
            shape.devices = disks.into_iter().map(DeviceConfig::Block).collect();
            VmShape::from_bytes(&shape.to_bytes().unwrap()).unwrap();
        }
    }

    #[test]
    fn a_guest_with_a_disk_boots_by_the_firmware_of_its_host() {
        let script = include_str!("../../packaging/build-firmware");
        assert!(script.contains(&format!("file=${{1:-{FIRMWARE}}}")));
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("CLOUDHV.fd");
        let with_disk = spec(&["--disk", "/d.qcow2", "--net", "bridge=br0", "--hostname", "h"]);
        let error = boot(&with_disk, &place).unwrap_err().to_string();
        assert!(error.contains("build-firmware") && error.contains("CLOUDHV.fd"), "{error}");
        std::fs::write(&place, []).unwrap();
        let found = boot(&with_disk, &place).unwrap();
        assert!(matches!(&found, BootSource::Firmware(file) if *file == place), "{found:?}");

        assert_eq!(with_disk.machine(), MachineKind::Pci);
        with_disk.check().unwrap();
        let with_kernel = spec(&["--disk", "/d.raw", "--kernel", "/k"]);
        assert!(with_kernel.has_system() && !with_kernel.boots_by_firmware());
        let clone = spec(&["--disk", "/d.raw", "--template", "/t"]);
        assert!(!clone.has_system());
        clone.check().unwrap();
    }

    #[test]
    fn a_guest_is_checked_without_opening_its_disks() {
        let folder = tempfile::tempdir().unwrap();
        let (kernel, disk) = (folder.path().join("vmlinuz"), folder.path().join("disk.raw"));
        std::fs::write(&kernel, "").unwrap();
        let [kernel_path, disk_path] = [&kernel, &disk].map(|path| path.to_str().unwrap());
        let spec = spec(&["--kernel", kernel_path, "--disk", disk_path]);
        let name = "web".parse().unwrap();
        let check = |spec: &GuestSpec| check(spec, &name);
        let missing = format!("{:#}", check(&spec).unwrap_err());
        assert!(
            missing.contains("cannot find the disk") && missing.contains("disk.raw"),
            "{missing}"
        );
        // Too small for a disk, which shows when it is opened.
        std::fs::write(&disk, "").unwrap();
        check(&spec).unwrap();
        disks(&spec).unwrap_err();
        std::fs::remove_file(&kernel).unwrap();
        check(&spec).unwrap_err();
        expect_disk(folder.path()).unwrap_err();
    }

    #[test]
    fn the_workload_has_no_more_vcpus_than_it_has_room_for() {
        let refusal = |arguments: &[&str]| {
            let plan = Plan::new(&spec(arguments), "web".parse().unwrap());
            format!("{:#}", plan.unwrap_err())
        };
        let refused = refusal(&["--cpus", "9"]);
        assert_eq!(
            refused,
            "cannot run web: the built-in workload has 1 to 8 vCPUs, not 9: more need a `disk`, `kernel` or `firmware`"
        );
        let kernel = refusal(&["--cpus", "9", "--kernel", "/nowhere/vmlinuz"]);
        assert!(kernel.contains("/nowhere/vmlinuz"), "{kernel}");
    }
}
