//! A log in files: finds its last lines, and follows it when it is rotated or truncated. Holds no
//! more than one block of it in memory, however long it is.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// How much of a log is in memory at once, in bytes.
const BLOCK_BYTES: usize = 64 << 10;

/// The files of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LogPaths {
    /// The file that is being written.
    pub(super) current: PathBuf,
    /// The full file before it; `None` for a log that is not rotated.
    pub(super) old: Option<PathBuf>,
}

/// An open log.
#[derive(Debug)]
pub(super) struct Log {
    paths: LogPaths,
    /// Its files that are not read to their end, oldest first; the last one may grow. Never empty.
    parts: Vec<Part>,
    block: Vec<u8>,
}

/// What has become of a log since it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rotation {
    /// The file is the same; it may have grown.
    No,
    /// The log continues in another file.
    Continues,
    /// The log continues in other files, and a file between them may be gone.
    Uncertain,
}

impl Log {
    /// Opens a log; `None` if none of its files exists.
    ///
    /// # Errors
    /// If a file exists and cannot be opened, or is not a regular file.
    pub(super) fn open(paths: LogPaths) -> Result<Option<Self>> {
        let parts = open_parts(&paths)?;
        let log = Self { paths, parts, block: vec![0; BLOCK_BYTES] };
        Ok((!log.parts.is_empty()).then_some(log))
    }

    /// Skips all but the last `lines` lines.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub(super) fn skip_to_last(&mut self, lines: u64) -> Result<()> {
        let mut last = LastLines::new(lines);
        for index in (0..self.parts.len()).rev() {
            let part = &mut self.parts[index];
            let found = part.find(&mut last, &mut self.block).context("cannot read the log")?;
            if let Some(offset) = found {
                part.next = offset;
                self.parts.drain(..index);
                break;
            }
        }
        Ok(())
    }

    /// Passes all that has not been read to `write`, until that returns false. Returns what `write`
    /// returned last.
    ///
    /// # Errors
    /// If a file cannot be read, and those of `write`.
    pub(super) fn read(&mut self, mut write: impl FnMut(&[u8]) -> Result<bool>) -> Result<bool> {
        for part in &mut self.parts {
            loop {
                let count = part.file.read_at(&mut self.block, part.next);
                let count = count.context("cannot read the log")?;
                if count == 0 {
                    break;
                }
                part.next += count as u64;
                if !write(&self.block[..count])? {
                    return Ok(false);
                }
            }
        }
        let before_last = self.parts.len().saturating_sub(1);
        self.parts.drain(..before_last);
        Ok(true)
    }

    /// Finds out where the log continues. The end of a file that has been replaced is still read.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub(super) fn find_rotation(&mut self) -> Result<Rotation> {
        let Some(last) = self.parts.last_mut() else { return Ok(Rotation::No) };
        match self.paths.current.symlink_metadata() {
            Ok(found) if id(&found) == last.id => {
                // Truncated in place, as logrotate's `copytruncate` does.
                if found.len() < last.next {
                    last.next = 0;
                }
                return Ok(Rotation::No);
            }
            Ok(_) => {}
            // It is about to be created again, or the guest is gone.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Rotation::No),
            Err(error) => return Err(error).context("cannot read the log"),
        }
        let mut newer = open_parts(&self.paths)?;
        let known = newer.iter().position(|part| part.id == last.id);
        if let Some(known) = known {
            newer.drain(..=known);
        }
        let is_complete = known.is_some() || self.paths.old.is_none();
        self.parts.extend(newer);
        Ok(if is_complete { Rotation::Continues } else { Rotation::Uncertain })
    }
}

/// Opens the files of a log that exist, oldest first.
fn open_parts(paths: &LogPaths) -> Result<Vec<Part>> {
    // The current one first: if the log is rotated in between, it is found twice, and none is
    // missed.
    let current = Part::open(&paths.current)?;
    let old = paths.old.as_deref().map(Part::open).transpose()?.flatten();
    let is_current = |old: &Part| current.as_ref().is_some_and(|current| current.id == old.id);
    let old = old.filter(|old| !is_current(old));
    Ok(old.into_iter().chain(current).collect())
}

