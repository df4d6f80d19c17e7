//! What the arguments of `run` mean together.

use anyhow::{Context, Result};
use vmm_core::boot::KernelSource;
use vmm_core::virtio::block::{Access, BlockConfig};
use vmm_core::workload::{Pattern, WorkloadParams};
use vmm_core::{BootSource, DeviceConfig, VmShape};

use crate::cli::disk::{DiskAccess, DiskArg};
use crate::cli::guest::{PatternArg, RunArgs, WorkloadArgs};
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
            Some(kernel) => {
                for file in [Some(kernel), args.initrd.as_ref()].into_iter().flatten() {
                    std::fs::metadata(file)
                        .with_context(|| format!("cannot boot {}", file.display()))?;
                }
                BootSource::Kernel(KernelSource {
                    kernel: kernel.clone(),
                    initrd: args.initrd.clone(),
                    cmdline: args.cmdline.clone(),
                })
            }
        };
        Ok(Self { name, shape, boot })
    }
}

/// The virtio devices, disks first: /dev/vda is the first disk.
fn devices(args: &RunArgs) -> Result<Vec<DeviceConfig>> {
    let disk = |disk: &DiskArg| {
        let access = match disk.access {
            DiskAccess::ReadWrite => Access::ReadWrite,
            DiskAccess::ReadOnly => Access::ReadOnly,
        };
        Ok(DeviceConfig::Block(BlockConfig::new(&disk.path, access, &disk.serial)?))
    };
    let disks = args.disk.iter().map(disk);
    disks.chain(args.rng.then_some(Ok(DeviceConfig::Rng))).collect()
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
