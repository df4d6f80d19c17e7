//! A guest in a file: `save` and `restore`, around `vmm_core::snapshot`.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use uuid::Uuid;
use vmm_core::{RunState, VmShape, VmState, snapshot};

use super::console::Console;
use super::machine::Machine;
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

/// Creates the machine that `file` holds, ready to go on where it was saved, under a new identity.
///
/// # Errors
/// The file is no saved guest, is damaged, or does not fit this host.
pub(crate) fn restore(file: &Path, name: GuestName, console: &Console) -> Result<Machine> {
    let vm = snapshot::restore(file, console.output()?)
        .with_context(|| format!("cannot restore {name}"))?;
    let shape = vm.shape().clone();
    Machine::adopt(name, Uuid::new_v4(), shape, vm, console)
}

/// Writes a guest to `handed`, which will be `file`, or else to a new file of that name; it stands still meanwhile, and then goes on
/// as it did. Returns the file's size in bytes.
///
/// # Errors
/// The guest has ended, or the file cannot be written; the guest goes on all the same.
pub(crate) fn save(machine: &Machine, file: &Path, handed: Option<File>) -> Result<u64> {
    let vm = machine.vm();
    let was_running = vm.run_state() == RunState::Running;
    vm.pause()?;
    let _goes_on = was_running.then(|| GoesOn(machine));
    let report = match handed {
        Some(handed) => snapshot::save_into(vm, &handed, file)?,
        None => snapshot::save(vm, file)?,
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
        let machine =
            Machine::create("web".parse().unwrap(), Uuid::new_v4(), shape, &console).unwrap();
        machine.vm().ram().copy_in(5, 0, &[9; 4096]).unwrap();

        let file = folder.path().join("web.lighter");
        assert!(save(&machine, &file, None).unwrap() > 4096);

        let restored = restore(&file, "web-2".parse().unwrap(), &console).unwrap();
        let mut page = [0; 4096];
        restored.vm().ram().copy_out(5, 0, &mut page).unwrap();
        assert_eq!(page, [9; 4096]);
        assert_ne!(restored.uuid(), machine.uuid());
    }
}
