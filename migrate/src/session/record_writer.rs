//! Writes the versions of a session's record, one after the other, off the runtime's threads.

use std::fmt::Debug;
use std::io;
use std::path::PathBuf;

use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};
use tracing::Instrument;

use crate::record::{Record, RecordError, RecordFile, RecordStore, unix_ms};
use crate::text::PeerText;

/// The state of one side: as requested, and as on disk.
#[derive(Debug)]
pub(super) struct RecordedState<S> {
    asked: S,
    durable: S,
}

impl<S: Copy + PartialEq> RecordedState<S> {
    /// Creates the state of a side that begins in `state`, which needs no record.
    pub(super) fn new(state: S) -> Self {
        Self { asked: state, durable: state }
    }

    /// Returns the state that the next record has.
    pub(super) fn now(&self) -> S {
        self.asked
    }

    /// Requests that `state` is recorded.
    pub(super) fn ask(&mut self, state: S) {
        self.asked = state;
    }

    /// Handles the result of recording `state`. If it could not be written, it must not be written
    /// later with a report, when the machine no longer relies on it.
    pub(super) fn answered<E>(&mut self, state: S, outcome: &Result<(), E>) {
        if outcome.is_ok() {
            self.durable = state;
        } else if self.asked == state {
            self.asked = self.durable;
        }
    }
}

/// Queues versions of one record, which are written in order.
#[derive(Debug)]
pub(super) struct RecordWriter {
    orders: mpsc::UnboundedSender<Order>,
}

struct Order {
    record: Record,
    done: Box<dyn FnOnce(Result<(), RecordError>) + Send>,
}

impl RecordWriter {
    /// Starts a writer for a record that is not in `store` yet.
    pub(super) fn start(store: RecordStore, tasks: &mut JoinSet<()>) -> Self {
        let (orders, inbox) = mpsc::unbounded_channel();
        tasks.spawn(keep(store, inbox).in_current_span());
        Self { orders }
    }

    /// Writes `record`; calls `done` when it is durable, or cannot be made durable.
    pub(super) fn write(
        &self,
        mut record: Record,
        done: impl FnOnce(Result<(), RecordError>) + Send + 'static,
    ) {
        // The clock may have been set back since.
        record.updated_unix_ms = unix_ms().max(record.started_unix_ms);
        let _ = self.orders.send(Order { record, done: Box::new(done) });
    }

    /// Writes `record` with the state `state`; `report` receives whether it is durable.
    pub(super) fn write_state<S: Debug + Copy + Send + 'static>(
        &self,
        record: Record,
        state: S,
        report: impl FnOnce(S, Result<(), PeerText>) + Send + 'static,
    ) {
        self.write(record, move |outcome| {
            let outcome = outcome.map_err(|error| {
                tracing::warn!(%error, "cannot record that the migration is {state:?}");
                error.to_string().as_str().into()
            });
            report(state, outcome);
        });
    }

    /// Writes `record` with a report. No decision depends on it: without it, only information is
    /// lost.
    pub(super) fn write_report(&self, record: Record) {
        self.write(record, |outcome| {
            if let Err(error) = outcome {
                tracing::warn!(%error, "the report is not kept");
            }
        });
    }
}

async fn keep(store: RecordStore, mut inbox: mpsc::UnboundedReceiver<Order>) {
    let mut file: Option<RecordFile> = None;
    while let Some(Order { record, done }) = inbox.recv().await {
        let (store, open) = (store.clone(), file.take());
        let written = spawn_blocking(move || match open {
            Some(mut file) => {
                let outcome = file.write(&record);
                (Some(file), outcome)
            }
            None => match store.create(&record) {
                Ok(file) => (Some(file), Ok(())),
                Err(error) => (None, Err(error)),
            },
        });
        // The closure cannot be cancelled, so an error is a panic: the record on disk is unknown,
        // which is an answer too.
        let (kept, outcome) = written.await.unwrap_or_else(|error| {
            let cause = io::Error::other(error);
            (None, Err(RecordError::Io { operation: "write", path: PathBuf::new(), cause }))
        });
        file = kept;
        done(outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::RecordedState;

    #[test]
    fn a_state_that_could_not_be_written_is_reverted() {
        let mut stated = RecordedState::new(0);
        stated.ask(1);
        stated.answered(1, &Ok::<_, ()>(()));
        stated.ask(2);
        assert_eq!(stated.now(), 2);
        stated.answered(2, &Err(()));
        assert_eq!(stated.now(), 1);
    }

    #[test]
    fn a_late_failure_does_not_revert_later_requests() {
        let mut stated = RecordedState::new(0);
        stated.ask(1);
        stated.ask(2);
        stated.answered(1, &Err(()));
        assert_eq!(stated.now(), 2);
    }
}
