//! Calls to a guest, one after the other, on a thread that may block.

use std::sync::mpsc;

use tokio::task::{JoinSet, spawn_blocking};

type Call = Box<dyn FnOnce() + Send>;

/// A queue of calls, which keeps a guest from being paused and resumed at the same time.
#[derive(Debug, Clone)]
pub(super) struct Worker(mpsc::Sender<Call>);

impl Worker {
    /// Starts the thread; it ends when the last clone of the worker is dropped.
    pub(super) fn start(tasks: &mut JoinSet<()>) -> Self {
        let (calls, inbox) = mpsc::channel::<Call>();
        let thread = spawn_blocking(move || {
            while let Ok(call) = inbox.recv() {
                call();
            }
        });
        tasks.spawn(async move {
            let _ = thread.await;
        });
        Self(calls)
    }

    /// Queues a call.
    pub(super) fn run(&self, call: impl FnOnce() + Send + 'static) {
        let _ = self.0.send(Box::new(call));
    }
}
