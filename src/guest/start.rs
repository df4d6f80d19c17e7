//! How a guest process starts, runs and ends: `run`, `start`, `restore` and `incoming`.

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::runtime::{Builder, Runtime};
use uuid::Uuid;
use vmm_core::memory::{MergeDomain, MissingPages};
use vmm_core::snapshot::SavedDisks;
use vmm_core::vfio::HostDevice;
use vmm_core::virtio::block::{Access, BlockConfig, with_disks_below};
use vmm_core::{DirtyLog, VmOptions};

use super::api::{readonly_router, router};
use super::arriving::{self, Arrival, ArrivalMeans};
use super::before_start::BeforeStart;
use super::console::Console;
use super::control::ProcessControl;
use super::ending::Ending;
use super::machine::{Machine, SharedMachine};
use super::merging::Merging;
use super::plan::{self, Plan};
use super::process::GuestProcess;
use super::saved;
use super::unconfined::Unconfined;
use super::{addresses, background, host_devices, variables};
use crate::api::server::{Audience, Server};
use crate::api::types::{Confinement, GuestKind, LandlockState, SeccompState};
use crate::cli::definition::StartArgs;
use crate::cli::guest::{BackgroundArgs, RestoreArgs, RunArgs};
use crate::cli::host::IncomingArgs;
use crate::cli::isolation::{IsolationArgs, SeccompMode};
use crate::cli::spec::GuestSpec;
use crate::cli::spec::SwitchArg;
use crate::confinement::{self, ArrivingDisks, Files, Means};
use crate::definitions::Document;
use crate::departures::DepartedDisks;
use crate::ended::Ended;
use crate::exit::Exit;
use crate::names::GuestName;
use crate::other_host::{Occasion, OtherHost};
use crate::output;
use crate::saved_disks;
use crate::state_dir::{GuestClaim, GuestDir, StateDir};
use crate::terminal::{forward_input, is_at_terminal};
use crate::verbs::console;
use crate::verbs::session::block_on;
use crate::whereabouts::{self, Whereabouts};

/// Pause before input for which the guest had no room is typed again.
const TYPE_PAUSE: Duration = Duration::from_millis(20);

/// Threads for the API and a migration's network side; vCPUs and page work have their own.
const WORKERS_MAX: usize = 4;

/// Carries out `lighter run`.
///
/// # Errors
/// If the guest cannot be started, or crashed.
pub(crate) fn run(state: &StateDir, args: &RunArgs) -> Result<Exit> {
    let spec = match &args.file {
        None => args.spec.clone(),
        Some(file) => {
            let spec = Document::read(file)?.spec;
            GuestSpec { name: args.spec.name.clone().or(spec.name), ..spec }
        }
    };
    if let Some(name) = &spec.name {
        warn_of_namesake(state, name);
    }
    // Of a namesake there was a warning.
    let warned = |ended: &Ended| spec.name.as_ref() == Some(&ended.name);
    let before = BeforeStart::new(state, spec.written_disks(), None, warned)?;
    launch(state, &spec, &args.background, (args.isolation, before))
}

/// Carries out `lighter start`.
///
/// # Errors
/// If the guest is not defined, may run on another host, cannot be started, or crashed.
pub(crate) fn start_defined(state: &StateDir, args: &StartArgs) -> Result<Exit> {
    let spec = state.definitions().expect(&args.name)?.spec?;
    let isolation = IsolationArgs::from_environment()?;
    let mut forced = None;
    if is_to_be_asked_for(state, &args.name) {
        let whereabouts = Whereabouts::of(state, &args.name)?;
        let start = format!("start {}", args.name);
        expect_here(state, &args.name, whereabouts, (args.force, &start))?;
        forced = args.force.then_some(&args.name);
    }
    let known = |ended: &Ended| ended.name == args.name;
    let before = BeforeStart::new(state, spec.written_disks(), forced, known)?;
    launch(state, &spec, &BackgroundArgs { detach: true }, (isolation, before))
}

/// Refuses a guest that may be on another host, unless the user forces the start. If another host
/// says that it has the guest, force does not help. `start` is the command that starts it here
/// anyway.
fn expect_here(
    state: &StateDir,
    name: &GuestName,
    whereabouts: Whereabouts,
    (force, start): (bool, &str),
) -> Result<()> {
    let way_out = format!("`lighter {start} --force` starts it here");
    if force {
        if let Some(other) = block_on(OtherHost::ask(state, name, Occasion::Elsewhere))? {
            other.expect_absent()?;
        }
        return Ok(());
    }
    if whereabouts == Whereabouts::Here {
        let other = block_on(OtherHost::ask(state, name, Occasion::Start))?;
        return other.map_or(Ok(()), |other| other.expect_none_since(&way_out));
    }
    let other = block_on(OtherHost::ask(state, name, Occasion::Elsewhere))?;
    whereabouts.expect_here(name, other.map(|other| other.says()).as_deref(), &way_out)
}

