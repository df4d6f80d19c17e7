//! `lighter define`, `undefine` and `autostart`: guest definitions.

use anyhow::Result;

use super::session::for_each;
use crate::cli::definition::{AutostartArgs, DefineArgs, DefinedArgs};
use crate::exit::Exit;
use crate::output;
use crate::state_dir::StateDir;

/// Stores a guest's definition, and prints the guest's name.
///
/// # Errors
/// If the file describes no valid guest, or cannot be stored.
pub(crate) fn define(state: &StateDir, args: &DefineArgs) -> Result<Exit> {
    state.create()?;
    let name = state.definitions().define(&args.file)?;
    output::print_line(name)?;
    Ok(Exit::Done)
}

/// Removes guests' definitions.
///
/// # Errors
/// If a guest is not defined.
pub(crate) fn undefine(state: &StateDir, args: &DefinedArgs) -> Result<Exit> {
    for_each(&args.names, |name| {
        state.definitions().undefine(name)?;
        Ok("is no longer defined".to_owned())
    })
}

/// Sets whether a guest starts when the host boots.
///
/// # Errors
/// If the guest is not defined.
pub(crate) fn autostart(state: &StateDir, args: &AutostartArgs) -> Result<Exit> {
    state.definitions().set_autostart(&args.name, !args.disable)?;
    let starts = if args.disable { "does not start" } else { "starts" };
    output::print_line(format_args!("{} {starts} with the host", args.name))?;
    Ok(Exit::Done)
}
