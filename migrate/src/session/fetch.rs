//! The destination's side of memory that follows its guest: requests the pages for which the guest
//! waits, and places those that arrive.
//!
//! One thread waits until the guest waits for pages, and requests those, until all are there. As
//! long as the guest waits for none, it sleeps. Nothing here accesses that memory, so nothing here
//! waits for a page.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use quinn::{ReadExactError, RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};

use super::receiver::counted;
use super::totals::Totals;
use crate::destination::Event;
use crate::guest::{ChunkPages, GuestError, MissingMemory};
use crate::memory::{CHUNK_BYTES, PAGE_BYTES, PageSet};
use crate::pages::{Decoder, Encoding, FrameError, FrameHeader, FrameKind, HEADER_BYTES, runs};
use crate::protocol::page_request::PageRequest;
use crate::protocol::{FEATURE_LZ4, Features};
use crate::waits::PageWaits;

/// Pause after a failure to find out what is waited for.
const FAILED_PAUSE: Duration = Duration::from_secs(1);
/// Priority of the stream of requests, as at the source.
const REQUESTS_PRIORITY: i32 = 5;

/// Memory that is being fetched. Dropping it ends the thread; memory that is missing stays so.
pub(super) struct Fetch(Arc<Shared>);

struct Shared {
    memory: Arc<dyn MissingMemory>,
    chunks: usize,
    features: Features,
    totals: Arc<Totals>,
    /// The newest stream of requests.
    requests: Mutex<Option<mpsc::UnboundedSender<ChunkPages>>>,
    /// How long the guest waits for pages.
    waits: Mutex<PageWaits>,
    /// Set once all that is missing is known: fetching ends when nothing is left.
    is_final: AtomicBool,
    is_stopped: AtomicBool,
    failed: OnceLock<GuestError>,
}

/// Why a stream with pages is no longer read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error("a stream of memory that follows its guest carries {0}")]
    Unexpected(&'static str),
    /// The connection broke, or the source stopped sending: the control stream reports both.
    #[error("told elsewhere")]
    Elsewhere,
}

impl Fetch {
    /// Begins, with memory of `chunks` chunks of which pages were dropped. `report` gets
    /// [`Event::Fetched`].
    pub(super) fn start(
        memory: Arc<dyn MissingMemory>,
        chunks: usize,
        features: Features,
        totals: Arc<Totals>,
        tasks: &mut JoinSet<()>,
        report: impl FnOnce(Event) + Send + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            memory,
            chunks,
            features,
            totals,
            requests: Mutex::default(),
            waits: Mutex::new(PageWaits::new()),
            is_final: AtomicBool::new(false),
            is_stopped: AtomicBool::new(false),
            failed: OnceLock::new(),
        });
        let watched = shared.clone();
        let thread = spawn_blocking(move || {
            if watched.watch() {
                report(Event::Fetched);
            }
        });
        tasks.spawn(async move {
            // A panic there has already been reported by the panic handler.
            let _ = thread.await;
        });
        Self(shared)
    }

    /// Returns what drops further pages, the last: [`Fetch::failure`] has the error. No page may be
    /// placed before: if one of these came first, it would be ignored, and never come again.
    pub(super) fn finally(&self, missing: PageSet) -> impl FnOnce() + Send + use<> {
        let shared = self.0.clone();
        move || match shared.memory.clear(missing.words()) {
            Ok(()) => {
                shared.is_final.store(true, Ordering::Release);
                shared.memory.interrupt();
            }
            Err(error) => drop(shared.failed.set(error)),
        }
    }

    /// Returns what tells why the last pages could not be dropped.
    pub(super) fn failure(&self) -> impl Fn() -> Option<GuestError> + Send + use<> {
        let shared = self.0.clone();
        move || shared.failed.get().cloned()
    }

    /// Returns the pages that are missing.
    pub(super) fn missing(&self) -> PageSet {
        let mut set = PageSet::empty(self.0.chunks);
        for (chunk, pages) in self.0.memory.missing() {
            if let Some(word) = set.words_mut().get_mut(chunk) {
                *word = pages;
            }
        }
        set
    }

    /// Returns how long the guest has waited for pages by now; warns once if that is long.
    pub(super) fn waits(&self) -> PageWaits {
        self.0.note_waits()
    }

    /// Sends requests on this stream from now on, first those that have not been answered.
    pub(super) fn request_on(&self, mut stream: SendStream, tasks: &mut JoinSet<()>) {
        let (requests, mut inbox) = mpsc::unbounded_channel::<ChunkPages>();
        // First the stream, then the pages: none is left out that is waited for from now on.
        let again = requests.clone();
        *self.0.lock_requests() = Some(requests);
        for pages in self.0.memory.waited_for() {
            let _ = again.send(pages);
        }
        drop(again);
        // Tasks that have ended: a peer may open such streams without end.
        while tasks.try_join_next().is_some() {}
        // It fails only for a stream that has ended.
        let _ = stream.set_priority(REQUESTS_PRIORITY);
        tasks.spawn(async move {
            while let Some((chunk, pages)) = inbox.recv().await {
                let request = PageRequest { chunk: chunk as u64, pages };
                if stream.write_all(&request.encode()).await.is_err() {
                    // The control stream reports the loss; the next stream repeats the request.
                    return;
                }
            }
        });
    }

    /// Returns what reads a stream to its end and places its pages.
    pub(super) fn read(
        &self,
        from: RecvStream,
    ) -> impl Future<Output = Result<(), FetchError>> + Send + use<> {
        let shared = self.0.clone();
        async move { shared.receive(from).await }
    }

    /// Lets those who wait for a page continue, with zeros: the guest will never run here.
    pub(super) fn abandon(&self) {
        if let Err(error) = self.0.memory.end() {
            tracing::error!(%error, "the guest's memory is waited for in vain");
        }
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        self.0.is_stopped.store(true, Ordering::Release);
        self.0.memory.interrupt();
        *self.0.lock_requests() = None;
    }
}

