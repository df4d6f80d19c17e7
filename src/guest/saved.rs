//! A guest in a file: `save`, `restore`, `template` and `run --template`, around
//! `vmm_core::snapshot`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use migrate::SourceGuest;
use tokio::time::Instant;
use uuid::Uuid;
use vmm_core::snapshot::{CloneConfig, DiskCopies, SavedDisks, Template};
use vmm_core::virtio::block::{Access, BlockConfig, is_qcow2};
use vmm_core::{RunState, Vm, VmOptions, VmShape, VmState, snapshot};

use super::console::Console;
use super::events::Events;
use super::machine::{Machine, SharedMachine};
use super::process::GuestProcess;
use crate::api::saving::{SaveFormat, SaveId, SaveRequest, SavedCopies};
use crate::api::{ApiError, Reason};
use crate::cli::spec::GuestSpec;
use crate::names::GuestName;

/// How long a guest stays paused after a save, for a client to end it.
const STANDS_STILL_MAX: Duration = Duration::from_secs(60);

/// Default name for a guest from `file`: the file's name without its extension.
///
/// # Errors
/// If that is not a valid name for a guest.
pub(crate) fn name_of(file: &Path) -> Result<GuestName> {
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    stem.parse()
        .with_context(|| format!("cannot name a guest after {}: choose a --name", file.display()))
}

/// Reads the configuration and state of the guest in `file`, which will be called `name`.
///
/// # Errors
/// If the file is not a saved guest, or is damaged.
pub(crate) fn read(file: &Path, name: &GuestName) -> Result<(VmShape, VmState)> {
    snapshot::read_guest(file).with_context(|| format!("cannot restore {name}"))
}

/// Creates the machine in `file`, ready to continue where it was saved, as the guest `uuid`.
/// `disks` are its disks with this host's evidence; `trust` says whether the user vouches for them.
///
/// # Errors
/// If the file is not a saved guest, is damaged, or does not fit this host.
pub(crate) fn restore(
    file: &Path,
    (name, uuid): (GuestName, Uuid),
    (trust, disks): (SavedDisks, &[BlockConfig]),
    options: &VmOptions,
    console: &Console,
) -> Result<Machine> {
    let vm = snapshot::restore(file, trust, options, console.output()?)
        .with_context(|| format!("cannot restore {name}"))?;
    vm.take_evidence(disks);
    Machine::adopt(name, uuid, vm, console)
}

/// Opens the template in `file`, for a clone that will be called `name`.
///
/// # Errors
/// If the file is not a template, or is damaged.
pub(crate) fn open_template(file: &Path, name: &GuestName) -> Result<Template> {
    Template::open(file).with_context(|| format!("cannot run {name}"))
}

/// Creates a machine from `template`, ready to continue where that guest was saved, under an
/// identity of its own. `disks` are its own disks, `known` those and the template's, with this
/// host's evidence.
///
/// # Errors
/// If `spec` does not fit the template or this host.
pub(crate) fn start_clone(
    spec: &GuestSpec,
    template: &Template,
    (name, uuid): (GuestName, Uuid),
    (disks, known): (Vec<BlockConfig>, &[BlockConfig]),
    console: &Console,
) -> Result<Machine> {
    spec.check()?;
    let start = || -> Result<Vm> {
        let own = CloneConfig {
            memory: spec.memory_config(),
            disks,
            labels: spec.labels(),
            // A clone starts without network devices, and its process may not use vhost-net.
            options: VmOptions { dirty_log: spec.dirty_log.unwrap_or_default(), vhost_net: false },
        };
        Ok(template.start(&own, console.output()?)?)
    };
    let from = template.path().display();
    let vm = start().with_context(|| format!("cannot start {name} from {from}"))?;
    vm.take_evidence(known);
    Machine::adopt(name, uuid, vm, console)
}

/// Refuses to let a guest continue after it is saved in `format`, if the file would then no longer
/// match its disks.
///
/// # Errors
/// If the guest writes disks.
pub(crate) fn expect_no_written_disks(
    machine: &Machine,
    name: &GuestName,
    format: SaveFormat,
) -> Result<(), ApiError> {
    let shape = machine.shape();
    let Some(disk) = shape.disks().find(|disk| disk.access() == Access::ReadWrite) else {
        return Ok(());
    };
    let disk = disk.path().display();
    let text = match format {
        SaveFormat::Guest => format!(
            "{name} writes its disk {disk}: if it keeps running, the saved memory does not match the disk; save the disk as \
             well (--disks), or omit --keep-running"
        ),
        // While the guest is paused, the user can copy the disk.
        SaveFormat::Template if machine.vm().run_state() == RunState::Paused => return Ok(()),
        SaveFormat::Template => format!(
            "{name} writes its disk {disk}, of which clones need a copy that fits: `lighter pause {name}`, make the template, \
             copy the disk, `lighter resume {name}`"
        ),
    };
    Err(ApiError::new(Reason::BadRequest, text))
}

