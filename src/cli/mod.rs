//! The command line as typed.
//!
//! Only what a single argument can say is checked here (is `512M` a size?), so that the usage error
//! names the argument. What arguments mean together is decided by the verb that receives them, on
//! types of its own. Nothing here does anything. Start at [`Cli`]; [`guest`] holds the verbs about
//! one guest, [`spec`] what it is made of, [`definition`] the verbs about guests that are written
//! down, [`density`] those about the host's memory, [`migration`] those about moving a guest,
//! [`watch`] those that watch guests, [`host`] the rest.

pub(crate) mod cpu;
pub(crate) mod definition;
pub(crate) mod density;
pub(crate) mod devices;
pub(crate) mod disk;
#[cfg(test)]
mod documented;
pub(crate) mod fault;
pub(crate) mod guest;
pub(crate) mod host;
pub(crate) mod host_device;
pub(crate) mod isolation;
mod label;
pub(crate) mod limits;
pub(crate) mod migration;
pub(crate) mod named_disk;
pub(crate) mod net;
mod options;
pub(crate) mod seed;
pub(crate) mod spec;
pub(crate) mod watch;

use std::path::PathBuf;

use clap::{Command, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

/// What every exit code means; ends the long help.
const AFTER_HELP: &str = "\
Exit codes:
  0    done
  1    it failed; the message says what and where
  2    an argument is missing, unknown or cannot be parsed
  3    in doubt: the guest is paused here, and the other host may run it
  4    the guest found its memory damaged
  5    unknown: it may continue unwatched; see `lighter show NAME`
  130  cancelled (Ctrl-C, `lighter cancel`)

Try `lighter demo` first: it needs no set-up.";

/// Moves running KVM guests between hosts.
#[derive(Debug, Parser)]
#[command(
    name = "lighter", version, about, after_help = AFTER_HELP, arg_required_else_help = true,
    propagate_version = true, max_term_width = 100
)]
pub(crate) struct Cli {
    /// Folder of this host's certificates, live guests and records of migrations.
    ///
    /// Default: /var/lib/lighter for root, else $XDG_STATE_HOME/lighter or ~/.local/state/lighter;
    /// with --readonly /var/lib/lighter as well if that does not exist.
    #[arg(
        long,
        global = true,
        env = "LIGHTER_STATE_DIR",
        value_name = "DIR",
        help_heading = "Global options"
    )]
    pub(crate) state_dir: Option<PathBuf>,

    /// Read only, over the sockets that are open to all users of this host. For ls, show, stats,
    /// events, version, and density status, history and next.
    #[arg(long, short = 'r', global = true, help_heading = "Global options")]
    pub(crate) readonly: bool,

    #[command(flatten)]
    pub(crate) log: LogArgs,

    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

impl Cli {
    /// Parses this process's command line. Exits with help or an error of usage where that is due.
    pub(crate) fn of_command_line() -> Self {
        let matches = Self::described().get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// Describes the command line. Global options are shown once, by `lighter --help`.
    pub(crate) fn described() -> Command {
        let mut command = Self::command();
        command.build();
        without_globals(command)
    }
}

/// Hides global options in the help of the verbs of `command`, and of theirs.
fn without_globals(command: Command) -> Command {
    command.mut_subcommands(|verb| {
        let verb = verb.mut_args(|option| {
            let is_global = option.is_global_set();
            option.hide(is_global)
        });
        without_globals(verb)
    })
}

/// What is logged, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct LogArgs {
    /// What to log on stderr: error, warn, info, debug, trace, or per module (`migrate=debug`).
    ///
    /// Default: `RUST_LOG`, or warn (info for a node).
    #[arg(long, global = true, value_name = "FILTER", help_heading = "Global options")]
    pub(crate) log_level: Option<String>,

    /// How log lines look.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        help_heading = "Global options"
    )]
    pub(crate) log_format: LogFormat,
}

impl LogArgs {
    /// The same for a process that this one starts.
    pub(crate) fn to_arguments(&self) -> Vec<String> {
        let level = self.log_level.iter().map(|level| format!("--log-level={level}"));
        let format = match self.log_format {
            LogFormat::Text => None,
            LogFormat::Json => Some("--log-format=json".to_owned()),
        };
        level.chain(format).collect()
    }
}

/// The looks of a log line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// How a verb's result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Text for people; the default.
    Text,
    /// One JSON document (`--json`).
    Json,
}

/// `--json`, for verbs whose output is data.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct JsonFlag {
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

