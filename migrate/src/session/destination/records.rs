//! The destination's record of its migration.

use std::net::SocketAddr;

use super::{Driver, Input};
use crate::destination::Event;
use crate::record::{DestinationState, Record, Side};
use crate::report::Report;

impl Driver {
    pub(super) fn record(&mut self, state: DestinationState) {
        let tell = self.tell.clone();
        self.keeper.write(self.make_record(state, None), move |outcome| {
            let _ = tell.send(match outcome {
                Ok(()) => Input::Recorded(state),
                Err(error) => {
                    tracing::warn!(%error, "cannot record that the migration is {state:?}");
                    let detail = error.to_string().as_str().into();
                    Input::Event(Event::RecordFailed { detail })
                }
            });
        });
    }

    pub(super) fn finish(&mut self, report: Report) {
        self.keeper.write_report(self.make_record(self.state, Some(report.clone())));
        self.board.report.send_replace(Some(report));
    }

    pub(super) fn make_record(&self, state: DestinationState, report: Option<Report>) -> Record {
        let described = self.description.as_ref();
        Record {
            migration: self.session.migration,
            guest: described.map_or_else(|| self.session.guest.clone(), |it| it.name.clone()),
            guest_uuid: described.map_or(uuid::Uuid::nil(), |it| it.uuid),
            pid: std::process::id(),
            started_unix_ms: self.started_unix_ms,
            updated_unix_ms: 0,
            side: Side::Destination {
                state,
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