/// Whether to ask where a guest is before it is started. The background process does not ask again,
/// and the name of a live guest is refused anyway.
fn is_to_be_asked_for(state: &StateDir, name: &GuestName) -> bool {
    background::name().is_none() && !state.guest(name).is_live()
}

/// Warns if a guest of the same name is on another host, or saved. It may be a different guest, and
/// then all is well.
fn warn_of_namesake(state: &StateDir, name: &GuestName) {
    if !is_to_be_asked_for(state, name) {
        return;
    }
    let why = match Whereabouts::of(state, name) {
        Ok(Whereabouts::Here) => return,
        Ok(Whereabouts::Saved(why)) => {
            return output::note(format_args!(
                "warning: {name} {why}. If this is that guest, the saved memory no longer fits its disks"
            ));
        }
        Ok(Whereabouts::Unsettled(why) | Whereabouts::Elsewhere(why)) => format!("{name} {why}"),
        Err(error) => format!("{error:#}"),
    };
    output::note(format_args!(
        "warning: {why}. If this is that guest and it runs there, two copies destroy its disks; give a \
         new guest another --name"
    ));
}

fn launch(
    state: &StateDir,
    spec: &GuestSpec,
    background: &BackgroundArgs,
    (isolation, before): (IsolationArgs, BeforeStart),
) -> Result<Exit> {
    let name = background::name().or_else(|| spec.name.clone()).unwrap_or_else(GuestName::generate);
    if !before.is_nothing() {
        check(spec, &name)?;
        before.record(state)?;
    }
    if let Some(exit) = detach(state, background, &name)? {
        return Ok(exit);
    }
    if let Some(file) = &spec.template {
        // Opened once: the guest is confined to the files of the template that it starts from, even
        // if the name leads to another one later.
        let template = saved::open_template(file, &name)?;
        let disks = plan::disks(spec)
            .with_context(|| format!("cannot start {name} from {}", file.display()))?;
        let mut of_template = template.shape().clone();
        of_template.identify_disks();
        let known: Vec<_> = disks.iter().chain(of_template.disks()).cloned().collect();
        let uuid = spec.identity();
        let domain = spec.memory_config().merge_domain;
        let life = Life::begin(state, (&name, uuid), isolation, domain.as_ref(), |mut files| {
            let disks = spec.disk.iter().filter_map(|disk| disk.path.canonicalize().ok());
            disks.for_each(|disk| files.add_disk(&disk));
            // The template names its own disks and kernel.
            let boot = template.state().boot.as_ref();
            Ok(files.and_devices(template.shape()).and_boot_record(boot).and_template(file))
        })?;
        let console = life.console();
        let machine = saved::start_clone(spec, &template, (name, uuid), (disks, &known), &console)?;
        return life.lead(Arc::new(machine), &console);
    }
    let plan = Plan::new(spec, name)?;
    let devices: Vec<_> = spec.device.iter().map(|device| device.address).collect();
    let devices = HostDevice::open_all(&devices);
    let devices = devices.with_context(|| format!("cannot run {}", plan.name))?;
    addresses::expect_free(state, &plan.name, plan.shape.nets())?;
    let uuid = spec.identity();
    let domain = plan.shape.memory.merge_domain.as_ref();
    let life = Life::begin(state, (&plan.name, uuid), isolation, domain, |files| {
        Ok(files.and_devices(&plan.shape).and_boot(&plan.boot))
    })?;
    let console = life.console();
    let options = life.vm_options(spec.dirty_log);
    let name = plan.name.clone();
    let machine = Machine::create(name, uuid, &plan.shape, &options, &console)?;
    let cannot = || format!("cannot run {}", plan.name);
    if !devices.is_empty() {
        machine.vm().prepare_for_host_device().with_context(cannot)?;
    }
    for device in devices {
        machine.vm().insert_host_device(device).with_context(cannot)?;
    }
    variables::boot(state, &plan.name, machine.vm(), &plan.boot)?;
    machine.vm().set_on_reboot(plan.on_reboot);
    life.lead(Arc::new(machine), &console)
}