impl JsonFlag {
    /// The output that was asked for.
    pub(crate) fn output(self) -> Output {
        if self.json { Output::Json } else { Output::Text }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Migrate a busy guest live between two throw-away hosts on this machine, and back.
    Demo(host::DemoArgs),
    /// Run a guest.
    Run(Box<guest::RunArgs>),
    /// Define a guest from a file, so that `start` finds it by its name.
    Define(definition::DefineArgs),
    /// Remove definitions; running guests are not affected.
    #[command(visible_alias = "rm")]
    Undefine(definition::DefinedArgs),
    /// Start a defined guest.
    Start(definition::StartArgs),
    /// Start a defined guest when the host boots.
    Autostart(definition::AutostartArgs),
    /// Run this host's daemon: receive migrations, start guests, optimize memory, serve metrics.
    Node(host::NodeArgs),
    #[command(hide = true)]
    Incoming(host::IncomingArgs),
    /// Move a running guest to another host.
    Migrate(migration::MigrateArgs),
    /// Cancel a running migration; the guest continues on its source.
    #[command(alias = "domjobabort")]
    Cancel(migration::CancelArgs),
    /// List the guests of this host.
    #[command(visible_aliases = ["list", "ps"])]
    Ls(guest::ListArgs),
    /// Show all about one guest, and its migration.
    #[command(visible_alias = "inspect", aliases = ["dominfo", "domjobinfo"])]
    Show(guest::ShowArgs),
    /// Watch how much CPU, memory, network and disk guests use.
    Stats(watch::StatsArgs),
    /// Watch a guest's serial console, and type on it.
    #[command(alias = "attach")]
    Console(guest::ConsoleArgs),
    /// Print a guest's console output, or the log of its process.
    Logs(watch::LogsArgs),
    /// Follow guest events on this host.
    Events(guest::EventsArgs),
    /// Stop a guest's vCPUs; its memory stays.
    #[command(visible_alias = "suspend")]
    Pause(guest::NamesArgs),
    /// Resume a paused guest.
    Resume(guest::ResumeArgs),
    /// Ask a guest to shut down, as its power button does, and wait until it has.
    Shutdown(guest::ShutdownArgs),
    /// Ask a guest to shut down, and boot it again when it has.
    Reboot(guest::RebootArgs),
    /// Reset a guest at once, like the button on a machine: it boots again.
    Reset(guest::NamesArgs),
    /// End a guest at once, like pulling its plug.
    #[command(visible_alias = "stop")]
    Destroy(guest::NamesArgs),
    /// Show or set how much of its memory a guest keeps.
    Balloon(guest::BalloonArgs),
    /// Grow a disk of a running guest.
    #[command(visible_alias = "resize")]
    Blockresize(guest::BlockresizeArgs),
    /// Attach a disk to a running guest.
    AttachDisk(devices::AttachDiskArgs),
    /// Detach a disk from a running guest.
    DetachDisk(devices::DetachDiskArgs),
    /// Attach a network device to a running guest.
    AttachInterface(devices::AttachInterfaceArgs),
    /// Detach a network device from a running guest.
    DetachInterface(devices::DetachInterfaceArgs),
    /// Attach a device of this host to a running guest.
    AttachDevice(devices::AttachDeviceArgs),
    /// Detach a device of this host from a running guest.
    DetachDevice(devices::DetachDeviceArgs),
    /// Show and reduce the memory that guests use: balloons, merging, huge pages.
    Density(density::DensityArgs),
    /// Write a guest's memory and state to a file.
    Save(guest::SaveArgs),
    /// Run a guest from a file that `save` wrote.
    Restore(guest::RestoreArgs),
    /// Save a guest as a template from which many others are started.
    Template(guest::TemplateArgs),
    /// List the CPU models that guests can have, and which this host supports.
    CpuModels(host::CpuModelsArgs),
    /// Make and show the certificates by which hosts identify each other.
    Certs(host::CertsArgs),
    /// Show the versions of this program, KVM, the node and guests.
    Version(watch::VersionArgs),
}

#[cfg(test)]
mod tests {
    use clap::Args as _;

    use super::*;
    use crate::golden;

    #[test]
    fn definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_guests_file_excludes_each_option_that_it_has_a_key_for() {
        let run = Cli::command().find_subcommand("run").unwrap().clone();
        let file = run.get_arguments().find(|it| it.get_id() == "file").unwrap();
        let excluded = run.get_arg_conflicts_with(file);
        let of_guests = spec::GuestSpec::augment_args(Command::new("run"));
        // A guest from a file may have another name.
        for option in of_guests.get_arguments().filter(|it| it.get_id() != "name") {
            let id = option.get_id();
            assert!(excluded.iter().any(|other| other.get_id() == id), "{id}");
        }
    }

    #[test]
    fn every_visible_verb_has_an_example() {
        for verb in Cli::command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let help = verb.clone().render_long_help().to_string();
            assert!(help.contains("Examples:"), "{} has no example:\n{help}", verb.get_name());
            assert!(help.contains(&format!("lighter {}", verb.get_name())), "{}", verb.get_name());
        }
    }

    /// Returns the help of a verb in a terminal of 80 columns.
    fn help(path: &[&str]) -> String {
        let mut verb = Cli::described().term_width(80);
        for name in path {
            verb = verb.find_subcommand(name).unwrap().clone().term_width(80);
        }
        let help = verb.render_long_help().to_string();
        help.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }

