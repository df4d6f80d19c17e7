//! Logs: files of lines with checksums, to which lines are appended durably.
//!
//! The first line is written to a temporary file, flushed and moved into place, so every log has
//! one. From then on, each line costs one write and one flush of data. A crash during a write
//! leaves a damaged line, and everything before it stays valid. The next line then begins with an
//! end of line, so that it stands on its own.
//!
//! With room ([`Log::create`]) lines are written over padding, so neither the file's length nor its
//! folder changes: no durable write is cheaper.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

/// The byte that fills the room. It is in no line's checksum, and no line begins with it.
const PADDING: u8 = b' ';
/// The length of a line's checksum: hex digits and a space.
const SUM_BYTES: usize = 17;

/// A log that is open for writing.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    /// The size to which a new file is padded, in bytes; 0 if lines extend the file.
    room: usize,
    /// The offset of the next line, in bytes.
    next: u64,
    /// The end of the padding, in bytes.
    end: u64,
}

impl Log {
    /// Creates a log of one line, replacing any file at `path`; only its owner can read it. With
    /// `room`, it is padded to that many bytes, and a line that does not fit starts a new log in
    /// its place. Without (0), lines extend the file. The log is on disk when this returns.
    ///
    /// # Errors
    /// The system's error.
    pub fn create(path: &Path, line: &[u8], room: usize) -> io::Result<Self> {
        let mut bytes = with_sum(line);
        let next = bytes.len() as u64;
        bytes.resize(bytes.len().max(room), PADDING);
        let file = super::replace_after(path, &bytes, File::sync_all)?;
        super::sync_folder_of(path)?;
        Ok(Self { path: path.to_owned(), file, room, next, end: bytes.len() as u64 })
    }

    /// Opens the log at `path`, which may have `bytes_max` bytes at most, to append to it. `room`
    /// is that of [`Self::create`].
    ///
    /// # Errors
    /// If there is no log, or it cannot be read; the system's error.
    pub fn open(path: &Path, bytes_max: u64, room: usize) -> io::Result<(Self, Lines)> {
        let mut file = super::open(path, OpenOptions::new().read(true).write(true))?;
        let lines = Lines::new(super::read_opened(&mut file, bytes_max)?);
        let (next, end) = (lines.used as u64, lines.bytes.len() as u64);
        Ok((Self { path: path.to_owned(), file, room, next, end }, lines))
    }

    /// Returns the log's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the log's length without padding, in bytes.
    pub const fn bytes(&self) -> u64 {
        self.next
    }

    /// Appends a line. It is on disk when this returns.
    ///
    /// # Errors
    /// The system's error. The line may then be readable or not.
    pub fn append(&mut self, line: &[u8]) -> io::Result<()> {
        // A line torn by a crash may lack its end, so each write begins with one.
        let mut bytes = vec![b'\n'];
        bytes.extend(with_sum(line));
        let next = self.next.saturating_add(bytes.len() as u64);
        if self.room > 0 && next > self.end {
            // If this fails half-way, the file may have been replaced already: never write to it
            // again.
            self.end = 0;
            *self = Self::create(&self.path, line, self.room)?;
            return Ok(());
        }
        self.file.write_all_at(&bytes, self.next)?;
        // Even if the flush fails, the line may be on disk: never overwrite it.
        self.next = next;
        self.end = self.end.max(next);
        self.file.sync_data()
    }
}

/// The lines of a log, read all at once.
#[derive(Debug)]
pub struct Lines {
    bytes: Vec<u8>,
    /// The offset of the padding.
    used: usize,
}

impl Lines {
    /// Reads the log at `path`, which may have `bytes_max` bytes at most.
    ///
    /// # Errors
    /// The system's error.
    pub fn read(path: &Path, bytes_max: u64) -> io::Result<Self> {
        super::read(path, bytes_max).map(Self::new)
    }

    fn new(bytes: Vec<u8>) -> Self {
        let last = bytes.iter().rposition(|&byte| byte != PADDING);
        Self { used: last.map_or(0, |last| last + 1), bytes }
    }

