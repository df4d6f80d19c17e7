//! The source's record of its migration.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::sync::oneshot;

use super::super::connect::Route;
use super::super::pace::Next;
use super::{Driver, Input};
use crate::error::RecoverRefused;
use crate::protocol::Token;
use crate::record::{Record, Side, SourceState};
use crate::report::Report;
use crate::source::Event;
use crate::text::PeerText;

impl Driver {
    pub(super) fn record(&mut self, state: SourceState) {
        self.stated.ask(state);
        let input_sender = self.input_sender.clone();
        self.record_writer.write_state(self.make_record(None), state, move |state, outcome| {
            let _ = input_sender.send(Input::Recorded(state, outcome));
        });
    }

    pub(super) fn on_recorded(
        &mut self,
        state: SourceState,
        outcome: Result<(), PeerText>,
    ) -> Next {
        self.stated.answered(state, &outcome);
        self.handle(match outcome {
            Ok(()) => Event::Recorded,
            Err(detail) => Event::RecordFailed { detail },
        })
    }

    /// Records another address of the destination, which is dialled once that is durable: after a
    /// crash, the node has only the record.
    pub(super) fn look_at(
        &mut self,
        address: SocketAddr,
        answer: oneshot::Sender<Result<(), RecoverRefused>>,
    ) {
        let Some(mut route) = self.found.clone() else { return };
        route.process.set_ip(address.ip());
        route.node.address = address;
        self.named = Some(route.clone());
        let input_sender = self.input_sender.clone();
        self.record_writer.write(self.make_record(None), move |outcome| {
            let outcome = outcome.map_err(|error| {
                let detail = error.to_string().as_str().into();
                RecoverRefused::Unrecorded { detail }
            });
            let _ = input_sender.send(Input::Named(route, outcome, answer));
        });
    }

    /// Reconnects to the recorded address from now on.
    pub(super) fn on_named(&mut self, route: Route, outcome: &Result<(), RecoverRefused>) {
        if outcome.is_ok() {
            self.found = Some(route);
            // The endpoint there was may be of the other address family.
            self.endpoints.clear();
            return;
        }
        // Unless yet another address is being recorded.
        let named = self.named.as_ref().map(|named| named.node.address);
        if named == Some(route.node.address) {
            self.named.clone_from(&self.found);
        }
    }

    pub(super) fn finish(&mut self, mut report: Report) {
        report.links = self.links.read();
        self.record_writer.write_report(self.make_record(Some(report.clone())));
        self.channels.report.send_replace(Some(report));
    }

    pub(super) fn make_record(&self, report: Option<Report>) -> Record {
        let nowhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), self.session.port);
        let found = self.named.as_ref();
        let named = self.session.server_name.as_ref().unwrap_or(&self.session.host);
        // A migration that never found its destination has no peer to tell about its end.
        let state = if found.is_none() { SourceState::Aborted } else { self.stated.now() };
        Record {
            migration: self.session.migration,
            guest: self.description.name.clone(),
            guest_uuid: self.description.uuid,
            pid: std::process::id(),
            started_unix_ms: self.started_unix_ms,
            updated_unix_ms: 0,
            side: Side::Source {
                state,
                destination: format!("{}:{}", self.session.host, self.session.port),
                server_name: found.map_or_else(|| named.clone(), |found| found.node.name.clone()),
                node_address: found.map_or(nowhere, |found| found.node.address),
                process_address: found.map_or(nowhere, |found| found.process),
                token: found.map_or(Token([0; 32]), |found| found.token),
            },
            report,
        }
    }
}
