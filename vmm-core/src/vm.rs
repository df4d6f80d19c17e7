//! The virtual machine.

use std::fmt;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, Msrs, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm, VmFd};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::boot::{self, BootRecord, BootSource, Origin, WantedFile};
use crate::cpuid::msr;
use crate::devices::{
    Cmos, IrqLine, MachineKind, PmTimer, Ports, PowerHardware, SERIAL_IRQ, SerialPort,
};
use crate::dirty::{DirtyLog, Tracker};
use crate::error::{Error, KvmContext, Result};
use crate::event::{EventQueue, StopReason};
use crate::memory::{GuestRam, TemplateImage};
use crate::shape::{VmShape, cpuid_table};
use crate::state::{self, ClockPair, StateError, TscCarry, VmState};
use crate::sys::kvm;
use crate::vcpu::{FaultCounter, Machine, Throttle, Throttled, Vcpu, VcpuThread};
use crate::virtio::net::NetStatus;
use crate::virtio::{Bus, DeviceError, DiskContent};

mod balloon;
#[cfg(test)]
mod device_tests;
mod dirty;
mod disks;
#[cfg(test)]
mod earlier_tests;
#[cfg(feature = "fuzzing")]
mod fuzzing;
mod hot_plug;
mod identity;
#[cfg(test)]
mod many_vcpus_tests;
#[cfg(test)]
mod net_tests;
#[cfg(test)]
mod pci_tests;
mod power;
mod sharing;
#[cfg(test)]
pub(crate) mod tests;
mod variables;

pub use balloon::BalloonStatus;
pub use hot_plug::Ejected;
pub use power::Restarts;

/// Where Intel processors without unrestricted guest support keep KVM's own task segment: three
/// pages in the hole below 4 GiB (`KVM_SET_TSS_ADDR`).
const TSS_ADDRESS: usize = 0xfffb_d000;
/// Where they keep KVM's identity map: one page in the same hole (`KVM_SET_IDENTITY_MAP_ADDR`).
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// Whether a guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// No vCPU is in the guest; it can be saved, loaded, and resumed.
    Paused,
    /// The guest runs.
    Running,
    /// The guest has ended and will not run again.
    Stopped,
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Paused => "paused",
            Self::Running => "running",
            Self::Stopped => "stopped",
        })
    }
}

/// Options of a VM in this process, which do not move with its guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VmOptions {
    /// How KVM logs the pages that the guest writes.
    pub dirty_log: DirtyLog,
    /// Whether the host's kernel carries the frames of network devices (vhost-net), if it can.
    pub vhost_net: bool,
}

/// A virtual machine. All methods may be called from any thread; those that change whether the
/// guest runs wait for each other. Dropping the VM ends the guest.
///
/// A new VM is paused and empty: [`Vm::boot`] or [`Vm::load_state`] gives it something to run.
#[derive(Debug)]
pub struct Vm {
    shape: Mutex<Arc<VmShape>>,
    dirty_log: DirtyLog,
    /// The guest's identity, for its SMBIOS tables.
    uuid: OnceLock<Uuid>,
    vcpus: Vec<VcpuThread>,
    /// Before `machine`, which has the VM.
    throttle: Throttle,
    machine: Arc<Machine>,
    dirty: Mutex<Tracker>,
    /// Where the search for a free slot starts.
    next_slot: AtomicUsize,
    /// What the guest was booted from.
    origin: Mutex<Option<Origin>>,
    /// The state in which the VM was created, which is that of a machine after a reset.
    pristine: Option<Box<VmState>>,
    /// Locked by calls that change whether the guest runs, or save its state.
    control: Mutex<()>,
    /// Whether the guest was last ordered to run; `machine` knows if it has ended since.
    should_run: AtomicBool,
}

impl Vm {
    /// Creates a paused VM after checking that this host can run it. The guest's serial output goes
    /// to `console`, byte by byte; the guest waits during each write.
    ///
    /// # Errors
    /// As [`VmShape::check_host`]; the error of a KVM or system call.
    pub fn create(shape: &VmShape, console: Box<dyn Write + Send>) -> Result<Self> {
        Self::create_with(shape, &VmOptions::default(), console)
    }

    /// As [`Vm::create`], with `options` for this process.
    ///
    /// # Errors
    /// As [`Vm::create`]; [`Error::MissingCapability`] or [`Error::DirtyRing`] for a dirty log that
    /// this host does not support.
    pub fn create_with(
        shape: &VmShape,
        options: &VmOptions,
        console: Box<dyn Write + Send>,
    ) -> Result<Self> {
        Self::create_from(shape, options, None, console)
    }

