//! Carries out the requests of a guest process's API. What the process is occupied with decides
//! whether it accepts a request.

mod migrations;
mod saves;

use std::sync::Arc;
use std::time::{Duration, Instant};

use memopt::hypervisor::SurveyRequest;
use vmm_core::boot::{BootRecord, FileRecord};
use vmm_core::devices::ButtonPress;
use vmm_core::memory::Prealloc;
use vmm_core::virtio::block::Access;
use vmm_core::{DeviceConfig, DiskContent, RunState};

use super::arriving::Arrival;
use super::ending::Ending;
use super::machine::SharedMachine;
use super::merging::Merging;
use super::process::{GuestProcess, Occupation};
use super::session::MigrationSession;
use super::{balloon, growing, host_devices, treatment, workload};
use crate::api::memory::{GuestMemory, TreatedMemory, TreatmentRequest};
use crate::api::survey::{SurveyDomain, SurveyStatus, SurveyedMemory};
use crate::api::types::{
    BackingInfo, BalloonInfo, BalloonRequest, BootFileInfo, BootFiles, ConsoleInput, ConsoleTaken,
    DiskFormat, DiskInfo, DiskSizeRequest, GuestInfo, GuestKind, GuestState, NetInfo, OnReboot,
    RebootRequest, ResumeRequest, StateAnswer, VsockInfo, WorkloadControl, WorkloadControlled,
    WorkloadInfo,
};
use crate::api::{ApiError, Reason};
use crate::scrollback::Scrollback;
use crate::version::VERSION;

/// Limit for the time in which a guest has to shut down for a reboot. After that it does not boot
/// again automatically.
const REBOOT_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

/// A guest process behind the API. It is a type of its own because starting a migration needs the
/// process in an `Arc`.
#[derive(Debug, Clone)]
pub(crate) struct ProcessControl(pub(crate) Arc<GuestProcess>);

impl ProcessControl {
    pub(super) fn process(&self) -> &GuestProcess {
        &self.0
    }

    pub(super) fn machine(&self) -> Result<&SharedMachine, ApiError> {
        let missing = || {
            ApiError::new(
                Reason::WrongState,
                format!("{} has not arrived yet", self.process().name()),
            )
        };
        self.process().machine().ok_or_else(missing)
    }

    /// Runs `action` on the machine, unless the guest is being saved or migrated.
    fn on_own_guest(
        &self,
        action: impl FnOnce(&SharedMachine) -> vmm_core::Result<()>,
    ) -> Result<StateAnswer, ApiError> {
        let occupation = self.process().occupation();
        self.refuse_when_busy(&occupation)?;
        let done = action(self.machine()?);
        self.process().report_run_state();
        drop(occupation);
        done.map_err(ApiError::failed)?;
        Ok(self.state())
    }

    pub(super) fn refuse_when_busy(&self, occupation: &Occupation) -> Result<(), ApiError> {
        let name = self.process().name();
        let migrating = |text: String| Err(ApiError::new(Reason::Migrating, text));
        match occupation {
            Occupation::None => Ok(()),
            Occupation::Saving(_) | Occupation::Saved(_) => Err(ApiError::new(
                Reason::WrongState,
                format!("{name} is being saved: wait for its end"),
            )),
            Occupation::Estimating => Err(ApiError::new(
                Reason::WrongState,
                format!("a migration of {name} is being estimated: try again in some seconds"),
            )),
            Occupation::Leaving(_) if occupation.doubt().is_some() => migrating(format!(
                "the migration of {name} is in doubt: see `lighter show {name}` for the way out"
            )),
            Occupation::Leaving(departure) if departure.session().is_handed_over() => {
                migrating(format!(
                    "{name} runs at {} already, and its memory follows it: wait for the end, or \
                     see `lighter show {name}`",
                    departure.destination()
                ))
            }
            Occupation::Leaving(departure) => migrating(format!(
                "{name} is being migrated to {}: `lighter cancel {name}` first, or wait for its end",
                departure.destination()
            )),
            Occupation::Arriving(arrival) if arrival.has_arrived() => Ok(()),
            Occupation::Arriving(arrival) if arrival.is_fetching() => migrating(format!(
                "{name} runs here, and a part of its memory is still at its source: wait until all of it is here"
            )),
            Occupation::Arriving(_) => {
                migrating(format!("{name} is on its way here: `lighter cancel {name}` stops that"))
            }
        }
    }

