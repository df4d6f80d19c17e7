//! The UEFI variables of a guest with firmware. They are in the guest's memory, and move with it;
//! a copy is in a file beside the record of how the last guest of its name ended, for the next
//! start on this host.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use vmm_core::boot::Variables;
use vmm_core::{BootSource, MachineKind, RunState, Vm};

use super::ending::Ending;
use super::machine::SharedMachine;
use super::process::GuestProcess;
use crate::durable;
use crate::names::GuestName;
use crate::state_dir::StateDir;

/// How often a running guest's variables are read.
const EVERY: Duration = Duration::from_secs(5);
/// Pause after a failure to read or to write them.
const AFTER_FAILURE: Duration = Duration::from_mins(1);
/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Boots a new guest, with the variables in the file of its name. A file that cannot be read is
/// set aside: the guest is worth more than they are.
///
/// # Errors
/// If it cannot be booted.
pub(super) fn boot(state: &StateDir, name: &GuestName, vm: &Vm, source: &BootSource) -> Result<()> {
    vm.boot(source).with_context(|| format!("cannot boot {name}"))?;
    let BootSource::Firmware(_) = source else { return Ok(()) };
    let file = state.ended().variables(name);
    match read(&file) {
        Ok(Some(variables)) => {
            if !vm.place_variables(&variables)? {
                tracing::warn!(guest = %name, "it has too little memory for its UEFI variables");
            }
        }
        Ok(None) => {}
        Err(error) => set_aside(&file, &error),
    }
    Ok(())
}

fn read(file: &Path) -> Result<Option<Variables>> {
    match regular_file::read(file, FILE_BYTES_MAX) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        read => Ok(Some(Variables::from_bytes(read?)?)),
    }
}

fn set_aside(file: &Path, why: &anyhow::Error) {
    let aside = file.with_added_extension("damaged");
    let renamed = fs::rename(file, &aside);
    tracing::warn!(
        "the guest starts without its UEFI variables: cannot read {}: {why:#}; {}",
        file.display(),
        match renamed {
            Ok(()) => format!("it is {} now", aside.display()),
            Err(error) => format!("it cannot be renamed: {error}"),
        }
    );
}

/// Starts a thread that keeps the file of a guest that may have firmware up to date. It reads the
/// variables every five seconds while the guest runs, and writes those that have not changed since
/// they were read before: the firmware may be changing them.
///
/// # Errors
/// If the thread cannot be started.
pub(super) fn follow(process: &Arc<GuestProcess>, machine: &SharedMachine) -> Result<()> {
    if machine.shape().machine != MachineKind::Pci {
        return Ok(());
    }
    let mut file = VariablesFile::new(process.state().ended().variables(process.name()));
    let (process, machine) = (Arc::downgrade(process), Arc::downgrade(machine));
    let follow = move || {
        let mut pause = EVERY;
        loop {
            thread::sleep(pause);
            let (Some(process), Some(machine)) = (process.upgrade(), machine.upgrade()) else {
                return;
            };
            if process.is_ending() {
                return;
            }
            pause = if file.update(machine.vm()) { EVERY } else { AFTER_FAILURE };
        }
    };
    let started = thread::Builder::new().name("uefi-variables".to_owned()).spawn(follow);
    started.map(drop).context("cannot start a thread")
}

/// The file with the variables of a running guest.
#[derive(Debug)]
struct VariablesFile {
    path: PathBuf,
    /// The variables that were read last, and whether the file has them.
    last: Option<(Variables, bool)>,
}

impl VariablesFile {
    fn new(path: PathBuf) -> Self {
        Self { path, last: None }
    }

    /// Reads a running guest's variables, and writes them if necessary; returns false if that
    /// fails.
    fn update(&mut self, vm: &Vm) -> bool {
        if vm.run_state() != RunState::Running {
            return true;
        }
        match vm.variables() {
            Ok(Some(variables)) => self.note(variables),
            Ok(None) => true,
            Err(error) => {
                tracing::warn!(%error, "cannot read the guest's UEFI variables");
                false
            }
        }
    }