    /// As `create_with`, with the content of the `template` as initial memory.
    pub(crate) fn create_from(
        shape: &VmShape,
        options: &VmOptions,
        template: Option<&TemplateImage>,
        console: Box<dyn Write + Send>,
    ) -> Result<Self> {
        shape.check_host()?;
        let kvm = Kvm::new().map_err(Error::OpenKvm)?;
        let vm = Arc::new(new_vm(&kvm)?);
        let ram = Arc::new(GuestRam::new(shape.layout()?, &shape.memory, template)?);
        for (slot, region) in (0..).zip(ram.mappings()) {
            kvm::set_memory_region(&vm, slot, 0, region).call("KVM_SET_USER_MEMORY_REGION")?;
        }
        let serial = SerialPort::new(IrqLine::new(Arc::clone(&vm), SERIAL_IRQ), console);
        let power = PowerHardware::new(Arc::clone(&vm));
        let bus = Bus::new(&vm, &ram, shape.machine, shape.slotted(), options.vhost_net)?;
        let cmos = (shape.machine == MachineKind::Pci).then(|| Cmos::new(ram.layout()));
        let ports = Ports::new(serial, power, PmTimer::new(Arc::clone(&vm)), cmos);
        let rings = options.dirty_log.rings(&vm, ram.layout())?;
        let machine = Machine::new(Arc::clone(&vm), Arc::clone(&ram), ports, bus, rings.clone());
        let machine = Arc::new(machine);
        let (vcpus, counters) = start_vcpus(&kvm, shape, &machine)?;
        let dirty = Mutex::new(Tracker::new(rings, vm, ram));
        let last_slot = shape.slotted().map(|(slot, _)| slot).max();
        let mut vm = Self {
            shape: Mutex::new(Arc::new(shape.clone())),
            dirty_log: options.dirty_log,
            uuid: OnceLock::new(),
            vcpus,
            throttle: Throttle::new(machine.mailboxes(), counters),
            machine,
            dirty,
            next_slot: AtomicUsize::new(last_slot.map_or(0, |slot| slot + 1)),
            origin: Mutex::new(None),
            pristine: None,
            control: Mutex::new(()),
            should_run: AtomicBool::new(false),
        };
        vm.pristine = Some(Box::new(vm.save_state()?));
        Ok(vm)
    }

