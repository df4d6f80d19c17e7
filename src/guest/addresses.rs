//! Keeps guests of a host from having the same MAC address: packets for one could reach the other.
//!
//! Guests of other hosts are not known here. A saved guest keeps its address, so this check also
//! finds a second copy of it.

use std::time::Duration;

use anyhow::{Result, bail};
use vmm_core::virtio::net::NetConfig;

use crate::api::ApiClient;
use crate::api::types::GuestInfo;
use crate::names::GuestName;
use crate::state_dir::StateDir;
use crate::verbs::session::block_on;

/// Timeout for a guest to report its addresses; a guest that hangs is skipped.
const PATIENCE: Duration = Duration::from_secs(2);

/// Refuses network devices for a guest if another live guest of this host has one of their
/// addresses.
///
/// # Errors
/// If an address is taken; the error names the address, the other guest and the ways out.
pub(super) fn expect_free<'a>(
    state: &StateDir,
    name: &GuestName,
    nets: impl Iterator<Item = &'a NetConfig>,
) -> Result<()> {
    let own: Vec<String> = nets.map(|net| net.mac().to_string()).collect();
    if own.is_empty() {
        return Ok(());
    }
    block_on(async {
        for guest in state.live_guests()?.iter().filter(|guest| guest.name() != name) {
            let client = ApiClient::new(&guest.client_socket()).with_patience(PATIENCE);
            let Ok(info) = client.get::<GuestInfo>("/v1/guest").await else { continue };
            if let Some(net) = info.nets.iter().find(|net| own.contains(&net.mac)) {
                let other = guest.name();
                bail!(
                    "{name} has the address {} in its network, and so has {other}, which runs here: end {other} first, \
                     or start {name} with another mac",
                    net.mac
                );
            }
        }
        Ok(())
    })
}
