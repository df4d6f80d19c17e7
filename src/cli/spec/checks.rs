//! What a guest's specification must be for any host to take it.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use memopt::units::binary_instead;
use vmm_core::memory::{MemoryError, RamLayout};
use vmm_core::{MachineKind, labels, workload};

use super::{CpuArg, GuestSpec, MEMORY_BYTES, PatternArg};
use crate::cli::fault::{Fault, Place};
use crate::cli::seed::{SeedArg, is_host_name};
use crate::names::GuestName;
use crate::units::{MIB, PAGE_BYTES, Size};

impl GuestSpec {
    /// Whether the values make sense together, and are possible on any host.
    ///
    /// # Errors
    /// The first that does not, or is not.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        let bytes = self.memory_bytes().unwrap_or(MEMORY_BYTES);
        RamLayout::new(bytes).map_err(|error| Fault::of("memory", memory_fault(bytes, &error)))?;
        let config = self.memory_config();
        config.check(bytes).map_err(|error| {
            if let Some(what) = binary_instead(bytes, |bytes| config.check(bytes).is_ok()) {
                return Fault::of("memory", what);
            }
            let key = if self.hugepages.is_some() { "hugepages" } else { "numa-policy" };
            Fault::of(key, error.to_string())
        })?;
        self.check_template()?;
        self.check_workload()?;
        self.check_firmware()?;
        self.check_seed()?;
        let of_systems = self.system_options();
        let of_the_workload = self.workload_options();
        let (stray, what) = match self.has_system() {
            false => (
                &of_systems[..],
                "this needs a `disk`, `kernel` or `firmware`: the built-in workload has no use for it",
            ),
            true => (
                &of_the_workload[..],
                "this is for the built-in workload, which a guest with a `disk`, `kernel` or \
                 `firmware` does not run",
            ),
        };
        if let Some((key, _)) = stray.iter().find(|(_, is_there)| *is_there) {
            return Err(Fault::of(key, what));
        }
        // What the kernel reads ends at the first NUL, and no other one belongs into one line.
        if self.cmdline.as_ref().is_some_and(|line| line.chars().any(char::is_control)) {
            return Err(Fault::of(
                "cmdline",
                "the kernel's command line has no control characters",
            ));
        }
        labels::check(&self.labels()).map_err(|error| Fault::of("labels", error.to_string()))?;
        let mut disks = self.disk.iter().enumerate();
        disks.try_for_each(|(index, disk)| disk.check(index))?;
        self.check_nets()?;
        if !self.device.is_empty() && self.machine() != MachineKind::Pci {
            return Err(Fault::of("device", "a device of the host needs `machine = \"pci\"`"));
        }
        Ok(())
    }

    /// Whether there is anything from which firmware could boot, when the guest is started.
    ///
    /// # Errors
    /// If there is nothing.
    pub(crate) fn check_boots(&self) -> Result<(), Fault> {
        let has_none = self.disk.is_empty() && self.net.is_empty() && self.device.is_empty();
        if self.firmware.is_some() && has_none {
            return Err(Fault::of(
                "firmware",
                "`firmware` boots from disks, and this guest has none: give it a `disk`, or a `net` or a `device` to \
                 boot from; others can be attached once it runs",
            ));
        }
        Ok(())
    }

    /// Whether any host could have its networks, and they have different addresses.
    fn check_nets(&self) -> Result<(), Fault> {
        let mut macs = HashSet::new();
        for (index, net) in self.net.iter().enumerate() {
            net.check(index)?;
            let fault = |key, what: String| Err(Fault::of_item(("net", index), key, what));
            if net.standby && self.machine() != MachineKind::Pci {
                let what = "one half of a failover pair needs `machine = \"pci\"`";
                return fault("standby", what.to_owned());
            }
            if let Some(mac) = net.mac.filter(|mac| !macs.insert(*mac)) {
                let what =
                    format!("another network device of the guest has {mac}: give one another mac");
                return fault("mac", what);
            }
        }
        Ok(())
    }

    /// The options of a guest with a system of its own, and whether each is given.
    fn system_options(&self) -> [(&'static str, bool); 11] {
        [
            ("machine", self.machine.is_some()),
            ("nested", self.nested.is_some()),
            ("seed", self.seed.is_some()),
            ("ssh-key", !self.ssh_key.is_empty()),
            ("hostname", self.hostname.is_some()),
            ("password-file", self.password_file.is_some()),
            ("net", !self.net.is_empty()),
            ("device", !self.device.is_empty()),
            ("rng", self.rng),
            ("balloon", self.balloon.is_some()),
            ("vsock", self.vsock.is_some()),
        ]
    }

    /// The options of the workload, and whether each is given.
    fn workload_options(&self) -> [(&'static str, bool); 9] {
        [
            ("dirty-rate", self.dirty_rate.is_some()),
            ("working-set", self.working_set.is_some()),
            ("write-order", self.write_order.is_some()),
            ("pattern", self.pattern.is_some()),
            ("zero-share", self.zero_share.is_some()),
            ("image-share", self.image_share.is_some()),
            ("run-length", self.run_length.is_some()),
            ("shuffle", self.shuffle.is_some()),
            ("read-rate", self.read_rate.is_some()),
        ]
    }

    /// Whether the workload has room for its vCPUs, and can fill memory so.
    fn check_workload(&self) -> Result<(), Fault> {
        let runs_it = !self.has_system() && self.template.is_none();
        let cpus = self.cpus.unwrap_or(1);
        if runs_it && u64::from(cpus) > workload::VCPUS_MAX {
            let max = workload::VCPUS_MAX;
            return Err(Fault::of(
                "cpus",
                format!(
                    "the built-in workload has 1 to {max} vCPUs, not {cpus}: more \
                     need a `disk`, `kernel` or `firmware`"
                ),
            ));
        }
        let zeros = self.zero_share.unwrap_or(0);
        if zeros + self.image_share.unwrap_or(0) > 100 {
            return Err(Fault::of(
                "image-share",
                "zero-share and image-share are more than 100 percent together",
            ));
        }
        if self.pattern == Some(PatternArg::Zero) && self.zero_share.is_some() {
            return Err(Fault::of("zero-share", "the pattern `zero` has nothing but zeros"));
        }
        let is_whole = |size: Option<Size>| {
            size.is_none_or(|Size(bytes)| bytes > 0 && bytes % PAGE_BYTES == 0)
        };
        if !is_whole(self.run_length) {
            return Err(Fault::of("run-length", "must be a multiple of 4K"));
        }
        if !is_whole(self.shuffle) {
            return Err(Fault::of("shuffle", "must be a multiple of 4K"));
        }
        Ok(())
    }

    /// Whether what kernels alone are told is told to a kernel, and firmware has a machine for it.
    fn check_firmware(&self) -> Result<(), Fault> {
        let of_kernels = [
            ("initrd", self.initrd.is_some()),
            ("cmdline", self.cmdline.is_some()),
            ("acpi", self.acpi.is_some()),
        ];
        let stray = of_kernels.iter().find(|(_, is_there)| *is_there && self.kernel.is_none());
        if let Some((key, _)) = stray {
            return Err(Fault::of(key, "this needs a `kernel`"));
        }
        if self.firmware.is_some() && self.kernel.is_some() {
            return Err(Fault::of("firmware", "a guest has a `kernel` or `firmware`, not both"));
        }
        if self.boots_by_firmware() && self.machine == Some(MachineKind::Mmio) {
            return Err(Fault::of(
                "machine",
                "`firmware` boots a disk without a `kernel`, and needs the machine `pci`",
            ));
        }
        Ok(())
    }

    /// Checks the host name, and that the meta data come from one place.
    fn check_seed(&self) -> Result<(), Fault> {
        if !self.hostname.as_deref().is_none_or(is_host_name) {
            let what = "a host name has letters, digits, `-` and `.`, up to 64 of them";
            return Err(Fault::of("hostname", what));
        }
        if self.seed.as_ref().is_some_and(|seed| seed.meta_data.is_some()) {
            let of_meta_data =
                [("ssh-key", !self.ssh_key.is_empty()), ("hostname", self.hostname.is_some())];
            let stray = of_meta_data.into_iter().find(|(_, is_there)| *is_there);
            return stray.map_or(Ok(()), |(key, _)| {
                Err(Fault::of(key, "not allowed with `meta-data` of the seed; put it in that file"))
            });
        }
        let name = self.hostname.as_deref().or(self.name.as_ref().map(GuestName::as_str));
        // A name that lighter makes can be one.
        if self.has_seed() && !name.is_none_or(is_host_name) {
            let what = "a guest with a seed needs a `hostname`, or a `name` that can be one";
            return Err(Fault::of("hostname", what));
        }
        Ok(())
    }

    /// Whether nothing is said of a guest from a template that its template says already.
    fn check_template(&self) -> Result<(), Fault> {
        let of_templates = [
            ("memory", self.memory.is_some()),
            ("cpus", self.cpus.is_some()),
            ("kernel", self.kernel.is_some()),
            ("firmware", self.firmware.is_some()),
            ("acpi", self.acpi.is_some()),
            ("on-reboot", self.on_reboot.is_some()),
            ("cpu", self.cpu.is_some()),
            ("prealloc", self.prealloc),
        ];
        let of_guests = self.system_options().into_iter().chain(self.workload_options());
        let mut keys = of_templates.into_iter().chain(of_guests);
        let stray = keys.find(|(_, is_there)| *is_there && self.template.is_some());
        stray.map_or(Ok(()), |(key, _)| {
            Err(Fault::of(key, "not allowed with `template`, which determines it"))
        })
    }

    /// Whether its files are named so that any process on this host finds them.
    ///
    /// # Errors
    /// The first that is not.
    pub(crate) fn check_paths(&self) -> Result<(), Fault> {
        let cpu = match &self.cpu {
            Some(CpuArg::File(path)) => Some(path),
            Some(CpuArg::Model(_)) | None => None,
        };
        let single = [
            ("kernel", self.kernel.as_ref()),
            ("firmware", self.firmware.as_ref()),
            ("initrd", self.initrd.as_ref()),
            ("template", self.template.as_ref()),
            ("cpu", cpu),
            ("password-file", self.password_file.as_ref()),
        ];
        let single =
            single.into_iter().filter_map(|(key, path)| Some((key, None, path?.as_path())));
        let disks = self.disk.iter().enumerate();
        let disks = disks.map(|(index, disk)| ("path", Some(("disk", index)), disk.path.as_path()));
        let seed = self.seed.iter().flat_map(SeedArg::files).map(|file| ("seed", None, file));
        let keys = self.ssh_key.iter().map(|file| ("ssh-key", None, file.as_path()));
        let mut paths = single.chain(disks).chain(seed).chain(keys);
        let is_one = |path: &Path| path.is_absolute() && !path.as_os_str().as_bytes().contains(&0);
        match paths.find(|(_, _, path)| !is_one(path)) {
            None => Ok(()),
            Some((key, item, path)) => Err(Fault {
                place: Place { key, item },
                what: format!(
                    "`{}` must be an absolute path",
                    path.display().to_string().escape_debug()
                ),
            }),
        }
    }
}

/// Returns the error for an impossible amount of memory. A number below the smallest is likely to
/// lack its unit; a decimal unit is likely to be meant as the binary one.
fn memory_fault(bytes: u64, error: &MemoryError) -> String {
    let is_possible = |bytes| RamLayout::new(bytes).is_ok();
    match bytes < MIB && is_possible(bytes.saturating_mul(MIB)) {
        true => format!("{bytes} bytes are too few: did you mean {bytes}M?"),
        false => binary_instead(bytes, is_possible).unwrap_or_else(|| error.to_string()),
    }
}
