//! `lighter define`, `undefine` and `autostart`: guest definitions.

use anyhow::{Result, bail};

use super::session::{block_on, for_each};
use crate::api::ApiClient;
use crate::api::client::guest_info;
use crate::cli::definition::{AutostartArgs, DefineArgs, DefinedArgs};
use crate::definitions::Kept;
use crate::exit::Exit;
use crate::names::GuestName;
use crate::output;
use crate::state_dir::StateDir;

/// Stores a guest's definition, and prints the guest's name.
///
/// # Errors
/// If the file describes no valid guest, or cannot be stored.
pub(crate) fn define(state: &StateDir, args: &DefineArgs) -> Result<Exit> {
    state.create()?;
    let name = state.definitions().define(&args.file, |name| running(state, name))?;
    output::print_line(name)?;
    Ok(Exit::Done)
}

/// Returns the identity of the guest of this name, if it runs on this host.
fn running(state: &StateDir, name: &GuestName) -> Result<Option<Kept>> {
    let guest = state.guest(name);
    if !guest.is_live() {
        return Ok(None);
    }
    let client = ApiClient::new(&guest.client_socket());
    let Some(info) = block_on(guest_info(name, &client))? else {
        bail!(
            "{name} is running, but its process does not answer: try again, or set `uuid` in the file"
        );
    };
    let addresses = info.nets.iter().map(|net| net.mac.parse().ok()).collect();
    Ok(Some(Kept { uuid: Some(info.uuid), addresses, machine: info.machine }))
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