impl Shared {
    fn lock_requests(&self) -> MutexGuard<'_, Option<mpsc::UnboundedSender<ChunkPages>>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_waits(&self) -> MutexGuard<'_, PageWaits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_waits(&self) -> PageWaits {
        let mut waits = self.lock_waits();
        let was_withheld = waits.is_withheld();
        waits.add(&self.memory.waits());
        if waits.is_withheld() && !was_withheld {
            let seconds = waits.oldest_seconds;
            tracing::warn!(seconds, "the guest waits for a page that its source does not send");
        }
        waits.clone()
    }

    /// Requests what is waited for, until all is there; returns false if that is no longer wanted.
    fn watch(&self) -> bool {
        while !self.is_stopped.load(Ordering::Acquire) {
            match self.memory.wanted() {
                Ok(wanted) => self.request(wanted),
                Err(error) => {
                    tracing::error!(%error, "the guest waits for memory in vain");
                    std::thread::sleep(FAILED_PAUSE);
                }
            }
            if self.is_final.load(Ordering::Acquire) && self.memory.left() == 0 {
                if let Err(error) = self.memory.end() {
                    tracing::warn!(%error, "the guest's memory stays registered");
                }
                *self.lock_requests() = None;
                return true;
            }
        }
        false
    }

    /// Without a stream, they are requested on the next one.
    fn request(&self, wanted: Vec<ChunkPages>) {
        let requests = self.lock_requests();
        let Some(requests) = requests.as_ref() else { return };
        for pages in wanted {
            let _ = requests.send(pages);
        }
    }

    async fn receive(&self, mut from: RecvStream) -> Result<(), FetchError> {
        let (mut head, mut payload) = ([0; HEADER_BYTES], vec![0; CHUNK_BYTES]);
        let mut decoder = Decoder::new();
        loop {
            match from.read_exact(&mut head).await {
                Ok(()) => {}
                Err(ReadExactError::FinishedEarly(0)) => return Ok(()),
                Err(error) => return Err(broken(&error)),
            }
            let header = FrameHeader::decode(&head, self.chunks as u64)?;
            self.check(&header)?;
            let payload = &mut payload[..header.payload_bytes as usize];
            from.read_exact(payload).await.map_err(|error| broken(&error))?;
            self.place(&header, decoder.decode(&header, &head, payload)?)?;
            self.totals.add(&counted(&header));
        }
    }

    fn check(&self, header: &FrameHeader) -> Result<(), FetchError> {
        if header.kind != FrameKind::Pages {
            return Err(FetchError::Unexpected("an end marker"));
        }
        if header.encoding == Encoding::Lz4 && !self.features.has(FEATURE_LZ4) {
            return Err(FetchError::Unexpected("lz4, which was not agreed on"));
        }
        Ok(())
    }

    fn place(&self, header: &FrameHeader, content: &[u8]) -> Result<(), FetchError> {
        // The header was checked against the number of chunks.
        let chunk = header.chunk as usize;
        let mut rest = content;
        for run in runs(header.carried()) {
            let (pages, after) = rest.split_at(run.count * PAGE_BYTES);
            self.memory.place(chunk, run.first, pages)?;
            rest = after;
        }
        if header.zero != 0 {
            self.memory.place_zeros(chunk, header.zero)?;
        }
        Ok(())
    }
}

/// A source that goes away resets its streams; only one that breaks the rules ends them too early.
fn broken(error: &ReadExactError) -> FetchError {
    match error {
        ReadExactError::FinishedEarly(_) => FetchError::Unexpected("a part of a frame at its end"),
        ReadExactError::ReadError(_) => FetchError::Elsewhere,
    }
}
