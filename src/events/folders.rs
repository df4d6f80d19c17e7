//! New folders, as the kernel reports them.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use inotify::{EventMask, EventStream, Inotify, WatchMask};
use tokio::time::{sleep, timeout};

use super::pauses::Pauses;

/// Pause between two scans for new folders while inotify is not available.
const SCAN_PAUSE: Duration = Duration::from_millis(200);

/// Buffer for inotify events, in bytes: each contains a name.
const WATCHED_BYTES: usize = 4096;

/// Waits for new folders in `parent`, which need not exist yet.
#[derive(Debug)]
pub(super) struct NewFolders {
    parent: PathBuf,
    watch: Option<EventStream<Vec<u8>>>,
    pauses: Pauses,
}

impl NewFolders {
    /// Watches `parent`; if that is not possible yet, [`Self::wait`] tries again.
    pub(super) fn of(parent: &Path) -> Self {
        let watch = watch(parent).ok();
        Self { parent: parent.to_owned(), watch, pauses: Pauses::default() }
    }

    /// Returns when there may be a new folder, or when one found last time may be ready.
    pub(super) async fn wait(&mut self) {
        self.watch = self.watch.take().or_else(|| watch(&self.parent).ok());
        let Some(watch) = &mut self.watch else { return sleep(SCAN_PAUSE).await };
        match timeout(self.pauses.next(), watch.next()).await {
            // The folder itself is gone: a new one needs a new watch.
            Ok(Some(Ok(event))) if event.mask.contains(EventMask::IGNORED) => self.watch = None,
            // Listing the folders shows which one is new.
            Ok(Some(Ok(_))) => self.pauses = Pauses::default(),
            // The next call replaces a watch that failed.
            Ok(Some(Err(_)) | None) => self.watch = None,
            Err(_) => {}
        }
    }
}

/// Watches `parent` for new folders, with inotify.
fn watch(parent: &Path) -> io::Result<EventStream<Vec<u8>>> {
    let inotify = Inotify::init()?;
    inotify.watches().add(parent, WatchMask::CREATE | WatchMask::ONLYDIR)?;
    inotify.into_event_stream(vec![0; WATCHED_BYTES])
}