    /// The shape from which this VM was created.
    pub fn shape(&self) -> Arc<VmShape> {
        Arc::clone(&self.shape.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How KVM logs the pages that the guest writes.
    pub fn dirty_log(&self) -> DirtyLog {
        self.dirty_log
    }

    /// The state of the guest's network devices, in the order of the shape.
    pub fn nets(&self) -> Vec<NetStatus> {
        self.machine.bus.nets()
    }

    /// The contents of the guest's disks, with their indexes among its devices.
    pub fn disks(&self) -> Vec<(usize, Arc<DiskContent>)> {
        self.machine.bus.disks()
    }

    /// The guest's memory.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.machine.ram
    }

    /// The guest's events.
    pub fn events(&self) -> &Arc<EventQueue> {
        &self.machine.events
    }

    /// Whether the guest runs. Never blocks.
    pub fn run_state(&self) -> RunState {
        match self.machine.stopped() {
            Some(_) => RunState::Stopped,
            None if self.should_run.load(Ordering::Acquire) => RunState::Running,
            None => RunState::Paused,
        }
    }

    /// Loads the program that a new guest will run. The guest stays paused.
    ///
    /// # Errors
    /// [`Error::WrongState`] unless paused; [`crate::boot::BootError`] if the source cannot be
    /// loaded.
    pub fn boot(&self, source: &BootSource) -> Result<()> {
        let _control = self.control();
        self.expect(RunState::Paused, "boot")?;
        let origin = Origin::open(source, self.ram().bytes())?;
        self.machine.bus.place_host_devices(0);
        boot::boot(self, &origin)?;
        *self.origin() = Some(origin);
        self.machine.resets.note_boot();
        Ok(())
    }

    /// Stops the vCPUs, waits until none is in the guest and no instruction is half done, and then
    /// stops the devices: afterwards nothing writes to the guest's memory, except for devices of
    /// the host ([`crate::vfio`]), which nothing stops. Returns at once if the
    /// guest is paused. Disks stay locked: see [`Vm::release`].
    ///
    /// # Errors
    /// [`Error::WrongState`] if the guest has ended, even if it ended during this call.
    pub fn pause(&self) -> Result<()> {
        let _control = self.control();
        if self.should_run.load(Ordering::Acquire) {
            let parked = self.park_all();
            self.settle_reset();
            self.should_run.store(false, Ordering::Release);
            parked?;
        }
        self.expect(RunState::Paused, "pause")
    }

    /// Serves the guest's vsock device to programs of the host at `path`, a Unix socket, whenever
    /// the guest runs in this process: see the user guide. Does nothing without such a device.
    ///
    /// # Errors
    /// If a device's thread has ended.
    pub fn listen_at(&self, path: &Path) -> Result<()> {
        Ok(self.machine.bus.listen_at(path)?)
    }

    /// Takes the resources that only one copy of a guest may hold, as [`Vm::resume`] does, but the
    /// guest stays paused. Does nothing if it holds them already.
    ///
    /// # Errors
    /// [`Error::WrongState`] unless paused; otherwise as [`Vm::resume`].
    pub fn take_over(&self) -> Result<()> {
        let _control = self.control();
        self.expect(RunState::Paused, "take the disks and networks")?;
        Ok(self.machine.bus.take_over()?)
    }

    /// Releases the resources that only one copy of a guest may hold, which are the locks on its
    /// disks and its place in its networks, so that another copy can be resumed. [`Vm::resume`]
    /// takes them again.
    ///
    /// # Errors
    /// [`Error::WrongState`] unless paused or stopped.
    pub fn release(&self) -> Result<()> {
        let _control = self.control();
        if self.run_state() == RunState::Running {
            return self.expect(RunState::Paused, "give up the disks and networks");
        }
        Ok(self.machine.bus.release()?)
    }

    /// Makes the next [`Vm::resume`] or [`Vm::take_over`] accept the disks as they are, even if
    /// they have been written since the guest had them. The caller must know that they still fit
    /// what the guest caches of them in memory.
    ///
    /// # Errors
    /// If a device's thread has ended.
    pub fn trust_disks(&self) -> Result<()> {
        let _control = self.control();
        Ok(self.machine.bus.trust_disks()?)
    }

    /// Runs the guest. Returns at once if it runs already. From now on, disks that the guest writes
    /// are locked against all other users, disks that it only reads are locked against writers, and
    /// its taps carry its frames.
    ///
    /// # Errors
    /// [`Error::WrongState`] if the guest has ended; [`crate::DeviceError::Network`];
    /// [`crate::DeviceError::DiskInUse`] if another user has locked one of its disks and keeps it
    /// locked for some seconds; [`crate::DeviceError::DiskWritten`] if a disk has been written
    /// since the guest released it. The guest then stays paused.
    pub fn resume(&self) -> Result<()> {
        let _control = self.control();
        if self.should_run.load(Ordering::Acquire) {
            return self.expect(RunState::Running, "resume");
        }
        self.expect(RunState::Paused, "resume")?;
        self.machine.bus.take_over()?;
        self.machine.bus.resume()?;
        self.should_run.store(true, Ordering::Release);
        self.run_all();
        Ok(())
    }

    /// Slows the guest down by `percent`, at most 99, for the duration of `lease` or until the next
    /// call: vCPUs rest for a share of the time, those that write most before others, or all alike
    /// where KVM does not count what each of them writes. 0 lets all run at full speed. A caller
    /// renews the lease, so that a guest whose caller has failed is not left slow.
    ///
    /// # Errors
    /// [`Error::StartThrottle`] if the system starts no thread for it.
    pub fn throttle(&self, percent: u8, lease: Duration) -> Result<Throttled> {
        self.throttle.set(percent, lease).map_err(Error::StartThrottle)
    }

    /// By how much the guest is slowed down now, in percent.
    #[cfg(test)]
    pub(crate) fn throttle_percent(&self) -> u8 {
        self.throttle.percent()
    }

    /// Ends the guest, unless it has ended already, and waits until its vCPUs' threads have ended.
    pub fn stop(&self) {
        let _control = self.control();
        self.machine.stop(StopReason::Asked);
        self.vcpus.iter().for_each(VcpuThread::exit);
        // A device whose thread has ended does nothing any more either.
        let _ = self.machine.bus.pause();
    }

    /// Types `bytes` on the guest's serial console; returns how many fit into its buffer.
    pub fn console_input(&self, bytes: &[u8]) -> usize {
        self.machine.ports.serial().input(bytes)
    }

    /// Saves everything of the guest but its memory, and makes durable what it has written to its
    /// disks. This may write to the guest's memory, so collect dirty pages once more afterwards.
    ///
    /// # Errors
    /// [`Error::WrongState`] unless paused; [`StateError`]; [`crate::DeviceError::Flush`];
    /// [`crate::DeviceError::HostDevices`]; the error of a KVM call.
    pub fn save_state(&self) -> Result<VmState> {
        let _control = self.control();
        self.expect(RunState::Paused, "save")?;
        self.expect_no_host_devices()?;
        self.machine.bus.settle()?;
        self.state()
    }

    /// As [`Vm::save_state`], but makes nothing durable. For a caller that only measures, or that
    /// flushes the disks concurrently ([`DiskContent::sync`]) before it uses the state.
    ///
    /// # Errors
    /// As [`Vm::save_state`].
    pub fn save_without_flush(&self) -> Result<VmState> {
        let _control = self.control();
        self.expect(RunState::Paused, "save")?;
        self.expect_no_host_devices()?;
        self.state()
    }

    fn state(&self) -> Result<VmState> {
        // Each vCPU's TSC is computed for the instant at which this clock was read.
        let clock = state::save_clock(&self.machine.vm)?;
        let pair = ClockPair::of(&clock);
        let save = move |vcpu: &mut Vcpu| state::save_vcpu(vcpu, pair);
        let answers: Vec<_> = self.vcpus.iter().map(|vcpu| vcpu.submit(save)).collect();
        let vcpus: Result<Vec<_>> = answers.into_iter().map(|answer| answer.wait()?).collect();
        let (devices, mut pci) = self.machine.bus.save()?;
        if let (Some(pci), Some(cmos)) = (&mut pci, self.machine.ports.cmos()) {
            pci.cmos_index = cmos.index();
        }
        Ok(VmState {
            vcpus: vcpus?,
            irqchip: state::save_irqchip(&self.machine.vm)?,
            clock,
            serial: self.machine.ports.serial().save(),
            power: self.machine.ports.power().save(),
            boot: self.boot_record(),
            on_reboot: self.machine.resets.policy(),
            devices,
            pci,
        })
    }

    /// Replaces everything of the guest but its memory. The guest stays paused.
    ///
    /// # Errors
    /// [`Error::WrongState`] unless paused; [`StateError`]; [`DeviceError::State`]; the error of a
    /// KVM call. After an error the VM is unusable: drop it.
    pub fn load_state(&self, state: &VmState) -> Result<()> {
        let _control = self.control();
        self.expect(RunState::Paused, "load a state")?;
        if state.vcpus.len() != self.vcpus.len() {
            let (state, vm) = (state.vcpus.len(), self.vcpus.len());
            return Err(StateError::VcpuCount { state, vm }.into());
        }
        let vm = &self.machine.vm;
        state::load_clock(vm, &state.clock)?;
        let saved = ClockPair::of(&state.clock);
        let now = ClockPair::of(&state::save_clock(vm)?);
        let carry = saved.zip(now).map(|(saved, now)| TscCarry { saved_ns: saved.guest_ns, now });
        self.load_hardware(state, carry)?;
        *self.origin() = state.boot.as_ref().map(Origin::from_record);
        self.machine.resets.set_policy(state.on_reboot);
        self.machine.report_ejections();
        Ok(())
    }

    /// Returns what the guest boots from when it resets; `None` for a guest that was not booted.
    pub fn boot_record(&self) -> Option<BootRecord> {
        self.origin().as_ref().map(Origin::record)
    }

    /// Returns requests for the files that a reboot needs and that this process has not opened. A
    /// reboot then waits for the holder of the requests to open them.
    pub fn wanted_boot_files(&self) -> Vec<WantedFile> {
        let bytes_max = self.ram().bytes();
        self.origin().as_ref().map_or_else(Vec::new, |origin| origin.wanted_files(bytes_max))
    }

    /// Loads the state of vCPUs, devices and interrupt controllers.
    fn load_hardware(&self, state: &VmState, carry: Option<TscCarry>) -> Result<()> {
        let ports = &self.machine.ports;
        let answers: Vec<_> = self
            .vcpus
            .iter()
            .zip(state.vcpus.iter().cloned())
            .map(|(vcpu, state)| vcpu.submit(move |vcpu| state::load_vcpu(vcpu, &state, carry)))
            .collect();
        answers.into_iter().try_for_each(|answer| answer.wait()?)?;
        ports.serial().load(&state.serial).map_err(DeviceError::State)?;
        ports.power().load(&state.power);
        if let (Some(pci), Some(cmos)) = (&state.pci, ports.cmos()) {
            cmos.select(pci.cmos_index);
        }
        self.machine.bus.load(&state.devices, state.pci.as_ref())?;
        state::load_irqchip(&self.machine.vm, &state.irqchip)?;
        // The controllers save only edges, so a level has to be driven again.
        ports.power().drive_sci();
        Ok(())
    }

    /// Runs `job` on the thread of a vCPU while it is parked.
    pub(crate) fn on_vcpu<T: Send + 'static>(
        &self,
        index: u8,
        job: impl FnOnce(&mut Vcpu) -> T + Send + 'static,
    ) -> Result<T> {
        let vcpu = self.vcpus.get(usize::from(index)).ok_or(Error::VcpuThreadGone(index))?;
        vcpu.submit(job).wait()
    }