    /// Text that we lay out is wrapped a second time in a terminal that is too narrow for it: the
    /// rest of each line then stands alone below it.
    #[test]
    fn texts_with_lines_of_their_own_need_no_wrapping_at_80_columns() {
        let texts = |command: &Command| {
            let texts = [
                command.get_before_help(),
                command.get_before_long_help(),
                command.get_after_help(),
                command.get_after_long_help(),
            ];
            texts.into_iter().flatten().map(ToString::to_string).collect::<String>()
        };
        let described = Cli::described();
        let mut check = |path: &[&str]| {
            let verb =
                path.iter().fold(&described, |verb, name| verb.find_subcommand(name).unwrap());
            let text = texts(verb);
            let wide = text.lines().find(|line| line.chars().count() > 80);
            assert_eq!(wide, None, "{path:?}");
            let shown = help(path);
            let missing = text.lines().find(|line| !shown.contains(&format!("\n{line}\n")));
            assert_eq!(missing, None, "{path:?}:\n{shown}");
        };
        check(&[]);
        each_verb(&described, &[], &mut check);
    }

    fn each_verb(command: &Command, path: &[&str], check: &mut impl FnMut(&[&str])) {
        let shown = |verb: &&Command| verb.get_name() != "help" && !verb.is_hide_set();
        for verb in command.get_subcommands().filter(shown) {
            let path = [path, &[verb.get_name()]].concat();
            check(&path);
            each_verb(verb, &path, check);
        }
    }

    #[test]
    fn help_fits_a_terminal_of_80_columns_and_shows_global_options_once() {
        each_verb(&Cli::described(), &[], &mut |path| {
            let help = help(path);
            let wide = help.lines().find(|line| line.chars().count() > 80);
            assert_eq!(wide, None, "{path:?}");
            assert!(!help.contains("--state-dir <DIR>"), "{path:?}:\n{help}");
        });
        assert!(help(&[]).contains("--state-dir <DIR>"));
    }

    /// The help that most users see first is reviewed as a text.
    #[test]
    fn help_reads_as_in_the_golden_files() {
        for (path, file) in [(&[][..], "help.txt"), (&["run"], "help-run.txt")] {
            golden::matches(file, &help(path));
        }
    }

    #[test]
    fn a_guests_file_replaces_every_option_but_its_name_and_its_place() {
        let run = Cli::command().find_subcommand("run").unwrap().clone();
        for option in run.get_arguments().filter_map(|option| option.get_long()) {
            let value = match option {
                "memory" | "working-set" | "run-length" | "shuffle" => "64M",
                "cpus" | "dirty-rate" | "read-rate" | "zero-share" | "image-share" => "2",
                "write-order" => "random",
                "vsock" => "3",
                "acpi" | "balloon" | "nested" | "seccomp" | "landlock" => "on",
                "on-reboot" => "stop",
                "pattern" => "zero",
                "hugepages" => "off",
                "machine" => "pci",
                "numa-policy" => "bind:0",
                "dirty-log" => "ring",
                "cpu" => "host",
                "uuid" => "8f0c5a52-0f7b-4a37-9b0c-5c1d2e3f4a5b",
                "label" => "a=b",
                "net" => "tap=t0",
                "device" => "vfio=03:00.0",
                "rng" | "detach" | "prealloc" | "readonly" => "",
                _ => "x",
            };
            let option = format!("--{option}");
            let line = ["lighter", "run", "web.toml", &option, value];
            let line = if value.is_empty() { &line[..4] } else { &line[..] };
            let taken = Cli::try_parse_from(line);
            let stays = [
                "--name",
                "--detach",
                "--seccomp",
                "--landlock",
                "--vhost-net",
                "--readonly",
                "--state-dir",
                "--log-level",
                "--log-format",
            ];
            let error = taken.err().map(|error| error.to_string()).unwrap_or_default();
            let is_refused = error.contains("cannot be used with");
            assert_eq!(is_refused, !stays.contains(&option.as_str()), "{option}: {error}");
        }
    }

    #[test]
    fn global_options_are_taken_after_the_verb_too() {
        let cli = Cli::try_parse_from(["lighter", "ls", "--state-dir", "/x", "--json"]).unwrap();
        assert_eq!(cli.state_dir.unwrap(), PathBuf::from("/x"));
    }

    #[test]
    fn a_process_that_is_started_logs_as_this_one_does() {
        for said in [&[][..], &["--log-level", "migrate=debug,info", "--log-format", "json"]] {
            let log = |said: &[&str]| {
                Cli::try_parse_from([&["lighter", "ls"], said].concat()).unwrap().log
            };
            let arguments = log(said).to_arguments();
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            assert_eq!(log(&arguments), log(said));
        }
    }

    #[test]
    fn a_wrong_size_names_the_argument() {
        let error =
            Cli::try_parse_from(["lighter", "run", "--memory", "lots"]).unwrap_err().to_string();
        assert!(error.contains("--memory"), "{error}");
    }
}
