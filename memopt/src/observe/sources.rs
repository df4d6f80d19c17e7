//! Reads the kernel's files, in the formats that most of them have.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::ObserveError;

/// The longest file that is read, in bytes. The kernel's are a few KiB; the longest are `vmstat`,
/// and `status` of a process with very many supplementary groups.
const FILE_BYTES_MAX: usize = 1 << 20;

/// The most folder entries that are read: pids can reach 2^22, but no host runs that many
/// processes.
const ENTRIES_MAX: usize = 1 << 18;

/// `ESRCH`: reading `smaps_rollup` of a process without memory (a zombie) returns this.
const NO_SUCH_PROCESS: i32 = 3;
/// `EOPNOTSUPP`: opening `pressure/memory` on a kernel booted with `psi=0` returns this.
const NOT_SUPPORTED: i32 = 95;

/// The folder that contains `proc` and `sys`: `/`, or a copy of them in a test.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    root: PathBuf,
    /// The pid of ksmd, once found; it stays the same until the host reboots.
    pub(super) ksmd: OnceLock<u32>,
}

impl Sources {
    /// Reads the files of this host.
    #[must_use]
    pub fn system() -> Self {
        Self::at("/")
    }

    /// Reads the files below `root` instead of `/`.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), ksmd: OnceLock::new() }
    }

    /// Returns the path of `file`, e.g. `proc/meminfo`.
    #[must_use]
    pub fn path(&self, file: impl AsRef<Path>) -> PathBuf {
        self.root.join(file)
    }

    /// Reads a whole file that does not belong to a process.
    ///
    /// # Errors
    /// [`ObserveError::Absent`] if this kernel has no such file; otherwise as [`Self::read_of`].
    pub(crate) fn read(&self, file: &str) -> Result<String, ObserveError> {
        read(&self.path(file), None)
    }

    /// Reads a whole file of process `pid`, such as `status`.
    ///
    /// # Errors
    /// [`ObserveError::Gone`], [`ObserveError::Forbidden`], [`ObserveError::TooLong`] or
    /// [`ObserveError::Read`].
    pub(crate) fn read_of(&self, pid: u32, file: &str) -> Result<String, ObserveError> {
        read(&self.path(format!("proc/{pid}/{file}")), Some(pid))
    }

    /// Like [`Self::read_of`], for text that programs choose: invalid UTF-8 is replaced.
    ///
    /// # Errors
    /// As [`Self::read_of`].
    pub(crate) fn read_lossy_of(&self, pid: u32, file: &str) -> Result<String, ObserveError> {
        let bytes = read_bytes(&self.path(format!("proc/{pid}/{file}")), Some(pid))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Reads a file that holds one unsigned number.
    pub(crate) fn number(&self, file: &str) -> Result<u64, ObserveError> {
        let text = self.read(file)?;
        unsigned(&text).ok_or_else(|| self.unexpected(file, &text))
    }

    /// Reads a file that holds one signed number.
    pub(crate) fn signed(&self, file: &str) -> Result<i64, ObserveError> {
        let text = self.read(file)?;
        text.trim().parse().map_err(|_| self.unexpected(file, &text))
    }

    /// Like [`Self::number`], for a file that older kernels lack.
    pub(crate) fn number_if_there(&self, file: &str) -> Result<Option<u64>, ObserveError> {
        if_there(self.number(file))
    }

    /// Returns the pids in `proc`, in ascending order.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub(crate) fn processes(&self) -> Result<Vec<u32>, ObserveError> {
        let mut pids: Vec<u32> =
            self.entries("proc")?.iter().filter_map(|name| name.parse().ok()).collect();
        pids.sort_unstable();
        Ok(pids)
    }

    /// Returns the names in a folder, [`ENTRIES_MAX`] at most.
    pub(crate) fn entries(&self, folder: &str) -> Result<Vec<String>, ObserveError> {
        let path = self.path(folder);
        let entries = fs::read_dir(&path).map_err(|cause| named(&path, None, cause))?;
        let names = entries.take(ENTRIES_MAX).filter_map(Result::ok);
        Ok(names.filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    pub(crate) fn unexpected(&self, file: &str, text: &str) -> ObserveError {
        ObserveError::Unexpected {
            file: self.path(file).display().to_string(),
            value: text.trim().chars().take(40).collect(),
        }
    }
}

/// Returns the value read, or `None` if this kernel lacks the file.
pub(crate) fn if_there<T>(read: Result<T, ObserveError>) -> Result<Option<T>, ObserveError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(ObserveError::Absent { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Parses digits, with optional white space around them. `parse` would accept a plus sign, which
/// the kernel never writes.
pub(crate) fn unsigned(text: &str) -> Option<u64> {
    let digits = text.trim();
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// Returns the value of `name` from lines of `name value`, as in `vmstat` and `ksm_stat`.
pub(crate) fn value_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with([' ', ':', '\t']).then(|| rest.trim_start_matches(':').trim())
    })
}

/// Returns the word in brackets, the selected one in `always [madvise] never`.
pub(crate) fn chosen(text: &str) -> Option<&str> {
    text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
}

/// Reads a whole `/proc` or `/sys` file; `pid` is set for a file of a process.
fn read(path: &Path, pid: Option<u32>) -> Result<String, ObserveError> {
    String::from_utf8(read_bytes(path, pid)?).map_err(|_| {
        let cause = io::Error::new(io::ErrorKind::InvalidData, "it is not valid UTF-8");
        named(path, pid, cause)
    })
}

fn read_bytes(path: &Path, pid: Option<u32>) -> Result<Vec<u8>, ObserveError> {
    let named = |cause| named(path, pid, cause);
    let mut bytes = Vec::new();
    let opened = File::open(path).map_err(named)?;
    opened.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(named)?;
    if bytes.len() > FILE_BYTES_MAX {
        let file = path.display().to_string();
        return Err(ObserveError::TooLong { file, limit: FILE_BYTES_MAX });
    }
    Ok(bytes)
}

/// Converts an I/O error from `path` to an `ObserveError`; `pid` is set for a file of a process.
pub(super) fn named(path: &Path, pid: Option<u32>, cause: io::Error) -> ObserveError {
    let file = path.display().to_string();
    match (cause.kind(), cause.raw_os_error(), pid) {
        (io::ErrorKind::NotFound, _, Some(pid)) | (_, Some(NO_SUCH_PROCESS), Some(pid)) => {
            ObserveError::Gone { pid }
        }
        (io::ErrorKind::NotFound, ..) | (_, Some(NO_SUCH_PROCESS | NOT_SUPPORTED), _) => {
            ObserveError::Absent { file }
        }
        (io::ErrorKind::PermissionDenied, ..) => ObserveError::Forbidden { file },
        _ => ObserveError::Read { file, cause },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_the_process_that_has_ended() {
        // Process ids end at 2^22 on 64-bit Linux.
        let error = Sources::system().read_of(4_194_305, "smaps_rollup").expect_err("no process");
        assert!(matches!(error, ObserveError::Gone { pid: 4_194_305 }), "{error}");
    }

    #[test]
    fn a_missing_file_is_absent_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let sources = Sources::at(folder.path());
        let error = sources.read("sys/kernel/mm/ksm/run").unwrap_err();
        assert!(error.to_string().contains("/sys/kernel/mm/ksm/run"), "{error}");
        assert!(matches!(error, ObserveError::Absent { .. }));
        assert_eq!(sources.number_if_there("sys/kernel/mm/ksm/run").unwrap(), None);
    }

    #[test]
    fn refuses_invalid_and_overlong_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let sources = Sources::at(folder.path());
        for text in ["", "+1", "-1", "1 2", "18446744073709551616", "one"] {
            fs::write(folder.path().join("n"), text).unwrap();
            let error = sources.number("n").unwrap_err();
            assert!(matches!(error, ObserveError::Unexpected { .. }), "{text}: {error}");
        }
        fs::write(folder.path().join("n"), "-5\n").unwrap();
        assert_eq!(sources.signed("n").unwrap(), -5);
        fs::write(folder.path().join("n"), vec![b'1'; FILE_BYTES_MAX + 1]).unwrap();
        assert!(matches!(sources.number("n").unwrap_err(), ObserveError::TooLong { .. }));
        fs::write(folder.path().join("n"), [0xff]).unwrap();
        assert!(matches!(sources.number("n").unwrap_err(), ObserveError::Read { .. }));
    }

    #[test]
    fn names_are_matched_whole() {
        let text = "ksm_merge_any: no\ncow_ksm_x 1\ncow_ksm 2\n";
        assert_eq!(value_of(text, "cow_ksm"), Some("2"));
        assert_eq!(value_of(text, "ksm_merge_any"), Some("no"));
        assert_eq!(value_of(text, "ksm_merge"), None);
        assert_eq!(chosen("always [madvise] never\n"), Some("madvise"));
        assert_eq!(chosen("always madvise"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_scanned(text in "(?s).{0,300}", name in "[a-z_]{1,8}") {
            let _ = (unsigned(&text), value_of(&text, &name), chosen(&text));
        }
    }
}