    /// Lets the vCPUs into the guest.
    fn run_all(&self) {
        self.machine.ports.serial().thaw();
        self.vcpus.iter().for_each(VcpuThread::run);
        if self.machine.stopped().is_some() || self.machine.resets.is_due() {
            // A vCPU ended or reset the guest while others were still being started.
            self.vcpus.iter().for_each(VcpuThread::ask_to_park);
        }
    }

    fn park_all(&self) -> Result<()> {
        self.vcpus.iter().for_each(VcpuThread::ask_to_park);
        self.vcpus.iter().for_each(VcpuThread::wait_parked);
        self.machine.ports.serial().freeze();
        Ok(self.machine.bus.pause()?)
    }

    fn control(&self) -> MutexGuard<'_, ()> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn origin(&self) -> MutexGuard<'_, Option<Origin>> {
        self.origin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dirty(&self) -> MutexGuard<'_, Tracker> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self, wanted: RunState, action: &'static str) -> Result<()> {
        let state = self.run_state();
        if state == wanted { Ok(()) } else { Err(Error::WrongState { action, state }) }
    }
}

/// Creates a VM with in-kernel interrupt controllers and timer.
///
/// `KVM_CAP_X2APIC_API` stays off, as in QEMU for guests of up to 255 vCPUs. It serves APIC IDs of
/// more than 8 bits, which no guest has ([`crate::VCPUS_MAX`]), and it changes the format of the ID
/// in `KVM_GET_LAPIC`, so that a lighter without it could not load the saved guest. Its other half,
/// a broadcast quirk, concerns the destination 255 of interrupts that a device sends to x2APICs,
/// which is no vCPU's ID either. Guests can still use their x2APICs.
fn new_vm(kvm: &Kvm) -> Result<VmFd> {
    let vm = kvm::create_vm(kvm).call("KVM_CREATE_VM")?;
    vm.set_identity_map_address(IDENTITY_MAP_ADDRESS).call("KVM_SET_IDENTITY_MAP_ADDR")?;
    vm.set_tss_address(TSS_ADDRESS).call("KVM_SET_TSS_ADDR")?;
    vm.create_irq_chip().call("KVM_CREATE_IRQCHIP")?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).call("KVM_CREATE_PIT2")?;
    Ok(vm)
}