    /// Refuses a request that would touch memory or devices while the guest's pages are still
    /// arriving, or the guest is being handed over: its effect would be lost.
    fn refuse_when_incomplete(&self, occupation: &Occupation) -> Result<(), ApiError> {
        self.refuse_when_missing(occupation)?;
        let handed_over = |machine: &SharedMachine| machine.vm().run_state() != RunState::Running;
        match occupation {
            Occupation::Leaving(_) if handed_over(self.machine()?) => {
                self.refuse_when_busy(occupation)
            }
            _ => Ok(()),
        }
    }

    /// Refuses a request that reads memory, itself or through a device, of which pages may be
    /// missing: it would wait until they come, which may be never.
    fn refuse_when_missing(&self, occupation: &Occupation) -> Result<(), ApiError> {
        match occupation {
            Occupation::Arriving(_) => self.refuse_when_busy(occupation),
            _ => Ok(()),
        }
    }

    /// Presses the power button. If the guest powers off by the time `boots_again`, it boots again.
    fn press_power_button(&self, boots_again: Option<Instant>) -> Result<StateAnswer, ApiError> {
        let occupation = self.process().occupation();
        self.refuse_when_busy(&occupation)?;
        let vm = self.machine()?.vm();
        // Set before the press, because the guest may react at once.
        vm.restart_on_power_off(boots_again);
        let pressed = vm.press_power_button();
        if !matches!(pressed, Ok(ButtonPress::Delivered)) {
            vm.restart_on_power_off(None);
        }
        drop(occupation);
        match pressed.map_err(ApiError::failed)? {
            ButtonPress::Delivered => Ok(self.state()),
            ButtonPress::Ignored => {
                let name = self.process().name();
                let text = format!(
                    "{name} does not listen to its power button: it is still booting, runs without ACPI or is the built-in \
                     workload; `lighter destroy {name}` ends it, `lighter reset {name}` boots it again"
                );
                Err(ApiError::new(Reason::WrongState, text))
            }
        }
    }

    /// How the guest's memory is backed.
    fn backing(&self, machine: &SharedMachine) -> BackingInfo {
        let shape = machine.shape();
        let memory = &shape.memory;
        let merged_instead = match self.process().merging() {
            Some(Merging::Held { by }) => Some(by.clone()),
            Some(Merging::On { .. } | Merging::Off) | None => None,
        };
        BackingInfo {
            hugepages: memory.huge_pages.to_string(),
            prealloc: memory.prealloc == Prealloc::AtStart,
            numa_policy: memory.numa.to_string(),
            merge_domain: memory.merge_domain.as_ref().map(ToString::to_string),
            mergeable: machine.vm().ram().has_marks(),
            merged_instead,
            from_template: machine.vm().ram().is_from_template(),
            pinned: machine.vm().ram().is_pinned(),
            dirty_log: machine.vm().dirty_log().to_string(),
        }
    }

    /// Returns a hint if the firmware has found nothing to boot and waits.
    fn nothing_to_boot(&self) -> Option<String> {
        let name = self.process().name();
        let waits = self.process().firmware().waits();
        waits.then(|| {
            format!(
                "its firmware has found nothing to boot and waits: see `lighter console {name}`"
            )
        })
    }

