//! Memory that follows the guest: the actions and inputs that post-copy adds.

use std::sync::Arc;

use quinn::{RecvStream, SendStream};

use super::super::fetch::{Fetch, FetchError};
use super::super::pace::Next;
use super::{Driver, Input};
use crate::destination::Event;
use crate::guest::{GuestError, MissingMemory};
use crate::memory::PageSet;
use crate::protocol::{DestinationMessage, PageMasks};

/// Most streams with pages that wait for the last pages to be dropped: those of as many connections
/// as a source makes, and one for requests.
const EARLY_MAX: usize = 17;

/// A stream with pages, and the other direction of one with requests.
pub(super) type PageStream = (Option<SendStream>, RecvStream);

impl Driver {
    /// Drops pages, on the worker; all data streams have ended.
    pub(super) fn clear(&self, missing: PageSet) {
        let (guest, input_sender) = (self.guest.clone(), self.input_sender.clone());
        self.worker.run(move || {
            let cleared =
                guest.ok_or_else(|| GuestError::new("it was not built")).and_then(|guest| {
                    let memory = guest.follow_with_memory()?;
                    memory.clear(missing.words())?;
                    Ok(memory)
                });
            let _ = input_sender.send(Input::Cleared(cleared));
        });
    }

    pub(super) fn on_cleared(
        &mut self,
        cleared: Result<Arc<dyn MissingMemory>, GuestError>,
    ) -> Next {
        let answer = cleared.map(|memory| {
            if !self.discarded {
                self.begin_to_fetch(memory);
            }
        });
        self.handle(Event::Cleared(answer))
    }

    fn begin_to_fetch(&mut self, memory: Arc<dyn MissingMemory>) {
        let Some(description) = &self.description else { return };
        let input_sender = self.input_sender.clone();
        self.fetch = Some(Fetch::start(
            memory,
            description.layout.chunks(),
            self.features,
            self.totals.clone(),
            &mut self.tasks,
            move |event| {
                let _ = input_sender.send(Input::Event(event));
            },
        ));
    }

    /// Drops further pages, the last; what is requested of the worker next finds them missing. Only
    /// then are pages placed.
    pub(super) fn fetch(&self, missing: PageSet) {
        let Some(fetch) = &self.fetch else { return };
        let (finally, input_sender) = (fetch.finally(missing), self.input_sender.clone());
        self.worker.run(move || {
            finally();
            let _ = input_sender.send(Input::Dropped);
        });
    }

    /// Begins to place pages.
    pub(super) fn on_dropped(&mut self) -> Next {
        self.is_placing = true;
        for stream in std::mem::take(&mut self.early_pages) {
            if self.admit_pages(stream) == Next::End {
                return Next::End;
            }
        }
        Next::GoOn
    }

    pub(super) fn report_missing(&mut self) {
        if let Some(fetch) = &self.fetch {
            let missing = PageMasks::of(&fetch.missing());
            self.send(&DestinationMessage::Missing(missing));
        }
    }

    pub(super) fn abandon_missing(&self) {
        if let Some(fetch) = &self.fetch {
            fetch.abandon();
        }
    }

    /// Stops the guest; its memory stays as it is, so what waits for a page goes on waiting.
    pub(super) fn stop_fetching(&mut self) {
        self.fetch = None;
        let Some(guest) = self.guest.clone() else { return };
        self.worker.run(move || {
            if let Err(error) = guest.strand() {
                tracing::error!(%error, "a guest whose memory is lost still runs");
            }
        });
    }

    /// Reads a stream with pages; if it goes both ways, requests for them are sent on it.
    pub(super) fn admit_pages(&mut self, (send, receive): PageStream) -> Next {
        let Some(fetch) = &self.fetch else { return self.unexpected_stream() };
        if !self.is_placing {
            if self.early_pages.len() >= EARLY_MAX {
                return self.data_failed("too many streams of memory that follows its guest");
            }
            self.early_pages.push((send, receive));
            return Next::GoOn;
        }
        if let Some(send) = send {
            fetch.request_on(send, &mut self.tasks);
        }
        let reading = fetch.read(receive);
        self.read_pages(reading);
        Next::GoOn
    }

    fn read_pages(
        &mut self,
        reading: impl Future<Output = Result<(), FetchError>> + Send + 'static,
    ) {
        while self.readers.try_join_next().is_some() {}
        let (input_sender, generation) = (self.input_sender.clone(), self.line.generation());
        self.readers.spawn(async move {
            match reading.await {
                Ok(()) | Err(FetchError::Elsewhere) => {}
                Err(error) => {
                    let _ = input_sender.send(Input::Unfit(generation, error.to_string()));
                }
            }
        });
    }

    /// A stream of the current connection is not fit: that is closed, and the source makes another.
    pub(super) fn on_unfit(&self, generation: u64, detail: &str) {
        if generation == self.line.generation() && self.fetch.is_some() {
            tracing::error!(detail, "memory that follows the guest cannot be used");
            self.line.cut(detail);
        }
    }

    fn unexpected_stream(&mut self) -> Next {
        // Streams of a source that has not heard yet that all is there.
        if self.is_fetched {
            return Next::GoOn;
        }
        self.data_failed("memory follows a guest whose memory is here")
    }

    /// Tells the state machine, which only notes that, how long the guest waits for pages.
    pub(super) fn report_waits(&mut self) {
        if let Some(waits) = self.fetch.as_ref().map(Fetch::waits) {
            self.handle(Event::Waited(waits));
        }
    }

    /// All memory is there: streams with pages that come twice are read no longer.
    pub(super) fn on_fetched(&mut self) -> Next {
        self.is_fetched = true;
        self.report_waits();
        self.fetch = None;
        self.early_pages.clear();
        self.readers.abort_all();
        self.handle(Event::Transferred(self.totals.read()));
        self.handle(Event::Fetched)
    }
}