/// Checks a guest without opening its disks.
fn check(spec: &GuestSpec, name: &GuestName) -> Result<()> {
    if let Some(file) = &spec.template {
        saved::open_template(file, name)?;
    }
    plan::check(spec, name).with_context(|| format!("cannot run {name}"))
}

/// Carries out `lighter restore`.
///
/// # Errors
/// If the file is not a saved guest, or the guest cannot be started here, or crashed.
pub(crate) fn restore(state: &StateDir, args: &RestoreArgs) -> Result<Exit> {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => saved::name_of(&args.file)?,
    };
    let mut forced = None;
    if is_to_be_asked_for(state, &name) {
        let whereabouts = match Whereabouts::of(state, &name)? {
            // As it should be after a save, but another host may have the guest since.
            Whereabouts::Saved(_) => Whereabouts::Here,
            whereabouts => whereabouts,
        };
        let start = format!("restore {} --name {name}", args.file.display());
        expect_here(state, &name, whereabouts, (args.force, &start))?;
        forced = args.force.then_some(&name);
    }
    let (mut shape, saved) = saved::read(&args.file, &name)?;
    let written = shape.disks().filter(|disk| disk.access() == Access::ReadWrite);
    let continued = |ended: &Ended| ended.name == name || saved_disks::is_in(ended, &args.file);
    let before = BeforeStart::new(state, written.map(BlockConfig::path), forced, continued)?;
    if !before.is_nothing() {
        let mut disks = shape.disks().map(BlockConfig::path);
        disks.try_for_each(plan::expect_disk).with_context(|| format!("cannot restore {name}"))?;
        before.record(state)?;
    }
    if let Some(exit) = detach(state, &args.background, &name)? {
        return Ok(exit);
    }
    // A defined guest keeps its identity however it comes back.
    let defined = state.definitions().find(&name)?.map(|it| it.uuid()).transpose();
    let defined = defined.with_context(|| format!("cannot tell the identity of {name}"))?;
    let uuid = defined.flatten().unwrap_or_else(Uuid::new_v4);
    let trust = match args.unsafe_disks {
        true => SavedDisks::Vouched,
        false => SavedDisks::Unwritten,
    };
    shape.identify_disks();
    let disks: Vec<_> = shape.disks().cloned().collect();
    addresses::expect_free(state, &name, shape.nets())?;
    let domain = shape.memory.merge_domain.as_ref();
    let life = Life::begin(state, (&name, uuid), args.isolation, domain, |files| {
        let files = files.and_devices(&shape).and_boot_record(saved.boot.as_ref());
        Ok(files.and_file(&args.file))
    })?;
    let console = life.console();
    let options = life.vm_options(None);
    let machine = saved::restore(&args.file, (name, uuid), (trust, &disks), &options, &console)?;
    life.lead(Arc::new(machine), &console)
}

/// Starts the guest in a background process, unless this is that process: for a user who detaches
/// from it now, or who watches its console here and may detach later. Without a terminal, the guest
/// runs in this process.
fn detach(state: &StateDir, args: &BackgroundArgs, name: &GuestName) -> Result<Option<Exit>> {
    if background::name().is_some() {
        background::leave_terminal()?;
        return Ok(None);
    }
    if args.detach {
        background::start(state, name)?;
        output::print_line(name)?;
        return Ok(Some(Exit::Done));
    }
    if is_at_terminal() {
        return console::attach(state, name, background::start(state, name)?).map(Some);
    }
    Ok(None)
}

/// Carries out `lighter incoming`.
///
/// # Errors
/// If the guest did not arrive, or crashed later.
pub(crate) fn incoming(state: &StateDir, args: &IncomingArgs) -> Result<Exit> {
    background::leave_terminal()?;
    let life = Life::begin(state, (&args.name, args.uuid), args.isolation, None, |mut files| {
        if args.vsock {
            files.add_vsock();
        }
        let (paths, folders) = (args.disks.clone(), args.disk_dir.clone());
        Ok(files.of_unknown_guest(ArrivingDisks { paths, folders }))
    });
    let outcome = life.and_then(|life| life.receive(args));
    if let Err(error) = &outcome {
        arriving::report_error(error);
    }
    outcome
}

/// Opens what reports accesses to missing pages; without it, memory arrives before its guest. Root
/// may have it, and users who may open `/dev/userfaultfd`.
fn missing_pages() -> Option<MissingPages> {
    let opened = MissingPages::open();
    opened.inspect_err(|cause| tracing::info!(%cause, "no post-copy: no userfaultfd")).ok()
}

