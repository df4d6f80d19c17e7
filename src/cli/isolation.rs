//! What a guest's process is confined to, and what the host's kernel does in its place.

use anyhow::{Context, Result};
use clap::{Args, Parser, ValueEnum};

use super::spec::SwitchArg;

/// How a guest is isolated from its host. A node hands these variables of its environment on to the
/// guests that it receives.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct IsolationArgs {
    /// Confine the guest's process to the system calls that it needs.
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "MODE",
        env = "LIGHTER_SECCOMP",
        help_heading = ISOLATION
    )]
    pub(crate) seccomp: SeccompMode,

    /// Confine the guest's process to the files that it needs, where the kernel can.
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "SWITCH",
        env = "LIGHTER_LANDLOCK",
        help_heading = ISOLATION
    )]
    pub(crate) landlock: SwitchArg,

    /// Have the host's kernel carry the frames of network devices (vhost-net), where it can: fewer
    /// switches between programs, but code of the kernel reads what the guest writes.
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "SWITCH",
        env = "LIGHTER_VHOST_NET",
        help_heading = ISOLATION
    )]
    pub(crate) vhost_net: SwitchArg,
}

impl IsolationArgs {
    /// What the environment says, for verbs without these options.
    ///
    /// # Errors
    /// It says something that these options do not know.
    pub(crate) fn from_environment() -> Result<Self> {
        #[derive(Parser)]
        struct Alone {
            #[command(flatten)]
            isolation: IsolationArgs,
        }
        let alone = Alone::try_parse_from([env!("CARGO_PKG_NAME")]);
        alone
            .map(|alone| alone.isolation)
            .context("cannot read LIGHTER_SECCOMP, LIGHTER_LANDLOCK or LIGHTER_VHOST_NET")
    }
}

/// The heading of these options.
const ISOLATION: &str = "Isolation";

/// What becomes of a process that tries another system call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum SeccompMode {
    /// End the process, with a message that names the call.
    #[default]
    On,
    /// Allow it, and log it in the kernel's log.
    Log,
    /// Allow it.
    Off,
}