/// Creates the vCPUs and starts their threads, parked; with a counter of each vCPU's faults, if KVM
/// has them.
fn start_vcpus(
    kvm: &Kvm,
    shape: &VmShape,
    machine: &Arc<Machine>,
) -> Result<(Vec<VcpuThread>, Option<Vec<FaultCounter>>)> {
    let vm = &machine.vm;
    let xsave_bytes = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
    let mut indices = None;
    let mut fds = Vec::new();
    for index in 0..shape.vcpus {
        let fd = vm.create_vcpu(index.into()).vcpu_call(index, "KVM_CREATE_VCPU")?;
        let table = cpuid_table(&shape.cpuid, index, shape.vcpus)?;
        if let Some(rings) = &machine.rings {
            rings.add(&fd, index)?;
        }
        fd.set_cpuid2(&table).vcpu_call(index, "KVM_SET_CPUID2")?;
        if indices.is_none() {
            indices = Some(state::saved_msrs(kvm, &fd, shape)?);
        }
        state::load_msrs(&fd, index, &shape.feature_msrs)?;
        fds.push((index, fd));
    }
    let msrs: Msrs = msr::msr_list(&indices.unwrap_or_default())
        .ok_or_else(|| StateError::Malformed("too many msrs".into()))?;
    let counters = fds.iter().map(|(_, fd)| FaultCounter::open(fd)).collect();
    let threads: Result<Vec<_>> = fds
        .into_iter()
        .map(|(index, fd)| {
            VcpuThread::start(Vcpu::new(fd, index, msrs.clone(), xsave_bytes), machine)
        })
        .collect();
    Ok((threads?, counters))
}