/// One file of a log.
#[derive(Debug)]
struct Part {
    file: File,
    id: (u64, u64),
    /// Offset of the first byte that has not been read.
    next: u64,
}

impl Part {
    /// Opens a file; `None` if it does not exist. The guest's process can put other things at its
    /// path: links are not followed, and no pipe is waited for.
    fn open(path: &Path) -> Result<Option<Self>> {
        let cannot = || format!("cannot read {}", path.display());
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.with_context(cannot)?,
        };
        let found = file.metadata().with_context(cannot)?;
        if !found.is_file() {
            bail!("cannot read {}: it is not a regular file", path.display());
        }
        Ok(Some(Self { file, id: id(&found), next: 0 }))
    }

    /// Searches the file from its end for where the last lines begin.
    fn find(&self, last: &mut LastLines, block: &mut [u8]) -> io::Result<Option<u64>> {
        let mut end = self.file.metadata()?.len();
        while end > 0 {
            let start = end.saturating_sub(block.len() as u64);
            let read = &mut block[..(end - start) as usize];
            self.file.read_exact_at(read, start)?;
            if let Some(at) = last.find(read) {
                return Ok(Some(start + at as u64));
            }
            end = start;
        }
        Ok(None)
    }
}

/// Identifies an open file on this host.
fn id(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

/// Searches a text backwards, block by block, for where its last lines begin.
#[derive(Debug, Clone, Copy)]
struct LastLines {
    /// Lines that are still to be found.
    wanted: u64,
    /// Whether no byte has been seen: a newline at the very end does not begin a line.
    is_at_end: bool,
}

impl LastLines {
    fn new(wanted: u64) -> Self {
        Self { wanted, is_at_end: true }
    }

    /// Searches the block before those searched so far; returns the offset in it of the first line
    /// that is wanted.
    fn find(&mut self, block: &[u8]) -> Option<usize> {
        if self.wanted == 0 {
            return Some(block.len());
        }
        for (at, byte) in block.iter().enumerate().rev() {
            if *byte == b'\n' && !self.is_at_end {
                self.wanted -= 1;
                if self.wanted == 0 {
                    return Some(at + 1);
                }
            }
            self.is_at_end = false;
        }
        None
    }
}

/// Returns the last `lines` lines of `text`, or all of it for `None`.
pub(super) fn last_lines(text: &[u8], lines: Option<u64>) -> &[u8] {
    let begin = lines.and_then(|lines| LastLines::new(lines).find(text)).unwrap_or(0);
    text.get(begin..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    /// A log in a folder, which is rotated as a guest's process does.
    struct Scene {
        folder: tempfile::TempDir,
    }

    impl Scene {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().unwrap() }
        }

        fn paths(&self) -> LogPaths {
            let at = |name: &str| self.folder.path().join(name);
            LogPaths { current: at("console.log"), old: Some(at("console.log.old")) }
        }

        fn append(&self, text: &str) {
            let path = self.paths().current;
            let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        fn rotate(&self) {
            fs::rename(self.paths().current, self.paths().old.unwrap()).unwrap();
        }
    }

    fn read(log: &mut Log) -> String {
        let mut text = Vec::new();
        let is_read = log.read(|bytes| {
            text.extend_from_slice(bytes);
            Ok(true)
        });
        assert!(is_read.unwrap());
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn the_last_lines_are_counted_with_and_without_a_newline_at_the_end() {
        let last = |text, lines| String::from_utf8(last_lines(text, lines).to_vec()).unwrap();
        assert_eq!(last(b"a\nb\n", Some(0)), "");
        assert_eq!(last(b"a\nb\n", Some(1)), "b\n");
        assert_eq!(last(b"a\nb", Some(1)), "b");
        assert_eq!(last(b"a\n\n", Some(1)), "\n");
        assert_eq!(last(b"a\nb\n", Some(2)), "a\nb\n");
        assert_eq!(last(b"a\nb\n", Some(9)), "a\nb\n");
        assert_eq!(last(b"a\nb\n", None), "a\nb\n");
        assert_eq!(last(b"", Some(1)), "");
    }

    #[test]
    fn the_last_lines_may_begin_in_the_old_file_and_end_in_the_current_one() {
        let scene = Scene::new();
        let long = "x".repeat(2 * BLOCK_BYTES);
        scene.append(&format!("one\n{long}\ntw"));
        scene.rotate();
        scene.append("o\nthree\n");
        for (lines, expected) in [
            (0, String::new()),
            (1, "three\n".to_owned()),
            (2, "two\nthree\n".to_owned()),
            (3, format!("{long}\ntwo\nthree\n")),
            (4, format!("one\n{long}\ntwo\nthree\n")),
            (5, format!("one\n{long}\ntwo\nthree\n")),
        ] {
            let mut log = Log::open(scene.paths()).unwrap().unwrap();
            log.skip_to_last(lines).unwrap();
            assert!(read(&mut log) == expected, "{lines} lines");
        }
    }

    #[test]
    fn a_log_is_followed_across_a_rotation() {
        let scene = Scene::new();
        scene.append("one ");
        let mut log = Log::open(scene.paths()).unwrap().unwrap();
        assert_eq!(read(&mut log), "one ");
        assert_eq!(log.find_rotation().unwrap(), Rotation::No);
        scene.append("two ");
        scene.rotate();
        assert_eq!(log.find_rotation().unwrap(), Rotation::No, "it is about to be created");
        scene.append("three ");
        assert_eq!(log.find_rotation().unwrap(), Rotation::Continues);
        assert_eq!(read(&mut log), "two three ");
        scene.append("four");
        assert_eq!(log.find_rotation().unwrap(), Rotation::No);
        assert_eq!(read(&mut log), "four");
    }

    #[test]
    fn a_file_that_is_gone_before_it_was_read_is_noticed() {
        let scene = Scene::new();
        scene.append("one ");
        let mut log = Log::open(scene.paths()).unwrap().unwrap();
        assert_eq!(read(&mut log), "one ");
        for text in ["never read ", "three ", "four"] {
            scene.rotate();
            scene.append(text);
        }
        assert_eq!(log.find_rotation().unwrap(), Rotation::Uncertain);
        assert_eq!(read(&mut log), "three four");
    }

    #[test]
    fn a_truncated_log_is_read_from_its_beginning() {
        let scene = Scene::new();
        scene.append("a long text");
        let paths = LogPaths { old: None, ..scene.paths() };
        let mut log = Log::open(paths.clone()).unwrap().unwrap();
        assert_eq!(read(&mut log), "a long text");
        fs::write(&paths.current, "new").unwrap();
        assert_eq!(log.find_rotation().unwrap(), Rotation::No);
        assert_eq!(read(&mut log), "new");
        fs::remove_file(&paths.current).unwrap();
        fs::write(&paths.current, " file").unwrap();
        assert_eq!(log.find_rotation().unwrap(), Rotation::Continues);
        assert_eq!(read(&mut log), " file");
    }

    #[test]
    fn a_reader_that_is_gone_ends_the_reading() {
        let scene = Scene::new();
        scene.append(&"x".repeat(3 * BLOCK_BYTES));
        let mut log = Log::open(scene.paths()).unwrap().unwrap();
        let mut calls = 0;
        let is_read = log.read(|_| {
            calls += 1;
            Ok(false)
        });
        assert_eq!((is_read.unwrap(), calls), (false, 1));
    }

    #[test]
    fn links_and_folders_are_no_logs() {
        let scene = Scene::new();
        assert!(Log::open(scene.paths()).unwrap().is_none());
        std::os::unix::fs::symlink("/etc/passwd", scene.paths().current).unwrap();
        Log::open(scene.paths()).unwrap_err();
        fs::remove_file(scene.paths().current).unwrap();
        fs::create_dir(scene.paths().current).unwrap();
        let error = Log::open(scene.paths()).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error:#}");
    }
}