    fn state(&self) -> StateAnswer {
        StateAnswer { state: self.process().guest_state() }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn disks(machine: &SharedMachine) -> Vec<DiskInfo> {
    let info = |(_, content): (_, Arc<DiskContent>)| DiskInfo {
        path: content.path().to_owned(),
        format: if content.is_image() { DiskFormat::Qcow2 } else { DiskFormat::Raw },
        bytes: content.bytes(),
        read_only: content.access() == Access::ReadOnly,
        cache: content.cache(),
        lock_reach: content.lock_reach(),
    };
    machine.disks().map(info).collect()
}

fn seed(machine: &SharedMachine) -> Vec<String> {
    let shape = machine.shape();
    let documents = shape.devices.iter().filter_map(|device| match device {
        DeviceConfig::Seed(seed) => Some(seed.names().map(str::to_owned)),
        _ => None,
    });
    documents.flatten().collect()
}

fn nets(machine: &SharedMachine) -> Vec<NetInfo> {
    machine.vm().nets().into_iter().map(NetInfo::from).collect()
}

/// The requests of the API. Calls may block for as long as their work takes, so they run on
/// blocking threads.
impl ProcessControl {
    /// Returns the guest's state and configuration.
    pub(super) fn info(&self) -> GuestInfo {
        let identity = self.process().identity();
        let machine = self.process().machine();
        let (running, detail, may_read) = {
            let occupation = self.process().occupation();
            let may_read = self.refuse_when_missing(&occupation).is_ok();
            let session = occupation.session();
            let way_out = session.and_then(MigrationSession::way_out);
            let detail = way_out.or_else(|| self.nothing_to_boot());
            (session.map(MigrationSession::id), detail, may_read)
        };
        let restarts = machine.map(|machine| machine.vm().restarts()).unwrap_or_default();
        let last = || self.process().last_migration().as_ref().map(|(id, _)| *id);
        GuestInfo {
            name: identity.name.clone(),
            uuid: machine.map_or(identity.uuid, |machine| machine.uuid()),
            pid: identity.pid,
            version: Some(VERSION.to_owned()),
            state: self.process().guest_state(),
            kind: machine.filter(|_| may_read).map_or(GuestKind::Linux, |machine| machine.kind()),
            memory_bytes: machine.map_or(0, |machine| machine.shape().memory_bytes),
            vcpus: machine.map_or(0, |machine| machine.shape().vcpus),
            disks: machine.map(disks).unwrap_or_default(),
            seed: machine.map(seed).unwrap_or_default(),
            nets: machine.map(nets).unwrap_or_default(),
            host_devices: machine.map(host_devices::infos).unwrap_or_default(),
            machine: machine.map(|machine| machine.shape().machine),
            cpu_model: machine.map(|machine| machine.shape().cpu_model.clone()),
            backing: machine.map(|machine| self.backing(machine)).unwrap_or_default(),
            labels: self.process().labels(),
            vsock: machine.and_then(|machine| machine.shape().cid()).map(|cid| VsockInfo {
                cid,
                socket: self.process().state().guest(&identity.name).vsock_socket().to_owned(),
            }),
            started_unix_ms: identity.started_unix_ms,
            on_reboot: match machine.map(|machine| machine.vm().on_reboot()) {
                Some(vmm_core::OnReboot::Restart) => OnReboot::Restart,
                Some(vmm_core::OnReboot::Stop) | None => OnReboot::Stop,
            },
            restarts: restarts.count,
            last_restart: restarts.last_reason(),
            migration_id: running.or_else(last).map(|id| id.0),
            detail,
            confinement: self.process().confinement(),
        }
    }

    /// Stops the vCPUs; succeeds if they are stopped already.
    ///
    /// # Errors
    /// If the guest is being saved or migrated, or cannot be paused; the same holds for `resume`,
    /// `stop` and `save`.
    pub(super) fn pause(&self) -> Result<StateAnswer, ApiError> {
        self.on_own_guest(|machine| machine.vm().pause())
    }

    /// Lets the vCPUs run; succeeds if they run already.
    pub(super) fn resume(&self, request: &ResumeRequest) -> Result<StateAnswer, ApiError> {
        if let Ok(guest) = self.paused_since(None) {
            self.process().release_after_save(&guest);
        }
        self.on_own_guest(|machine| {
            if request.unsafe_disks {
                machine.vm().trust_disks()?;
            }
            machine.vm().resume()
        })
    }

    /// Presses the power button.
    ///
    /// # Errors
    /// As for [`Self::pause`], or if the guest does not listen to the button.
    pub(super) fn shut_down(&self) -> Result<StateAnswer, ApiError> {
        self.press_power_button(None)
    }

    /// Presses the power button, and boots the guest again once it has powered off.
    ///
    /// # Errors
    /// As for [`Self::shut_down`], or if the guest cannot be booted again on this host.
    pub(super) fn reboot(&self, request: &RebootRequest) -> Result<StateAnswer, ApiError> {
        self.refuse_when_busy(&self.process().occupation())?;
        self.machine()?.vm().expect_bootable().map_err(ApiError::failed)?;
        let timeout = Duration::from_millis(request.timeout_ms).min(REBOOT_TIMEOUT_MAX);
        self.press_power_button(Some(Instant::now() + timeout))
    }

    /// Resets the guest, even during a migration.
    ///
    /// # Errors
    /// If the guest does not run, is still arriving, or cannot be booted again on this host.
    pub(super) fn reset(&self) -> Result<StateAnswer, ApiError> {
        self.refuse_when_incomplete(&self.process().occupation())?;
        // Not `on_own_guest`: a migration continues, and sends every page again.
        let vm = self.machine()?.vm();
        vm.reset().map_err(ApiError::failed)?;
        self.process().events().restarts(&vm.restarts());
        Ok(self.state())
    }

    /// Ends the guest, and its process with it, once the answer is on its way.
    pub(super) fn stop(&self) -> Result<StateAnswer, ApiError> {
        let occupation = self.process().occupation();
        // A guest that has ended needs no more memory, and one whose migration is over has no other
        // way to end.
        let may_end = |arrival: &Arrival| arrival.is_fetching() || arrival.is_over();
        if !matches!(&*occupation, Occupation::Arriving(arrival) if may_end(arrival)) {
            self.refuse_when_busy(&occupation)?;
        }
        drop(occupation);
        self.process().end(Ending::Asked);
        Ok(StateAnswer { state: GuestState::Ended })
    }

    /// Returns the report of the built-in workload.
    ///
    /// # Errors
    /// If the guest is not the workload, its report is damaged, or its memory is still arriving.
    pub(super) fn workload(&self) -> Result<WorkloadInfo, ApiError> {
        self.refuse_when_missing(&self.process().occupation())?;
        workload::report(self.machine()?)
    }

    /// Returns the files from which the guest boots when it resets.
    ///
    /// # Errors
    /// If the guest has not arrived yet.
    pub(super) fn boot_files(&self) -> Result<BootFiles, ApiError> {
        let record = self.machine()?.vm().boot_record();
        let files = record.iter().flat_map(BootRecord::files);
        let info = |file: &FileRecord| {
            let digest = format!("{:032x}", file.digest);
            BootFileInfo { path: file.path(), digest }
        };
        Ok(BootFiles { files: files.map(info).collect() })
    }

    /// Steers the built-in workload.
    ///
    /// # Errors
    /// As for [`Self::workload`].
    pub(super) fn control_workload(
        &self,
        control: &WorkloadControl,
    ) -> Result<WorkloadControlled, ApiError> {
        // This writes to the guest's memory, even while the guest is paused. While the lock is
        // held, no pages of it are freed, and no migration starts.
        let occupation = self.process().occupation();
        self.refuse_when_incomplete(&occupation)?;
        workload::control(self.machine()?, control)
    }

    /// Returns the guest's state for memory optimization, without waiting for the guest: without
    /// its balloon while its memory is still arriving.
    ///
    /// # Errors
    /// If the guest has not arrived yet.
    pub(super) fn memory(&self) -> Result<GuestMemory, ApiError> {
        let machine = self.machine()?;
        let process = self.process();
        let (is_being_saved, may_read) = {
            let occupation = process.occupation();
            let is_being_saved =
                matches!(&*occupation, Occupation::Saving(_) | Occupation::Saved(_));
            (is_being_saved, self.refuse_when_missing(&occupation).is_ok())
        };
        Ok(GuestMemory {
            name: process.name().clone(),
            pid: process.identity().pid,
            state: process.guest_state(),
            is_being_saved,
            memory_bytes: machine.shape().memory_bytes,
            backing: self.backing(machine),
            labels: process.labels(),
            since_boot_ms: machine.vm().since_boot().map(milliseconds),
            balloon: may_read.then(|| balloon::level(machine.vm())).flatten(),
        })
    }

    /// Applies a treatment to parts of the guest's memory: merges, splits, collapses, shares or
    /// frees them.
    ///
    /// # Errors
    /// As for [`Self::pause`], or if a part is not memory of the guest.
    pub(super) fn treat_memory(
        &self,
        request: &TreatmentRequest,
    ) -> Result<TreatedMemory, ApiError> {
        treatment::treat(self.machine()?.vm(), request, || {
            let occupation = self.process().occupation();
            self.refuse_when_busy(&occupation)?;
            Ok(occupation)
        })
    }

    /// Starts a survey of the guest's pages.
    ///
    /// # Errors
    /// As for [`Self::pause`]; if a survey is running already; or if the request is invalid.
    pub(super) fn begin_survey(&self, request: &SurveyRequest) -> Result<SurveyStatus, ApiError> {
        self.machine()?;
        self.refuse_when_busy(&self.process().occupation())?;
        self.process().surveys().begin(&self.0, request)?;
        self.survey()
    }

    /// Returns the state of the last survey.
    ///
    /// # Errors
    /// Never: without a survey, the state is `none`.
    pub(super) fn survey(&self) -> Result<SurveyStatus, ApiError> {
        Ok(self.process().surveys().status())
    }

    /// Returns what the last survey found in each chunk.
    ///
    /// # Errors
    /// If no survey is done, or `domain` is a table of another domain.
    pub(super) fn surveyed(&self, domain: &SurveyDomain<'_>) -> Result<SurveyedMemory, ApiError> {
        self.process().surveys().chunks(self.machine()?.vm().ram(), &domain.domain)
    }

    /// Returns the state of the balloon, with new statistics if the guest sends some in time.
    ///
    /// # Errors
    /// If the guest has no balloon, or its memory is still arriving.
    pub(super) fn balloon(&self) -> Result<BalloonInfo, ApiError> {
        self.refuse_when_missing(&self.process().occupation())?;
        balloon::balloon_info(self.machine()?, self.process().name())
    }

    /// Sets how much memory the guest should keep.
    ///
    /// # Errors
    /// As for [`Self::balloon`]; if the guest cannot have that size; or if it has been handed over.
    pub(super) fn set_balloon(&self, request: &BalloonRequest) -> Result<BalloonInfo, ApiError> {
        self.refuse_when_incomplete(&self.process().occupation())?;
        balloon::set_target(self.machine()?, self.process().name(), request)?;
        // If it was handed over meanwhile, it is not known here whether the target went with it.
        self.refuse_when_incomplete(&self.process().occupation())?;
        self.balloon()
    }

    /// Grows a disk.
    ///
    /// # Errors
    /// As for [`Self::pause`], or if the disk cannot have that size.
    pub(super) fn grow_disk(&self, request: &DiskSizeRequest) -> Result<DiskInfo, ApiError> {
        let (machine, name) = (self.machine()?, self.process().name());
        // The guest's disk stands still for as long as it takes to make the new size durable, and
        // so do requests that need `occupation`: what the guest has written goes first.
        growing::flush(machine, request)?;
        let occupation = self.process().occupation();
        self.refuse_when_busy(&occupation)?;
        growing::grow(machine, name, request)?;
        drop(occupation);
        let disk = disks(machine).into_iter().find(|disk| disk.path == request.path);
        disk.ok_or_else(|| growing::no_disk(name, request))
    }

    /// Returns the most recent output of the serial console.
    ///
    /// # Errors
    /// If the guest has not arrived yet.
    pub(super) fn scrollback(&self) -> Result<Arc<Scrollback>, ApiError> {
        Ok(Arc::clone(self.machine()?.scrollback()))
    }

    /// Types on the serial console.
    ///
    /// # Errors
    /// If the guest has not arrived yet, or has been handed over.
    pub(super) fn type_on_console(&self, input: &ConsoleInput) -> Result<ConsoleTaken, ApiError> {
        self.refuse_when_incomplete(&self.process().occupation())?;
        let bytes = [input.input.as_bytes(), &input.bytes].concat();
        let taken_bytes = self.machine()?.vm().console_input(&bytes);
        Ok(ConsoleTaken { taken_bytes })
    }
}