    /// Writes `variables` if they were read before too, unless the file has them; returns false if
    /// that fails.
    fn note(&mut self, variables: Variables) -> bool {
        match &mut self.last {
            Some((last, is_written)) if *last == variables => {
                *is_written = *is_written || write(&self.path, &variables);
                *is_written
            }
            last => {
                *last = Some((variables, false));
                true
            }
        }
    }
}

/// Writes the variables of a guest whose process ends. Nothing is done if the guest has not ended,
/// or may have no page of them here: its file stays, also if the guest has moved and the other host
/// writes one.
pub(super) fn remember(process: &GuestProcess, ending: &Ending) {
    let ends_here = matches!(ending, Ending::Asked | Ending::Guest(_) | Ending::Saved { .. });
    let Some(machine) = process.machine().filter(|_| ends_here) else { return };
    if !machine.vm().ram().is_complete() {
        return;
    }
    let path = process.state().ended().variables(process.name());
    match machine.vm().variables() {
        Ok(Some(variables)) => drop(write(&path, &variables)),
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "cannot read the guest's UEFI variables"),
    }
}

/// Writes the file, unless it is the same; returns whether it has the variables now.
fn write(path: &Path, variables: &Variables) -> bool {
    if read(path).is_ok_and(|found| found.as_ref() == Some(variables)) {
        return true;
    }
    let written = durable::replace(path, variables.as_bytes());
    if let Err(error) = &written {
        tracing::warn!("cannot keep the guest's UEFI variables: {error:#}");
    }
    written.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words of the headers of an empty volume that are not zero, with their offsets.
    const HEADERS: [(usize, u32); 17] = [
        (0x10, 0xfff12b8d),
        (0x14, 0x4c8b7696),
        (0x18, 0x472785a9),
        (0x1c, 0x504f5b07),
        (0x20, 0x00084000),
        (0x28, 0x4856465f),
        (0x2c, 0x0004feff),
        (0x30, 0xa92d0048),
        (0x34, 0x02000000),
        (0x38, 0x00000002),
        (0x3c, 0x00042000),
        (0x48, 0xaaf32c78),
        (0x4c, 0x439a947b),
        (0x50, 0x142e80a1),
        (0x54, 0x9277c34e),
        (0x58, 0x0003ffb8),
        (0x5c, 0x0000fe5a),
    ];

    /// A volume whose last byte is `last`.
    fn variables(last: u8) -> Variables {
        let mut volume = vec![0xff; 0x8_4000];
        volume[..0x64].fill(0);
        for (offset, word) in HEADERS {
            volume[offset..offset + 4].copy_from_slice(&word.to_le_bytes());
        }
        *volume.last_mut().unwrap() = last;
        Variables::from_bytes(volume).unwrap()
    }

    #[test]
    fn variables_are_written_once_they_no_longer_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("uefi-variables.fd");
        let mut file = VariablesFile::new(path.clone());
        assert!(file.note(variables(1)) && file.note(variables(2)));
        assert_eq!(read(&path).unwrap(), None, "they change");
        assert!(file.note(variables(2)));
        assert_eq!(read(&path).unwrap(), Some(variables(2)));

        fs::remove_file(&path).unwrap();
        assert!(file.note(variables(2)) && !path.exists(), "they are not written again");
        assert!(file.note(variables(3)) && file.note(variables(3)));
        assert_eq!(read(&path).unwrap(), Some(variables(3)));
    }

    #[test]
    fn a_write_that_fails_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("place");
        let mut file = VariablesFile::new(place.join("uefi-variables.fd"));
        assert!(file.note(variables(1)));
        assert!(!file.note(variables(1)), "there is no folder");
        fs::create_dir(&place).unwrap();
        assert!(file.note(variables(1)));
        assert_eq!(read(&file.path).unwrap(), Some(variables(1)));
    }

    #[test]
    fn a_file_that_is_damaged_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("uefi-variables.fd");
        fs::write(&path, &variables(1).as_bytes()[1..]).unwrap();
        let error = read(&path).unwrap_err();
        set_aside(&path, &error);
        assert!(!path.exists());
        assert!(folder.path().join("uefi-variables.fd.damaged").exists());
    }
}
