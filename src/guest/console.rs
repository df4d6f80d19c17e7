//! A guest's serial console: on stdout, or in a log of bounded size. The guest never waits for
//! either.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::scrollback::Scrollback;

/// Limit for output that waits for a slow terminal, bytes; beyond it, the newest output is lost.
const BACKLOG_BYTES_MAX: usize = 256 << 10;

/// Size at which a console log is rotated, bytes. One old log is kept, so a guest fills twice this
/// at most.
const LOG_BYTES_MAX: u64 = 4 << 20;

/// How long the shutdown waits for a slow terminal.
const FLUSH_PATIENCE: Duration = Duration::from_millis(200);

/// Where a guest's console output goes. The most recent output is also kept for clients of the API.
#[derive(Debug, Clone)]
pub(crate) struct Console {
    place: Place,
    scrollback: Arc<Scrollback>,
}

/// The place that the output goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// This process's stdout.
    Stdout,
    /// A log at this path, which is rotated when it is full.
    Log(PathBuf),
}

impl Console {
    /// This process's stdout.
    pub(crate) fn stdout() -> Self {
        Self { place: Place::Stdout, scrollback: Arc::default() }
    }

    /// The file at `path`.
    pub(crate) fn log(path: PathBuf) -> Self {
        Self { place: Place::Log(path), scrollback: Arc::default() }
    }

    /// Whether it is this process's stdout.
    pub(crate) fn is_stdout(&self) -> bool {
        self.place == Place::Stdout
    }

    /// The most recent output.
    pub(crate) fn scrollback(&self) -> &Arc<Scrollback> {
        &self.scrollback
    }

    /// Opens the writer for the machine.
    ///
    /// # Errors
    /// If the log cannot be opened, or no thread can be started.
    pub(crate) fn output(&self) -> Result<Box<dyn Write + Send>> {
        let scrollback = Arc::clone(&self.scrollback);
        Ok(match &self.place {
            Place::Stdout => Box::new(Recorded { scrollback, place: TerminalOutput::start()? }),
            Place::Log(path) => Box::new(Recorded { scrollback, place: ConsoleLog::open(path)? }),
        })
    }
}

/// Writes to a place, and keeps the most recent output.
struct Recorded<W> {
    scrollback: Arc<Scrollback>,
    place: W,
}

impl<W: Write> Write for Recorded<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Keep all of it even if the place fails: a full disk must not hide output from API
        // clients.
        self.scrollback.push(bytes);
        self.place.write_all(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.place.flush()
    }
}

/// Writes to stdout from a thread of its own.
struct TerminalOutput {
    shared: Arc<(Mutex<Backlog>, Condvar)>,
}

#[derive(Default)]
struct Backlog {
    waiting: VecDeque<u8>,
    /// Whether the thread has taken bytes and is writing them.
    writing: bool,
    closed: bool,
}

impl TerminalOutput {
    fn start() -> Result<Self> {
        let shared = Arc::new((Mutex::new(Backlog::default()), Condvar::new()));
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("console-out".to_owned())
            .spawn(move || drain(&theirs))
            .context("cannot start a thread for the console")?;
        Ok(Self { shared })
    }
}

fn drain(shared: &(Mutex<Backlog>, Condvar)) {
    let (backlog, changed) = shared;
    loop {
        let mut held = backlog.lock().unwrap_or_else(PoisonError::into_inner);
        while held.waiting.is_empty() {
            if held.closed {
                return;
            }
            held = changed.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        let bytes: Vec<u8> = held.waiting.drain(..).collect();
        held.writing = true;
        drop(held);
        let mut stdout = io::stdout().lock();
        // A terminal that is gone must not end the guest.
        let _ = stdout.write_all(&bytes).and_then(|()| stdout.flush());
        backlog.lock().unwrap_or_else(PoisonError::into_inner).writing = false;
        changed.notify_all();
    }
}

impl Write for TerminalOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (backlog, changed) = &*self.shared;
        let mut held = backlog.lock().unwrap_or_else(PoisonError::into_inner);
        let room = BACKLOG_BYTES_MAX.saturating_sub(held.waiting.len());
        held.waiting.extend(bytes.iter().take(room));
        changed.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for TerminalOutput {
    fn drop(&mut self) {
        let (backlog, changed) = &*self.shared;
        let mut held = backlog.lock().unwrap_or_else(PoisonError::into_inner);
        held.closed = true;
        changed.notify_all();
        let busy = |held: &mut Backlog| held.writing || !held.waiting.is_empty();
        drop(changed.wait_timeout_while(held, FLUSH_PATIENCE, busy));
    }
}

/// A log that keeps the last 4 to 8 MiB.
struct ConsoleLog {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl ConsoleLog {
    fn open(path: &Path) -> Result<Self> {
        let file = open_log(path)
            .with_context(|| format!("cannot open the console's log {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file, bytes: 0 })
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)
}

impl Write for ConsoleLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes >= LOG_BYTES_MAX {
            std::fs::rename(&self.path, self.path.with_extension("log.old"))?;
            self.file = open_log(&self.path)?;
            self.bytes = 0;
        }
        let written = self.file.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chatty_guest_does_not_fill_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let mut log = ConsoleLog::open(&path).unwrap();
        let block = vec![b'x'; 1 << 20];
        for _ in 0..20 {
            log.write_all(&block).unwrap();
        }
        let sizes = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len());
        let total: u64 = sizes.sum();
        assert!((LOG_BYTES_MAX..=2 * LOG_BYTES_MAX).contains(&total), "{total}");
    }
}