/// Checks that the disks in the request fit the guest.
///
/// # Errors
/// If they do not.
pub(crate) fn expect_disks(machine: &Machine, request: &SaveRequest) -> Result<(), ApiError> {
    let Some(copies) = &request.copies else { return Ok(()) };
    let bad = |text: String| Err(ApiError::new(Reason::BadRequest, text));
    if request.format == SaveFormat::Template || request.keep_running {
        return bad(
            "copies of disks go with a guest that stays paused until it is restored".to_owned()
        );
    }
    for (disk, copy) in &copies.paths {
        if !machine.shape().disks().any(|known| known.path() == disk) {
            return bad(format!("the guest has no disk {}", disk.display()));
        }
        // An earlier release of `lighter save` does not check this.
        if is_qcow2(disk) {
            return bad(format!(
                "{}: qcow2 images cannot be copied with a saved guest; omit --disks, or convert the disk to raw",
                disk.display()
            ));
        }
        if !copy.is_absolute() {
            return bad(format!("{} must be an absolute path", copy.display()));
        }
    }
    Ok(())
}

/// Saves a guest as `request` says. Returns the file's size in bytes, and the guest, which is
/// paused.
///
/// # Errors
/// If the guest has ended, or the file cannot be written; in that case the guest continues.
pub(crate) fn save(
    machine: &SharedMachine,
    events: &Arc<Events>,
    request: &SaveRequest,
    handed: Option<File>,
) -> Result<(u64, PausedForSave)> {
    let file = request.file.as_path();
    let vm = machine.vm();
    let ran = flush_and_pause(vm, || Ok(machine.flush()?))?;
    events.is_running(false);
    let guest = PausedForSave {
        id: SaveId { id: Uuid::new_v4() },
        machine: Arc::clone(machine),
        events: Arc::clone(events),
        ran,
        since: Instant::now(),
        file: file.to_owned(),
        until: Mutex::new(Instant::now() + STANDS_STILL_MAX),
    };
    let copies = request.copies.clone().map(DiskCopies::from).unwrap_or_default();
    let report = match (request.format, handed) {
        (SaveFormat::Guest, None) => snapshot::save(vm, file, &copies)?,
        (SaveFormat::Guest, Some(handed)) => snapshot::save_into(vm, &handed, file, &copies)?,
        (SaveFormat::Template, None) => snapshot::save_template(vm, file)?,
        (SaveFormat::Template, Some(handed)) => snapshot::save_template_into(vm, &handed, file)?,
    };
    Ok((report.file_bytes, guest))
}

/// Pauses the guest once `flush` has made durable what it has written to its disks so far, so that
/// little is left to flush while it is paused. Returns whether it ran.
fn flush_and_pause(vm: &Vm, flush: impl FnOnce() -> Result<()>) -> Result<bool> {
    let ran = vm.run_state() == RunState::Running;
    if ran {
        flush()?;
    }
    vm.pause()?;
    Ok(ran)
}

/// A guest that is paused for a save. Dropping this resumes the guest, if it ran before.
#[derive(Debug)]
pub(crate) struct PausedForSave {
    id: SaveId,
    machine: SharedMachine,
    events: Arc<Events>,
    ran: bool,
    since: Instant,
    file: PathBuf,
    /// When the guest continues, unless a client holds it.
    until: Mutex<Instant>,
}

impl From<SavedCopies> for DiskCopies {
    fn from(copies: SavedCopies) -> Self {
        Self { paths: copies.paths, modified_unix_s: copies.modified_unix_s }
    }
}

impl PausedForSave {
    /// Keeps the guest paused for another minute.
    pub(super) fn hold(&self) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) =
            Instant::now() + STANDS_STILL_MAX;
    }

    fn until(&self) -> Instant {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the guest was paused.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// Id of the save for which the guest is paused.
    pub(super) fn id(&self) -> SaveId {
        self.id
    }

    /// State of its machine, which should be paused.
    pub(super) fn run_state(&self) -> RunState {
        self.machine.vm().run_state()
    }

    /// The file that it was saved to.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Lets `guest`, of `process`, continue when no client holds or ends it for a minute: then the
    /// client that requested the save is gone.
    pub(super) fn limit(guest: &Arc<Self>, process: &Arc<GuestProcess>) {
        let runtime = process.runtime().clone();
        let (guest, process) = (Arc::downgrade(guest), Arc::downgrade(process));
        runtime.spawn(async move {
            while let Some(until) = guest.upgrade().map(|guest| guest.until())
                && Instant::now() < until
            {
                tokio::time::sleep_until(until).await;
            }
            let (Some(guest), Some(process)) = (guest.upgrade(), process.upgrade()) else { return };
            if process.release_after_save(&guest) {
                let (name, file) = (process.name(), guest.file.display());
                tracing::warn!(
                    "{name} keeps running: it was not ended after it was saved to {file}"
                );
                drop(tokio::task::spawn_blocking(move || drop(guest)).await);
            }
        });
    }
}

