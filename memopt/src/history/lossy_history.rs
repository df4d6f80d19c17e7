//! A history that tolerates failure: it loses records rather than stopping the work.

use std::path::PathBuf;
use std::time::Duration;

use super::error::HistoryError;
use super::limits::Limits;
use super::run::RunId;
use super::store::{History, Opened};

/// How long to wait after a failure before opening the folder again.
const RETRY: Duration = Duration::from_secs(60);
/// Maximum number of news kept until they are taken.
const NEWS_MAX: usize = 100;

/// A history for a caller that must continue without it. A failure is reported once, and opening
/// the folder is tried again after a minute each time.
#[derive(Debug)]
pub struct LossyHistory {
    path: PathBuf,
    limits: Limits,
    kept: Kept,
    /// The last reported problem with the folder, so that it is reported only once.
    complaint: Option<String>,
    news: Vec<HistoryEvent>,
}

#[derive(Debug)]
enum Kept {
    /// Records are written to the folder.
    InFolder(Box<History>),
    /// Records are lost; the folder is opened again at this uptime.
    Nowhere { retry_at: Duration },
}

/// An event for the caller to log.
#[derive(Debug)]
pub enum HistoryEvent {
    /// Nothing is recorded from here on.
    Lost(HistoryError),
    /// Runs are recorded, for the first time or again.
    Kept {
        /// Runs that were interrupted: the process died during them, or the history was lost.
        interrupted: Vec<RunId>,
        /// Runs that cannot be read.
        unreadable: Vec<RunId>,
    },
    /// One record was refused because of its own content; the history is still usable.
    Refused(HistoryError),
}

impl LossyHistory {
    /// Opens the history in the folder at `path`, at the host's `uptime`.
    #[must_use]
    pub fn open(path: PathBuf, limits: Limits, uptime: Duration) -> Self {
        let kept = Kept::Nowhere { retry_at: uptime };
        let mut lossy_history = Self { path, limits, kept, complaint: None, news: Vec::new() };
        lossy_history.try_open(uptime);
        lossy_history
    }

    /// Runs `body` on the history, if there is one. Errors are reported through
    /// [`Self::take_news`].
    pub fn with<T>(
        &mut self,
        uptime: Duration,
        body: impl FnOnce(&mut History) -> Result<T, HistoryError>,
    ) -> Option<T> {
        if matches!(self.kept, Kept::Nowhere { retry_at } if retry_at <= uptime) {
            self.try_open(uptime);
        }
        let Kept::InFolder(history) = &mut self.kept else { return None };
        match body(history) {
            Ok(done) => Some(done),
            Err(error) if error.is_fatal() => {
                self.lose(uptime, error);
                None
            }
            Err(error) => {
                self.add_news(HistoryEvent::Refused(error));
                None
            }
        }
    }

    /// Returns the news since the last call.
    #[must_use]
    pub fn take_news(&mut self) -> Vec<HistoryEvent> {
        std::mem::take(&mut self.news)
    }

    fn try_open(&mut self, uptime: Duration) {
        match History::open(&self.path, self.limits) {
            Ok(Opened { history, interrupted, unreadable }) => {
                self.kept = Kept::InFolder(Box::new(history));
                self.complaint = None;
                self.add_news(HistoryEvent::Kept { interrupted, unreadable });
            }
            Err(error) => self.lose(uptime, error),
        }
    }

    /// Continues without a history. This is reported once, not again for each failed retry.
    fn lose(&mut self, uptime: Duration, error: HistoryError) {
        self.kept = Kept::Nowhere { retry_at: uptime.saturating_add(RETRY) };
        let complaint = Some(error.to_string());
        if complaint != self.complaint {
            self.complaint = complaint;
            self.add_news(HistoryEvent::Lost(error));
        }
    }

    fn add_news(&mut self, news: HistoryEvent) {
        if self.news.len() < NEWS_MAX {
            self.news.push(news);
        }
    }
}

#[cfg(test)]
mod tests;
