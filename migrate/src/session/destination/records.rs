//! The destination's record of its migration.

use std::net::SocketAddr;

use super::{Driver, Input};
use crate::destination::Event;
use crate::record::{DestinationState, Record, Side};
use crate::report::Report;

impl Driver {
    pub(super) fn record(&mut self, state: DestinationState) {
        self.state = state;
        let tell = self.tell.clone();
        self.keeper.write(self.make_record(None), move |outcome| {
            let _ = tell.send(Input::Event(match outcome {
                Ok(()) => Event::Recorded,
                Err(error) => Event::RecordFailed { detail: error.to_string().as_str().into() },
            }));
        });
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
