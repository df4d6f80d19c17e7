//! What the arguments of `run` mean together.

use std::path::Path;

use anyhow::{Context, Result};
use vmm_core::boot::{Acpi, DEFAULT_CMDLINE, DEFAULT_CMDLINE_WITHOUT_ACPI, KernelSource};
use vmm_core::virtio::block::{Access, BlockConfig};
use vmm_core::workload::{Pattern, WorkloadParams};
use vmm_core::{BootSource, DeviceConfig, OnReboot, VmShape};

use crate::cli::disk::{DiskAccess, DiskArg};
use crate::cli::guest::{OnRebootArg, PatternArg, RunArgs, SwitchArg, WorkloadArgs};
use crate::names::GuestName;

/// A guest to be started.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Its name.
    pub(crate) name: GuestName,
    /// Its machine.
    pub(crate) shape: VmShape,
    /// What it runs.
    pub(crate) boot: BootSource,
    /// What becomes of it when it resets itself.
    pub(crate) on_reboot: OnReboot,
}

impl Plan {
    /// What `args` mean on this host, under a name that has been settled.
    ///
    /// # Errors
    /// This host cannot run such a guest, or a file is missing.
    pub(crate) fn new(args: &RunArgs, name: GuestName) -> Result<Self> {
        let mut shape = VmShape::for_host(args.memory, args.cpus)
            .with_context(|| format!("cannot run {name}"))?;
        shape.devices = devices(args).with_context(|| format!("cannot run {name}"))?;
        let boot = match &args.kernel {
            None => BootSource::Workload(workload(&args.workload)),
            Some(kernel) => BootSource::Kernel(kernel_source(args, kernel)?),
        };
        let on_reboot = match (args.on_reboot, &boot) {
            (Some(OnRebootArg::Restart), _) => OnReboot::Restart,
            (Some(OnRebootArg::Stop), _) => OnReboot::Stop,
            // The workload never resets itself: when it does, something is wrong and should be seen.
            (None, BootSource::Workload(_)) => OnReboot::Stop,
            (None, BootSource::Kernel(_)) => OnReboot::Restart,
        };
        Ok(Self { name, shape, boot, on_reboot })
    }
}

fn kernel_source(args: &RunArgs, kernel: &Path) -> Result<KernelSource> {
    // A guest that is migrated and boots again on the other host finds its files by these names.
    let find = |file: &Path| {
        let found = std::path::absolute(file);
        let found = found.and_then(|path| std::fs::metadata(&path).map(|_| path));
        found.with_context(|| format!("cannot boot {}", file.display()))
    };
    let (acpi, cmdline) = match args.acpi {
        SwitchArg::On => (Acpi::On, DEFAULT_CMDLINE),
        SwitchArg::Off => (Acpi::Off, DEFAULT_CMDLINE_WITHOUT_ACPI),
    };
    Ok(KernelSource {
        kernel: find(kernel)?,
        initrd: args.initrd.as_deref().map(find).transpose()?,
        cmdline: args.cmdline.clone().unwrap_or_else(|| cmdline.to_owned()),
        acpi,
    })
}

/// The virtio devices, disks first: /dev/vda is the first disk. The built-in workload has no drivers.
fn devices(args: &RunArgs) -> Result<Vec<DeviceConfig>> {
    let disk = |disk: &DiskArg| {
        let access = match disk.access {
            DiskAccess::ReadWrite => Access::ReadWrite,
            DiskAccess::ReadOnly => Access::ReadOnly,
        };
        Ok(DeviceConfig::Block(BlockConfig::new(&disk.path, access, &disk.serial)?))
    };
    let disks = args.disk.iter().map(disk);
    let rng = args.rng.then_some(Ok(DeviceConfig::Rng));
    let has_balloon = args.kernel.is_some() && args.balloon == SwitchArg::On;
    let balloon = has_balloon.then_some(Ok(DeviceConfig::Balloon));
    disks.chain(rng).chain(balloon).collect()
}

fn workload(args: &WorkloadArgs) -> WorkloadParams {
    WorkloadParams {
        working_set_bytes: args.working_set,
        dirty_rate_pages_per_second: u64::from(args.dirty_rate),
        pattern: match args.pattern {
            PatternArg::Mixed => Pattern::MIXED,
            PatternArg::Random => Pattern::Random,
            PatternArg::Text => Pattern::Text,
            PatternArg::Zero => Pattern::Zero,
        },
        ..WorkloadParams::default()
    }
}
