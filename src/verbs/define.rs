//! `lighter define`, `undefine` and `autostart`: guests that are written down.

use anyhow::Result;

use crate::cli::definition::{AutostartArgs, DefineArgs, DefinedArgs};
use crate::exit::Exit;
use crate::output;
use crate::state_dir::StateDir;

/// Keeps a guest's file, and prints the guest's name.
///
/// # Errors
/// The file describes no guest, or cannot be kept.
pub(crate) fn define(state: &StateDir, args: &DefineArgs) -> Result<Exit> {
    state.create()?;
    let name = state.definitions().define(&args.file)?;
    output::print_line(name)?;
    Ok(Exit::Done)
}

/// Forgets a guest's file.
///
/// # Errors
/// The guest is not defined.
pub(crate) fn undefine(state: &StateDir, args: &DefinedArgs) -> Result<Exit> {
    state.definitions().undefine(&args.name)?;
    Ok(Exit::Done)
}

/// Lets a guest start with the host, or not any more.
///
/// # Errors
/// The guest is not defined.
pub(crate) fn autostart(state: &StateDir, args: &AutostartArgs) -> Result<Exit> {
    state.definitions().set_autostart(&args.name, !args.disable)?;
    Ok(Exit::Done)
}
