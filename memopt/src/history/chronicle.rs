//! A history that may be missing: records are lost rather than work.

use std::path::PathBuf;
use std::time::Duration;

use super::error::HistoryError;
use super::limits::Limits;
use super::run::RunId;
use super::store::{History, Opened};

/// How long after a failure the folder is tried again.
const RETRY: Duration = Duration::from_secs(60);
/// Most news that wait for somebody to take them.
const NEWS_MAX: usize = 100;

/// A history for whoever must go on without it: what fails is said once, and the folder is
/// tried again every minute.
#[derive(Debug)]
pub struct Chronicle {
    path: PathBuf,
    limits: Limits,
    kept: Kept,
    /// What was last said to be wrong with the folder, so that it is said once.
    complaint: Option<String>,
    news: Vec<News>,
}

#[derive(Debug)]
enum Kept {
    /// In the folder.
    InFolder(Box<History>),
    /// Nowhere; from this uptime on the folder is tried again.
    Nowhere { retry_at: Duration },
}

/// What whoever keeps a log has to write into it.
#[derive(Debug)]
pub enum News {
    /// Nothing is kept from here on.
    Lost(HistoryError),
    /// It is kept, or kept again.
    Kept {
        /// Runs that were interrupted: somebody died over them, or the history was lost meanwhile.
        interrupted: Vec<RunId>,
        /// Runs that cannot be read.
        unreadable: Vec<RunId>,
    },
    /// One thing could not be kept, for its own sake.
    Refused(HistoryError),
}

impl Chronicle {
    /// A chronicle in the folder at `path`, at this uptime of the host.
    #[must_use]
    pub fn open(path: PathBuf, limits: Limits, uptime: Duration) -> Self {
        let kept = Kept::Nowhere { retry_at: uptime };
        let mut chronicle = Self { path, limits, kept, complaint: None, news: Vec::new() };
        chronicle.try_open(uptime);
        chronicle
    }

    /// Does something with the history, if there is one. What goes wrong is in [`Self::take_news`].
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
                self.tell(News::Refused(error));
                None
            }
        }
    }

    /// What has happened since this was last asked.
    #[must_use]
    pub fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    fn try_open(&mut self, uptime: Duration) {
        match History::open(&self.path, self.limits) {
            Ok(Opened { history, interrupted, unreadable }) => {
                self.kept = Kept::InFolder(Box::new(history));
                self.complaint = None;
                self.tell(News::Kept { interrupted, unreadable });
            }
            Err(error) => self.lose(uptime, error),
        }
    }

    /// Goes on without; said once, and not again each time that the folder is tried in vain.
    fn lose(&mut self, uptime: Duration, error: HistoryError) {
        self.kept = Kept::Nowhere { retry_at: uptime.saturating_add(RETRY) };
        let complaint = Some(error.to_string());
        if complaint != self.complaint {
            self.complaint = complaint;
            self.tell(News::Lost(error));
        }
    }

    fn tell(&mut self, news: News) {
        if self.news.len() < NEWS_MAX {
            self.news.push(news);
        }
    }
}

#[cfg(test)]
mod tests;
