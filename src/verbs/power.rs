//! `lighter pause`, `resume` and `stop`.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::session::{block_on, guest_client};
use crate::api::types::StateAnswer;
use crate::cli::guest::NameArgs;
use crate::exit::Exit;
use crate::state_dir::StateDir;

/// How long a guest's process may take to end.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// Stops a guest's vCPUs.
///
/// # Errors
/// There is no such guest, or it is being migrated.
pub(crate) fn pause(state: &StateDir, args: &NameArgs) -> Result<Exit> {
    tell(state, args, "pause")
}

/// Lets a paused guest go on.
///
/// # Errors
/// As [`pause`].
pub(crate) fn resume(state: &StateDir, args: &NameArgs) -> Result<Exit> {
    tell(state, args, "resume")
}

/// Ends a guest, and waits until nothing is left of it.
///
/// # Errors
/// As [`pause`]; or its process does not end.
pub(crate) fn stop(state: &StateDir, args: &NameArgs) -> Result<Exit> {
    let exit = tell(state, args, "stop")?;
    let guest = state.guest(&args.name);
    let gone = async {
        while guest.is_live() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    match block_on(async { Ok(tokio::time::timeout(STOP_PATIENCE, gone).await) })? {
        Ok(()) => Ok(exit),
        Err(_) => bail!(
            "{} was told to stop, but its process is still there after {STOP_PATIENCE:?}",
            args.name
        ),
    }
}

fn tell(state: &StateDir, args: &NameArgs, what: &str) -> Result<Exit> {
    let client = guest_client(state, &args.name)?;
    let answer =
        block_on(async { Ok(client.put::<StateAnswer>(&format!("/v1/guest/{what}")).await?) });
    answer.with_context(|| format!("cannot {what} {}", args.name))?;
    Ok(Exit::Done)
}