impl Drop for PausedForSave {
    fn drop(&mut self) {
        // If it was told to end meanwhile, it has ended.
        if !self.ran || self.run_state() != RunState::Paused {
            return;
        }
        match self.machine.vm().resume() {
            Ok(()) => self.events.is_running(true),
            Err(error) => tracing::error!(%error, "the guest cannot continue after it was saved"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Handle;

    use super::super::control::ProcessControl;
    use super::super::merging::Merging;
    use super::*;
    use crate::state_dir::{GuestIdentity, StateDir};

    /// A guest of 64 MiB with its console in a folder.
    fn scene() -> (tempfile::TempDir, Console, SharedMachine) {
        let folder = tempfile::tempdir().unwrap();
        let console = Console::log(folder.path().join("console.log"));
        let (name, uuid) = ("web".parse().unwrap(), Uuid::new_v4());
        let shape = VmShape::for_host(64 << 20, 1).unwrap();
        let machine = Machine::create(name, uuid, &shape, &VmOptions::default(), &console).unwrap();
        (folder, console, Arc::new(machine))
    }

    /// Has the guest halt as soon as it runs.
    fn load_halt(vm: &Vm) {
        vm.ram().copy_in(0, 1, &[0xf4; 4096]).unwrap();
        let mut state = vm.save_state().unwrap();
        let vcpu = &mut state.vcpus[0];
        (vcpu.sregs.cs.base, vcpu.sregs.cs.selector, vcpu.regs.rip) = (0, 0, 4096);
        vm.load_state(&state).unwrap();
    }

    /// A request to save a guest to a file in `folder`, and to leave it paused.
    fn request_in(folder: &Path) -> SaveRequest {
        let (file, format) = (folder.join("web.lighter"), SaveFormat::Guest);
        SaveRequest { file, format, keep_running: false, copies: None }
    }

    #[test]
    fn a_guest_is_named_after_its_file() {
        assert_eq!(name_of(Path::new("/x/web-1.lighter")).unwrap().as_str(), "web-1");
        assert!(name_of(Path::new("/x/-.lighter")).unwrap_err().to_string().contains("--name"));
    }

    #[test]
    fn what_a_guest_has_written_is_flushed_while_it_runs_and_not_twice() {
        let (_folder, _console, machine) = scene();
        let vm = machine.vm();
        load_halt(vm);
        vm.resume().unwrap();

        let refused = flush_and_pause(vm, || anyhow::bail!("the disk does not answer"));
        refused.unwrap_err();
        let state_at_flush = std::cell::Cell::new(None);
        let flush = || {
            state_at_flush.set(Some(vm.run_state()));
            Ok(())
        };
        assert!(flush_and_pause(vm, flush).unwrap());
        assert_eq!(state_at_flush.take(), Some(RunState::Running));
        assert_eq!(vm.run_state(), RunState::Paused);
        assert!(!flush_and_pause(vm, flush).unwrap());
        assert_eq!(state_at_flush.take(), None, "a paused guest writes nothing more");
    }

    #[tokio::test]
    async fn a_guest_that_has_run_since_its_save_is_not_ended_by_it() {
        let (_state_folder, state) = StateDir::temporary();
        let (folder, _console, machine) = scene();
        let (name, uuid) = ("web".parse().unwrap(), machine.uuid());
        let process = GuestProcess::new(&state, name, uuid, Handle::current());
        process.set_machine(Arc::clone(&machine), Merging::Off).unwrap();
        let control = ProcessControl(process);
        load_halt(machine.vm());
        let client = Arc::new(());
        let request = request_in(folder.path());
        let saved = control.save(&request, None, &Arc::downgrade(&client)).unwrap();

        machine.vm().resume().unwrap();
        let refused = control.finish_save(SaveId { id: saved.id }).unwrap_err();
        assert_eq!(refused.reason, Reason::WrongState, "{refused:?}");
        assert!(!control.process().is_ending());
        machine.vm().stop();
    }

    #[test]
    fn a_saved_machine_is_restored_with_its_memory() {
        let (folder, console, machine) = scene();
        machine.vm().ram().copy_in(5, 0, &[9; 4096]).unwrap();

        let request = request_in(folder.path());
        let identity = GuestIdentity {
            name: "web".parse().unwrap(),
            uuid: machine.uuid(),
            pid: 7,
            started_unix_ms: 0,
        };
        let events = Events::new(identity);
        assert!(save(&machine, &events, &request, None).unwrap().0 > 4096);

        let trust = (SavedDisks::Unwritten, &[][..]);
        let (name, options) = ("web-2".parse().unwrap(), VmOptions::default());
        let restored =
            restore(&request.file, (name, Uuid::new_v4()), trust, &options, &console).unwrap();
        let mut page = [0; 4096];
        restored.vm().ram().copy_out(5, 0, &mut page).unwrap();
        assert_eq!(page, [9; 4096]);
        assert_ne!(restored.uuid(), machine.uuid());
    }
}