/// A guest process, from the time that it holds its name.
struct Life {
    claim: GuestClaim,
    state: StateDir,
    runtime: Runtime,
    seccomp: SeccompMode,
    landlock: LandlockState,
    means: Means,
    /// Threads for a guest that is not known yet.
    unconfined: Option<Unconfined>,
    /// What reports accesses to missing pages, for a guest that arrives before its memory.
    faults: Option<MissingPages>,
    /// Disks whose content has left this host. The disks of a guest that is not known yet are
    /// checked against these once it is.
    departed: DepartedDisks,
    /// The merge domain of a guest that is known.
    merging: Merging,
}

impl Life {
    /// Claims the name, joins `domain`, and confines this process to the files that `files` adds to
    /// those of every guest.
    fn begin(
        state: &StateDir,
        (name, uuid): (&GuestName, Uuid),
        isolation: IsolationArgs,
        domain: Option<&MergeDomain>,
        files: impl FnOnce(Files) -> Result<Files>,
    ) -> Result<Self> {
        state.create()?;
        let claim = whereabouts::claim_name(state, name)?;
        state.prepare_guest(name, uuid)?;
        claim.dir().prepare_mark()?;
        let mut files = files(Files::of_guest(state, claim.dir(), uuid))?;
        if isolation.vhost_net == SwitchArg::On {
            files = files.and_vhost();
        }
        let departed = state.departures().past();
        if files.arriving().is_none() {
            let mut disks = files.disks().flat_map(with_disks_below);
            disks.try_for_each(|disk| departed.expect_here(name, &disk))?;
        }
        // Done before there are threads, so that all of them inherit it. Only the two threads of an
        // incoming guest keep their rights to files.
        let means = files.means();
        let faults = files.arriving().and_then(|_| missing_pages());
        host_devices::raise_limits();
        confinement::drop_capabilities(isolation.seccomp, means)?;
        let merging = Merging::join(domain, &state.merge_domain_file())?;
        let unconfined = files.arriving().map(Unconfined::start).transpose()?;
        let landlock = confinement::restrict_files(isolation.landlock, &files)?;
        let threads = thread::available_parallelism().map_or(1, usize::from).clamp(1, WORKERS_MAX);
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build()
            .context("cannot start")?;
        let (state, seccomp) = (state.clone(), isolation.seccomp);
        Ok(Self {
            claim,
            state,
            runtime,
            seccomp,
            landlock,
            means,
            unconfined,
            faults,
            departed,
            merging,
        })
    }

    /// Limits this process to the system calls that it needs from now on. Everything that needs
    /// others has been done.
    fn confine(&self, process: &GuestProcess) -> Result<()> {
        let seccomp = match self.seccomp {
            SeccompMode::On => SeccompState::On,
            SeccompMode::Log => SeccompState::Log,
            SeccompMode::Off => SeccompState::Off,
        };
        process.set_confinement(Confinement { seccomp, landlock: self.landlock });
        confinement::restrict_calls(self.seccomp, self.means)?;
        #[cfg(feature = "failpoints")]
        confinement::attempt::run_requested(&self.runtime)?;
        Ok(())
    }

    fn dir(&self) -> &GuestDir {
        self.claim.dir()
    }

    /// This process's stdout for a guest in the foreground, otherwise a log.
    fn console(&self) -> Console {
        if background::name().is_some() {
            Console::log(self.dir().console_log())
        } else {
            Console::stdout()
        }
    }

    /// Runs a prepared machine until its end.
    fn lead(mut self, machine: SharedMachine, console: &Console) -> Result<Exit> {
        let process = GuestProcess::new(
            &self.state,
            self.dir().name().clone(),
            machine.uuid(),
            self.runtime.handle().clone(),
        );
        let has_system = machine.kind() != GuestKind::Workload;
        let merging = std::mem::replace(&mut self.merging, Merging::Off);
        process.set_machine(Arc::clone(&machine), merging)?;
        if console.is_stdout() && has_system && !io::stdin().is_terminal() {
            forward_stdin(&machine)?;
        }
        // The lock makes clients that connect to the new socket wait until the guest runs.
        let starting = process.occupation();
        let servers = self.open(&process)?;
        self.confine(&process)?;
        machine.vm().resume().context("cannot start the guest")?;
        process.events().started();
        // Before clients hear of the guest: it leaves evidence if it dies from now on.
        process.is_here(&starting);
        drop(starting);
        if background::name().is_some() {
            background::log_to_folder(self.dir())?;
        } else if !has_system {
            output::note(format_args!(
                "{} runs the built-in workload; Ctrl-C ends it",
                self.dir().name()
            ));
        }
        drop(machine);
        self.live(&process, servers)
    }