    /// Returns each line, the oldest first: its text, or what is wrong with it.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Result<&[u8], &'static str>> {
        let lines = self.bytes[..self.used].split_inclusive(|&byte| byte == b'\n');
        lines.filter(|line| *line != b"\n").map(without_sum)
    }
}

/// Formats a line: checksum, text, end of line.
fn with_sum(line: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{:016x} ", xxh3_64(line)).into_bytes();
    bytes.extend_from_slice(line);
    bytes.push(b'\n');
    bytes
}

fn without_sum(bytes: &[u8]) -> Result<&[u8], &'static str> {
    // A line without its end is complete nevertheless: it would become valid once another line
    // follows.
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let (sum, line) = bytes.split_at_checked(SUM_BYTES).ok_or("a line too short")?;
    let is_intact = sum == format!("{:016x} ", xxh3_64(line)).as_bytes();
    if is_intact { Ok(line) } else { Err("a line with a wrong checksum") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u64 = 1 << 20;

    fn texts(path: &Path) -> Vec<Result<String, &'static str>> {
        let lines = Lines::read(path, MAX).unwrap();
        let text = |line: &[u8]| String::from_utf8(line.to_vec()).unwrap();
        lines.iter().map(|line| line.map(text)).collect()
    }

    fn ok(text: &str) -> Result<String, &'static str> {
        Ok(text.to_owned())
    }

    #[test]
    fn lines_are_read_in_order_with_and_without_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        for room in [0, 4096] {
            let mut log = Log::create(&path, b"first", room).unwrap();
            log.append(b"second").unwrap();
            drop(log);
            let (mut log, lines) = Log::open(&path, MAX, room).unwrap();
            assert_eq!(lines.iter().count(), 2);
            log.append(b"third").unwrap();
            assert_eq!(texts(&path), [ok("first"), ok("second"), ok("third")]);
            let length = std::fs::metadata(&path).unwrap().len();
            assert_eq!(length == 4096, room > 0, "padding is written over: {length}");
        }
    }

    #[test]
    fn what_has_no_room_is_replaced_and_never_written_to_again() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let path = inner.join("log");
        let mut log = Log::create(&path, b"first", 64).unwrap();
        let long = "x".repeat(40);
        log.append(long.as_bytes()).unwrap();
        assert_eq!(texts(&path), [ok(&long)]);
        log.append(b"1").unwrap_or_else(|error| panic!("as much room again: {error}"));
        let away = folder.path().join("away");
        std::fs::rename(&inner, &away).unwrap();
        log.append(long.as_bytes()).unwrap_err();
        log.append(b"2").unwrap_err();
        assert_eq!(texts(&away.join("log")).last(), Some(&ok("1")), "it may be another's by now");
        std::fs::rename(&away, &inner).unwrap();
        log.append(b"2").unwrap();
        assert_eq!(texts(&path), [ok("2")]);
    }

    #[test]
    fn a_line_torn_by_a_crash_stands_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        Log::create(&path, b"first", 0).unwrap().append(b"second").unwrap();
        let whole = std::fs::read(&path).unwrap();
        let second_at = with_sum(b"first").len() + 1;
        for cut in second_at + 1..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let found = texts(&path);
            let second = found[1].clone();
            let lacks_at_most_its_end = cut >= whole.len() - 1;
            assert_eq!(second == ok("second"), lacks_at_most_its_end, "{cut}: {found:?}");
            Log::open(&path, MAX, 0).unwrap().0.append(b"third").unwrap();
            // Valid lines stay valid, and damaged ones do not become valid later.
            assert_eq!(texts(&path), [ok("first"), second, ok("third")], "{cut}");
        }
    }

    #[test]
    fn no_changed_byte_of_a_line_goes_unseen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        Log::create(&path, b"only", 0).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for place in 0..whole.len() {
            let mut changed = whole.clone();
            changed[place] ^= 0x10;
            std::fs::write(&path, &changed).unwrap();
            assert!(texts(&path).iter().all(Result::is_err), "{place}");
        }
    }
}
