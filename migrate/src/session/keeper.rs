//! Writes a session's record, one version after the other, off the runtime's threads.

use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};
use tracing::Instrument;

use super::clock::unix_ms;
use crate::record::{Record, RecordError, RecordFile, RecordStore};

/// Takes versions of one record; they are written in order.
#[derive(Debug)]
pub(super) struct Keeper {
    orders: mpsc::UnboundedSender<Order>,
}

struct Order {
    record: Record,
    done: Box<dyn FnOnce(Result<(), RecordError>) + Send>,
}

impl Keeper {
    /// Starts a keeper of a record that is not in `store` yet.
    pub(super) fn start(store: RecordStore, tasks: &mut JoinSet<()>) -> Self {
        let (orders, inbox) = mpsc::unbounded_channel();
        tasks.spawn(keep(store, inbox).in_current_span());
        Self { orders }
    }

    /// Writes `record`; `done` is called when it is durable, or cannot be made so.
    pub(super) fn write(
        &self,
        mut record: Record,
        done: impl FnOnce(Result<(), RecordError>) + Send + 'static,
    ) {
        record.updated_unix_ms = unix_ms();
        let _ = self.orders.send(Order { record, done: Box::new(done) });
    }

    /// Writes `record` with a report, by which nothing is decided: without it, less is known later.
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
        // The closure cannot be cancelled; it would have to panic.
        let Ok((kept, outcome)) = written.await else { return };
        file = kept;
        done(outcome);
    }
}
