//! What the other host of a guest's last migration says, before a copy of the guest is let run here.

use std::num::NonZeroU16;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use migrate::front;
use migrate::protocol::front::FoundGuest;
use migrate::quic::Tls;
use migrate::quic::endpoint::Peer;
use migrate::record::{Record, Side};

use crate::cli::host::NODE_PORT;
use crate::names::GuestName;
use crate::output;
use crate::state_dir::StateDir;
use crate::whereabouts::last_migration;

/// How long a host may take to answer; one that has lost its power never does.
const PATIENCE: Duration = Duration::from_secs(10);

/// The other host of a guest's last migration.
#[derive(Debug)]
pub(crate) struct OtherHost {
    /// As people call it.
    name: String,
    guest: GuestName,
    /// Whether the node that was asked is the one that took part in the migration, as far as its address goes.
    is_its_node: bool,
    answer: Answer,
}

#[derive(Debug)]
enum Answer {
    /// It has the guest, or another of that name: one that its definition started again, on the same disks.
    Has(FoundGuest),
    /// It does not have the guest.
    HasNot,
    /// It says nothing, and why.
    Silent(String),
}

impl OtherHost {
    /// Asks the other host of the last migration of `guest`; none when it was never migrated.
    ///
    /// # Errors
    /// The records of migrations cannot be read.
    pub(crate) async fn ask(state: &StateDir, guest: &GuestName) -> Result<Option<Self>> {
        let last = last_migration(state, guest)
            .with_context(|| format!("cannot tell where {guest} was migrated"))?;
        let Some(record) = last else { return Ok(None) };
        let name = match &record.side {
            Side::Source { destination, .. } => destination.clone(),
            Side::Destination { source_address, .. } => source_address.ip().to_string(),
        };
        let answer = ask(state, &record).await;
        let is_its_node = knows_node(&record.side);
        Ok(Some(Self { name, guest: guest.clone(), is_its_node, answer }))
    }

    /// Refuses to let the copy of its last migration run here when the guest is the other host's, or has run there since: then it is out of
    /// date. One that cannot be asked is warned of.
    ///
    /// # Errors
    /// It has the guest, or had it, and how that stands there.
    pub(crate) fn expect_no_later(&self) -> Result<()> {
        let Self { name, guest, answer, .. } = self;
        match answer {
            Answer::Has(found) if found.is_past() => bail!(
                "{name} had {guest} after this migration began, and it has {}: the copy here is out of date. `lighter migrate {guest} \
                 --resolve discard` throws it away",
                found.state
            ),
            _ => self.expect_absent(),
        }
    }

    /// Refuses to let a guest boot here that is the other host's. One that cannot be asked is warned of, and one that has moved on from
    /// there.
    ///
    /// # Errors
    /// It has the guest, and how it stands there.
    pub(crate) fn expect_absent(&self) -> Result<()> {
        let Self { name, guest, is_its_node, answer } = self;
        match answer {
            Answer::Has(found) if found.is_past() && found.is_owned => output::note(format_args!(
                "warning: {guest} has {} from {name}; if it runs there, two copies destroy its disks",
                found.state
            )),
            Answer::Has(found) if found.is_owned => bail!(
                "{name} has {guest}, as {} ({}): two copies would destroy its disks. End it there first, if it shall run here (or stop \
                 that host's node, if it is another guest of that name)",
                found.name,
                found.state
            ),
            Answer::Silent(why) => output::note(format_args!(
                "warning: {name} cannot be asked whether it runs {guest} ({why}); if it does, two copies destroy its disks"
            )),
            Answer::HasNot if !is_its_node => output::note(format_args!(
                "warning: the node at {name}:{NODE_PORT} does not have {guest}, which came from there; if another node of that host has \
                 it, two copies destroy its disks"
            )),
            Answer::Has(_) | Answer::HasNot => {}
        }
        Ok(())
    }

    /// What it says, as in "web-1 has moved to host-b; ...".
    pub(crate) fn says(&self) -> String {
        let Self { name, answer, .. } = self;
        match answer {
            Answer::Has(found) if found.is_past() => {
                format!("{name} had it, and it has {}", found.state)
            }
            Answer::Has(found) => format!("{name} has it as {} ({})", found.name, found.state),
            Answer::HasNot => format!("{name} does not have it now"),
            Answer::Silent(why) => format!("{name} cannot be asked ({why})"),
        }
    }
}

async fn ask(state: &StateDir, record: &Record) -> Answer {
    let Some(node) = node_of(&record.side) else {
        return Answer::Silent("where its node listens is not known here".to_owned());
    };
    let tls = match Tls::load(&state.certs()) {
        Ok(tls) => tls,
        Err(error) => return Answer::Silent(error.to_string()),
    };
    match front::find(&tls, &node, record.guest_uuid, &record.guest, PATIENCE).await {
        Ok(Some(found)) => Answer::Has(found),
        Ok(None) => Answer::HasNot,
        Err(error) => Answer::Silent(error.to_string()),
    }
}

/// Returns the node of the other host: one on the default port, when the source's is not known.
fn node_of(side: &Side) -> Option<Peer> {
    match side {
        Side::Source { server_name, node_address, .. } => {
            Some(Peer { address: *node_address, name: server_name.clone() })
        }
        Side::Destination { source_address, source_name, source_node_port, .. } => {
            let mut address = *source_address;
            address.set_port(source_node_port.map_or(NODE_PORT, NonZeroU16::get));
            Some(Peer { address, name: source_name.clone()? })
        }
    }
}

/// Whether [`node_of`] is the node that took part in the migration, and not one on the default port.
fn knows_node(side: &Side) -> bool {
    match side {
        Side::Source { .. } => true,
        Side::Destination { source_node_port, .. } => source_node_port.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use migrate::record::DestinationState;

    use super::*;
    use crate::node::liveness::tests::destination_record;

    #[test]
    fn the_node_of_a_source_is_asked_where_it_listens_or_else_on_the_default_port() {
        let mut side = destination_record(DestinationState::Ready, 1).side;
        assert_eq!(node_of(&side), None, "no name to expect in its certificate");
        for (said, asked) in [(NonZeroU16::new(7000), 7000), (None, NODE_PORT)] {
            let Side::Destination { source_name, source_node_port, .. } = &mut side else {
                panic!("{side:?}")
            };
            *source_name = Some("host-a".to_owned());
            *source_node_port = said;
            let (address, name) = (([127, 0, 0, 1], asked).into(), "host-a".to_owned());
            assert_eq!(node_of(&side), Some(Peer { address, name }));
            assert_eq!(knows_node(&side), said.is_some());
        }
    }
}