    /// Options of a VM of this process, with this log of dirty pages.
    fn vm_options(&self, dirty_log: Option<DirtyLog>) -> VmOptions {
        let vhost_net = self.means.vhost;
        VmOptions { dirty_log: dirty_log.unwrap_or_default(), vhost_net }
    }

    /// Receives a guest and runs it until its end.
    fn receive(mut self, args: &IncomingArgs) -> Result<Exit> {
        let greeting = arriving::read_greeting()?;
        let process = GuestProcess::new(
            &self.state,
            self.dir().name().clone(),
            args.uuid,
            self.runtime.handle().clone(),
        );
        let console = Console::log(self.dir().console_log());
        let means = ArrivalMeans {
            console,
            unconfined: self.unconfined.take(),
            faults: self.faults.take(),
            departed: std::mem::take(&mut self.departed),
            options: self.vm_options(None),
        };
        let port = Arrival::start(&process, args, &greeting, means)?;
        let servers = self.open(&process)?;
        self.confine(&process)?;
        arriving::report_port(port)?;
        self.live(&process, servers)
    }

    /// Opens the API; from here on clients can find the guest.
    fn open(&self, process: &Arc<GuestProcess>) -> Result<[Server; 2]> {
        self.dir().write_identity(process.identity())?;
        let _entered = self.runtime.enter();
        let control = || ProcessControl(Arc::clone(process));
        let readonly = readonly_router(control());
        Ok([
            Server::start(&self.dir().socket(), router(control()), Audience::Owner)?,
            Server::start(&self.dir().readonly_socket(), readonly, Audience::AnyUser)?,
        ])
    }

    fn live(self, process: &Arc<GuestProcess>, servers: [Server; 2]) -> Result<Exit> {
        let ending = self.runtime.block_on(async {
            process.wait().await?;
            process.shut_down().await;
            if let Some(machine) = process.machine() {
                machine.scrollback().close();
            }
            process.report_end(&process.ending());
            for server in servers {
                server.close().await;
            }
            Ok::<_, anyhow::Error>(process.ending())
        })?;
        // The folder goes last: a client that sees it gone may rely on the guest being gone too.
        self.runtime.shutdown_timeout(Duration::from_secs(1));
        let name = self.claim.dir().name().clone();
        if let Err(error) = process.remember(&ending) {
            tracing::warn!("{error:#}");
        }
        drop(self.claim);
        exit_of(&name, ending)
    }
}

/// Types on the guest's console what a pipe or file on stdin contains.
fn forward_stdin(machine: &SharedMachine) -> Result<()> {
    let machine = Arc::downgrade(machine);
    let take = move |mut typed: &[u8]| {
        while !typed.is_empty() {
            let Some(machine) = machine.upgrade() else { return ControlFlow::Break(()) };
            let taken = machine.vm().console_input(typed);
            typed = typed.get(taken..).unwrap_or_default();
            if taken == 0 {
                thread::sleep(TYPE_PAUSE);
            }
        }
        ControlFlow::Continue(())
    };
    forward_input(take, || ())
}

/// Prints how the guest ended; returns an error if it crashed or this copy was discarded.
fn exit_of(name: &GuestName, ending: Ending) -> Result<Exit> {
    match ending {
        Ending::Asked => Ok(Exit::Done),
        Ending::Guest(reason) if reason.is_orderly() => {
            output::note(format_args!("{name}: {reason}"));
            Ok(Exit::Done)
        }
        Ending::Guest(reason) => bail!("{name} crashed: {reason}"),
        Ending::Moved { destination } => {
            output::note(format_args!("{name} has moved to {destination}"));
            Ok(Exit::Done)
        }
        Ending::Saved { file } => {
            output::note(format_args!("{name} was saved to {}", file.display()));
            Ok(Exit::Done)
        }
        Ending::NotArrived { cause } => bail!("{name} did not arrive here: {cause}"),
        Ending::Stranded { cause } => bail!("{name} lost its memory: {cause}"),
        Ending::Discarded { cause } => bail!("this copy of {name} is given up: {cause}"),
    }
}
