//! A guest in a file: `save`, `restore`, `template` and `run --template`, around `vmm_core::snapshot`.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use uuid::Uuid;
use vmm_core::snapshot::{CloneConfig, Template};
use vmm_core::virtio::block::BlockConfig;
use vmm_core::{RunState, Vm, VmOptions, VmShape, VmState, snapshot};

use super::console::Console;
use super::machine::Machine;
use crate::api::types::SaveFormat;
use crate::cli::spec::GuestSpec;
use crate::names::GuestName;

/// The name for a guest from `file` when none was chosen: the file's, without its ending.
///
/// # Errors
/// That is no name for a guest.
pub(crate) fn name_of(file: &Path) -> Result<GuestName> {
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    stem.parse()
        .with_context(|| format!("cannot name a guest after {}: choose a --name", file.display()))
}

/// What the guest in `file`, to be called `name`, is made of.
///
/// # Errors
/// The file is no saved guest, or is damaged.
pub(crate) fn read(file: &Path, name: &GuestName) -> Result<(VmShape, VmState)> {
    snapshot::read_guest(file).with_context(|| format!("cannot restore {name}"))
}

/// Creates the machine that `file` holds, ready to go on where it was saved, under a new identity. `disks` are its disks with
/// this host's evidence.
///
/// # Errors
/// The file is no saved guest, is damaged, or does not fit this host.
pub(crate) fn restore(
    file: &Path,
    name: GuestName,
    disks: &[BlockConfig],
    console: &Console,
) -> Result<Machine> {
    let vm = snapshot::restore(file, console.output()?)
        .with_context(|| format!("cannot restore {name}"))?;
    let mut shape = vm.shape().clone();
    shape.take_evidence(disks);
    Machine::adopt(name, Uuid::new_v4(), shape, vm, console)
}

/// The template in `file`, of which a clone is to be called `name`.
///
/// # Errors
/// The file is no template, or is damaged.
pub(crate) fn open_template(file: &Path, name: &GuestName) -> Result<Template> {
    Template::open(file).with_context(|| format!("cannot run {name}"))
}

/// Creates a machine from the template that `spec` names, ready to go on where that guest was saved, under a new identity.
/// `disks` are its own, `known` those and the template's, with this host's evidence.
///
/// # Errors
/// What `spec` says does not fit the template or this host.
pub(crate) fn start_clone(
    spec: &GuestSpec,
    template: &Template,
    name: GuestName,
    (disks, known): (Vec<BlockConfig>, &[BlockConfig]),
    console: &Console,
) -> Result<Machine> {
    spec.check()?;
    let start = || -> Result<Vm> {
        let own = CloneConfig {
            memory: spec.memory_config(),
            disks,
            options: VmOptions { dirty_log: spec.dirty_log.unwrap_or_default() },
        };
        Ok(template.start(&own, console.output()?)?)
    };
    let from = template.path().display();
    let vm = start().with_context(|| format!("cannot start {name} from {from}"))?;
    let mut shape = vm.shape().clone();
    shape.take_evidence(known);
    Machine::adopt(name, Uuid::new_v4(), shape, vm, console)
}

/// Writes a guest to `file` in `format`; it stands still meanwhile, and then goes on as it did. Returns the file's size in bytes.
///
/// # Errors
/// The guest has ended, or the file cannot be written; the guest goes on all the same.
pub(crate) fn save(
    machine: &Machine,
    file: &Path,
    format: SaveFormat,
    handed: Option<File>,
) -> Result<u64> {
    let vm = machine.vm();
    let was_running = vm.run_state() == RunState::Running;
    vm.pause()?;
    let _goes_on = was_running.then(|| GoesOn(machine));
    let report = match (format, handed) {
        (SaveFormat::Guest, None) => snapshot::save(vm, file)?,
        (SaveFormat::Guest, Some(handed)) => snapshot::save_into(vm, &handed, file)?,
        (SaveFormat::Template, None) => snapshot::save_template(vm, file)?,
        (SaveFormat::Template, Some(handed)) => snapshot::save_template_into(vm, &handed, file)?,
    };
    Ok(report.file_bytes)
}

/// Lets a guest go on when dropped, whatever became of the file.
struct GoesOn<'a>(&'a Machine);

impl Drop for GoesOn<'_> {
    fn drop(&mut self) {
        let vm = self.0.vm();
        // One that was told to end meanwhile has ended.
        if vm.run_state() == RunState::Paused
            && let Err(error) = vm.resume()
        {
            tracing::error!(%error, "the guest does not go on after it was saved");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_named_after_its_file() {
        assert_eq!(name_of(Path::new("/x/web-1.lighter")).unwrap().as_str(), "web-1");
        assert!(name_of(Path::new("/x/-.lighter")).unwrap_err().to_string().contains("--name"));
    }

    #[test]
    fn a_saved_machine_is_restored_with_its_memory() {
        let folder = tempfile::tempdir().unwrap();
        let console = Console::log(folder.path().join("console.log"));
        let shape = VmShape::for_host(64 << 20, 1).unwrap();
        let machine = Machine::create(
            "web".parse().unwrap(),
            Uuid::new_v4(),
            shape,
            &VmOptions::default(),
            &console,
        )
        .unwrap();
        machine.vm().ram().copy_in(5, 0, &[9; 4096]).unwrap();

        let file = folder.path().join("web.lighter");
        assert!(save(&machine, &file, SaveFormat::Guest, None).unwrap() > 4096);

        let restored = restore(&file, "web-2".parse().unwrap(), &[], &console).unwrap();
        let mut page = [0; 4096];
        restored.vm().ram().copy_out(5, 0, &mut page).unwrap();
        assert_eq!(page, [9; 4096]);
        assert_ne!(restored.uuid(), machine.uuid());
    }
}
