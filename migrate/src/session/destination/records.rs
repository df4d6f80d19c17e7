//! The destination's record of its migration.

use std::net::SocketAddr;

use super::super::pace::Next;
use super::{Driver, Input};
use crate::destination::Event;
use crate::record::{DestinationState, Record, Side};
use crate::report::Report;
use crate::text::PeerText;

impl Driver {
    pub(super) fn record(&mut self, state: DestinationState) {
        self.stated.ask(state);
        let input_sender = self.input_sender.clone();
        self.record_writer.write_state(self.make_record(None), state, move |state, outcome| {
            let _ = input_sender.send(Input::Recorded(state, outcome));
        });
    }

    pub(super) fn on_recorded(
        &mut self,
        state: DestinationState,
        outcome: Result<(), PeerText>,
    ) -> Next {
        self.stated.answered(state, &outcome);
        self.handle(match outcome {
            Ok(()) => Event::Recorded,
            Err(detail) => Event::RecordFailed { detail },
        })
    }

    /// Has the record name the present address of the source, if there is one: others ask there
    /// where the guest is.
    pub(super) fn record_again(&self) {
        if !self.machine.has_record() {
            return;
        }
        let report = self.channels.report.borrow().clone();
        self.record_writer.write(self.make_record(report), |outcome| {
            if let Err(error) = outcome {
                tracing::warn!(%error, "the record still names the source's former address");
            }
        });
    }

    pub(super) fn finish(&mut self, report: Report) {
        self.record_writer.write_report(self.make_record(Some(report.clone())));
        self.channels.report.send_replace(Some(report));
    }

    pub(super) fn make_record(&self, report: Option<Report>) -> Record {
        let nowhere = || (SocketAddr::new(self.session.listen, 0), None);
        let (source_address, source_name) = self.source.clone().unwrap_or_else(nowhere);
        Record {
            migration: self.session.migration,
            guest: self.session.guest.clone(),
            guest_uuid: self.session.guest_uuid,
            pid: std::process::id(),
            started_unix_ms: self.started_unix_ms,
            updated_unix_ms: 0,
            side: Side::Destination {
                state: self.stated.now(),
                source_address,
                source_name,
                source_node_port: self.machine.source_node_port(),
                port: self.port,
                token: self.session.token,
            },
            report,
        }
    }
}
