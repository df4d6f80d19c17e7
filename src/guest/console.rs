//! A guest's serial console: on this terminal, or in a log of bounded size. The guest never waits for either.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::termios::{InputFlags, LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

/// Output that waits for a slow terminal, bytes; beyond it the newest is lost.
const BACKLOG_BYTES_MAX: usize = 256 << 10;

/// Size at which a console log is put aside, bytes; so a guest fills at most twice this.
const LOG_BYTES_MAX: u64 = 4 << 20;

/// The key that ends a guest on this terminal: Ctrl-].
const END_KEY: u8 = 0x1d;

/// How long the end waits for a slow terminal.
const FLUSH_PATIENCE: Duration = Duration::from_millis(200);

/// Where a guest's console goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Console {
    /// This process's stdin and stdout.
    Terminal,
    /// A file.
    Log(PathBuf),
}

impl Console {
    /// The end that the machine writes to.
    ///
    /// # Errors
    /// The log cannot be opened.
    pub(crate) fn output(&self) -> Result<Box<dyn Write + Send>> {
        match self {
            Self::Terminal => Ok(Box::new(TerminalOutput::start()?)),
            Self::Log(path) => Ok(Box::new(ConsoleLog::open(path)?)),
        }
    }
}

/// Writes to stdout from a thread of its own.
struct TerminalOutput {
    shared: Arc<(Mutex<Backlog>, Condvar)>,
}

#[derive(Default)]
struct Backlog {
    waiting: VecDeque<u8>,
    /// Bytes that the thread has taken and is writing.
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
        // A terminal that is gone is no reason to end the guest.
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

/// A log that keeps between the last 4 and 8 MiB.
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

/// A terminal whose keys all go to the guest; as it was before when dropped.
pub(crate) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Switches stdin to raw, when it is a terminal.
    ///
    /// # Errors
    /// The terminal refuses.
    pub(crate) fn enter() -> Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        // Output stays as it is, so that our own messages start at the left.
        raw.local_flags
            .remove(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG | LocalFlags::IEXTEN);
        raw.input_flags
            .remove(InputFlags::ICRNL | InputFlags::IXON | InputFlags::ISTRIP | InputFlags::INLCR);
        tcsetattr(&stdin, SetArg::TCSANOW, &raw)
            .context("cannot change the terminal's settings")?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.before) {
            tracing::warn!(%error, "cannot give the terminal its settings back: try `reset`");
        }
    }
}

/// Hands stdin to `take` until its end, from a thread of its own; calls `end` at Ctrl-].
///
/// # Errors
/// The system gives no thread.
pub(crate) fn pump_input(
    take: impl Fn(&[u8]) + Send + 'static,
    end: impl FnOnce() + Send + 'static,
) -> Result<()> {
    let pump = move || {
        let mut buffer = [0; 256];
        loop {
            let Ok(count @ 1..) = io::stdin().lock().read(&mut buffer) else { return };
            let typed = buffer.get(..count).unwrap_or_default();
            let ending = typed.iter().position(|key| *key == END_KEY);
            take(typed.get(..ending.unwrap_or(count)).unwrap_or_default());
            if ending.is_some() {
                return end();
            }
        }
    };
    std::thread::Builder::new()
        .name("console-in".to_owned())
        .spawn(pump)
        .map(drop)
        .context("cannot start a thread for the console")
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
