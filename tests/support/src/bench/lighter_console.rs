//! The serial console of a lighter guest: output is read from its log, and keys are sent through
//! the guest's API.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::console::Console;

const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Opens the console of the guest whose files are in `folder`.
///
/// # Errors
/// If the guest has no readable console log.
pub fn of_guest(folder: &Path) -> Result<Console> {
    let log = folder.join("console.log");
    let file = File::open(&log).with_context(|| format!("cannot read {}", log.display()))?;
    let alive = Arc::new(());
    let output = Tail { file, alive: Arc::downgrade(&alive) };
    Ok(Console::new(output, Keys { socket: folder.join("api.sock"), _alive: alive }))
}

/// Follows a file that is still being written, until the console is dropped.
struct Tail {
    file: File,
    alive: Weak<()>,
}

impl Read for Tail {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.alive.strong_count() > 0 {
            match self.file.read(buffer)? {
                0 => thread::sleep(POLL_INTERVAL),
                count => return Ok(count),
            }
        }
        Ok(0)
    }
}

/// Types on the console through the guest's API.
struct Keys {
    socket: PathBuf,
    _alive: Arc<()>,
}

impl Write for Keys {
    fn write(&mut self, keys: &[u8]) -> io::Result<usize> {
        let body = serde_json::json!({ "input": String::from_utf8_lossy(keys) }).to_string();
        let mut stream = UnixStream::connect(&self.socket)?;
        write!(
            stream,
            "PUT /v1/guest/console HTTP/1.1\r\nHost: guest\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        if answer.starts_with("HTTP/1.1 2") {
            Ok(keys.len())
        } else {
            Err(io::Error::other(format!("the guest takes no input: {answer}")))
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
