//! The destination's record of its migration.

use std::net::SocketAddr;

use super::super::pace::Next;
use super::{Driver, Input};
use crate::destination::Event;
use crate::protocol::PeerText;
use crate::record::{DestinationState, Record, Side};
use crate::report::Report;

impl Driver {
    pub(super) fn record(&mut self, state: DestinationState) {
        self.state = state;
        let tell = self.tell.clone();
        self.keeper.write(self.make_record(None), move |outcome| {
            let _ = tell.send(match outcome {
                Ok(()) => Input::Recorded(state, Ok(())),
                Err(error) => {
                    tracing::warn!(%error, "cannot record that the migration is {state:?}");
                    Input::Recorded(state, Err(error.to_string().as_str().into()))
                }
            });
        });
    }

    /// What could not be written must not be written later, with a report, when nobody counts on it any more.
    pub(super) fn on_recorded(
        &mut self,
        state: DestinationState,
        outcome: Result<(), PeerText>,
    ) -> Next {
        match outcome {
            Ok(()) => {
                self.durable = state;
                self.handle(Event::Recorded)
            }
            Err(detail) => {
                if self.state == state {
                    self.state = self.durable;
                }
                self.handle(Event::RecordFailed { detail })
            }
        }
    }

    pub(super) fn finish(&mut self, report: Report) {
        self.keeper.write_report(self.make_record(Some(report.clone())));
        self.board.report.send_replace(Some(report));
    }

    pub(super) fn make_record(&self, report: Option<Report>) -> Record {
        let described = self.description.as_ref();
        Record {
            migration: self.session.migration,
            guest: described.map_or_else(|| self.session.guest.clone(), |it| it.name.clone()),
            guest_uuid: described.map_or(uuid::Uuid::nil(), |it| it.uuid),
            pid: std::process::id(),
            started_unix_ms: self.started_unix_ms,
            updated_unix_ms: 0,
            side: Side::Destination {
                state: self.state,
                source_address: self
                    .session
                    .source
                    .unwrap_or(SocketAddr::new(self.session.listen, 0)),
                port: self.port,
                token: self.session.token,
            },
            report,
        }
    }
}
