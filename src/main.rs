//! `lighter`: moves running KVM guests between hosts.
//!
//! Only this crate combines the machine (`vmm-core`), the migration (`migrate`), the metrics and
//! memory optimization (`memopt`). [`cli`] is the command line as typed; [`verbs`] carries it out
//! by talking to guest processes through [`api`]; [`guest`] is the process of one guest,
//! [`confinement`] restricts what it may do, and [`definitions`] are the guests that are defined;
//! `node` receives guests; [`events`] follows what happens to them; [`demo`] shows it all. Start
//! reading at [`dispatch`].

// Use [`output`] instead: these macros panic if the reader is gone or the disk is full.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod address;
mod api;
mod cli;
mod clock;
mod confinement;
mod decisions;
mod definitions;
mod demo;
mod density;
mod departures;
mod disk_places;
mod durable;
mod ended;
mod events;
mod exit;
mod file_lock;
mod golden;
mod guest;
mod host_certificate;
mod hypervisors;
mod logging;
mod names;
mod node;
mod other_host;
mod output;
mod resource_limits;
mod saved_disks;
mod scope;
mod scrollback;
mod shared_disks;
mod signals;
mod sought_disk;
mod state_dir;
mod survey;
mod table;
mod terminal;
mod units;
mod verbs;
mod version;
mod whereabouts;

use std::process::ExitCode;

use anyhow::{Result, bail};
use tracing::Level;

use cli::{Cli, LogFormat, Verb};
use exit::Exit;
use state_dir::{Access, StateDir};

fn main() -> ExitCode {
    let cli = Cli::of_command_line();
    match logging::start(&cli).and_then(|()| dispatch(&cli)) {
        Ok(exit) => exit.into(),
        Err(error) => {
            complain(&cli, &error);
            exit::of_error(&error).into()
        }
    }
}

/// Reports an error to the user; a service with a JSON log reports it there, so that its stderr has
/// only JSON objects.
fn complain(cli: &Cli, error: &anyhow::Error) {
    let is_service = matches!(cli.verb, Verb::Node(_) | Verb::Incoming(_));
    if is_service && cli.log.log_format == LogFormat::Json && tracing::enabled!(Level::ERROR) {
        tracing::error!("{error:#}");
    } else {
        output::note(format_args!("lighter: {error:#}"));
    }
}

/// Hands the command line to the verb it names.
fn dispatch(cli: &Cli) -> Result<Exit> {
    let state = StateDir::resolve(cli.state_dir.as_deref(), access(cli)?)?;
    match &cli.verb {
        Verb::Demo(args) => demo::run(args),
        Verb::Run(args) => guest::run(&state, args),
        Verb::Define(args) => verbs::define::define(&state, args),
        Verb::Undefine(args) => verbs::define::undefine(&state, args),
        Verb::Start(args) => guest::start_defined(&state, args),
        Verb::Autostart(args) => verbs::define::autostart(&state, args),
        Verb::Restore(args) => guest::restore(&state, args),
        Verb::Incoming(args) => guest::incoming(&state, args),
        Verb::Node(args) => node::run(&state, args, &cli.log),
        Verb::Migrate(args) => verbs::migrate::run(&state, args),
        Verb::Cancel(args) => verbs::cancel::run(&state, args),
        Verb::Ls(args) => verbs::list::run(&state, args),
        Verb::Show(args) => verbs::show::run(&state, args),
        Verb::Stats(args) => verbs::stats::run(&state, args),
        Verb::Console(args) => verbs::console::run(&state, args),
        Verb::Logs(args) => verbs::logs::run(&state, args),
        Verb::Events(args) => verbs::events::run(&state, args),
        Verb::Pause(args) => verbs::power::pause(&state, args),
        Verb::Resume(args) => verbs::power::resume(&state, args),
        Verb::Shutdown(args) => verbs::power::shutdown(&state, args),
        Verb::Reboot(args) => verbs::power::reboot(&state, args),
        Verb::Reset(args) => verbs::power::reset(&state, args),
        Verb::Destroy(args) => verbs::power::destroy(&state, args),
        Verb::Blockresize(args) => verbs::blockresize::run(&state, args),
        Verb::AttachDisk(args) => guest::attach_disk(&state, args),
        Verb::DetachDisk(args) => guest::detach_disk(&state, args),
        Verb::AttachInterface(args) => guest::attach_interface(&state, args),
        Verb::DetachInterface(args) => guest::detach_interface(&state, args),
        Verb::AttachDevice(args) => verbs::hot_plug::attach_device(&state, args),
        Verb::DetachDevice(args) => verbs::hot_plug::detach_device(&state, args),
        Verb::Balloon(args) => verbs::balloon::run(&state, args),
        Verb::Density(args) => verbs::density::run(&state, args),
        Verb::Save(args) => verbs::save::run(&state, args),
        Verb::Template(args) => verbs::save::template(&state, args),
        Verb::CpuModels(args) => verbs::cpu_models::run(args),
        Verb::Certs(args) => verbs::certs::run(&state, args),
        Verb::Version(args) => verbs::version::run(&state, args),
    }
}

/// Returns which sockets the command uses.
fn access(cli: &Cli) -> Result<Access> {
    if !cli.readonly {
        return Ok(Access::Full);
    }
    match cli.verb {
        Verb::Ls(_) | Verb::Show(_) | Verb::Stats(_) | Verb::Events(_) | Verb::Version(_) => {
            Ok(Access::ReadOnly)
        }
        Verb::Density(ref args) if args.verb.is_readonly() => Ok(Access::ReadOnly),
        _ => bail!(
            "--readonly changes nothing: it goes with ls, show, stats, events, version, and density status, history and next"
        ),
    }
}
