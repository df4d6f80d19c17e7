//! `lighter cancel`: calls a running migration off.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::session::{block_on, guest_client};
use crate::api::types::{GuestInfo, GuestState, StateAnswer};
use crate::cli::migration::CancelArgs;
use crate::exit::Exit;
use crate::output;
use crate::state_dir::StateDir;

/// How long calling off may take: the other host is told, and may be slow to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Calls the migration of a guest off, and waits until the guest is its own again.
///
/// # Errors
/// There is no such guest or no migration, or the guest has been handed over.
pub(crate) fn run(state: &StateDir, args: &CancelArgs) -> Result<Exit> {
    let client = guest_client(state, &args.name)?;
    let name = &args.name;
    block_on(async {
        client
            .delete::<StateAnswer>("/v1/guest/migration")
            .await
            .with_context(|| format!("cannot cancel the migration of {name}"))?;
        let settled = async {
            loop {
                let info = client.get::<GuestInfo>("/v1/guest").await?;
                if info.state != GuestState::Migrating {
                    return Ok::<_, anyhow::Error>(info.state);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, settled).await {
            Ok(Ok(state)) => {
                let state = state.as_str();
                output::print_line(format_args!(
                    "{name}: migration cancelled, the guest is {state} here"
                ))?;
            }
            Ok(Err(_)) => bail!(
                "{name} has left this host: the migration was completed before it could be cancelled"
            ),
            Err(_) => bail!("{name} was told to cancel, but has not done so within {PATIENCE:?}"),
        }
        Ok(Exit::Done)
    })
}
