//! Errors of reading `/proc` and `/sys`.

use std::io;

/// Why the state of a process or of the host could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The process has ended.
    #[error("process {pid} has ended")]
    Gone {
        /// The process's id.
        pid: u32,
    },
    /// This user may not read the file.
    #[error("not allowed to read {file}; run as the user that owns the process, or as root")]
    Forbidden {
        /// The file under `/proc`.
        file: String,
    },
    /// This kernel has no such file, or the feature is disabled.
    #[error("this kernel has no {file}")]
    Absent {
        /// The file under `/proc` or `/sys`.
        file: String,
    },
    /// Reading failed for another reason.
    #[error("cannot read {file}: {cause}")]
    Read {
        /// The file under `/proc`.
        file: String,
        /// The kernel's error.
        cause: io::Error,
    },
    /// The file is longer than the kernel ever makes it.
    #[error("{file} is longer than {limit} bytes")]
    TooLong {
        /// The file under `/proc`.
        file: String,
        /// The most that is read, in bytes.
        limit: usize,
    },
    /// A field that every supported kernel has is missing.
    #[error("{file} has no field {field}; lighter needs Linux 4.14 or later")]
    Missing {
        /// The kind of file.
        file: &'static str,
        /// The field's name.
        field: &'static str,
    },
    /// A field does not hold an amount of memory.
    #[error("field {field} of {file} is not an amount in kB: {value:?}")]
    Amount {
        /// The kind of file.
        file: &'static str,
        /// The field's name.
        field: &'static str,
        /// The field's text, cut to 40 characters.
        value: String,
    },
    /// A file's content is not what the kernel writes there.
    #[error("{file} holds something unexpected: {value:?}")]
    Unexpected {
        /// The file under `/proc` or `/sys`.
        file: String,
        /// The file's text, cut to 40 characters.
        value: String,
    },
    /// No visible process is the kernel thread of that name; it may be hidden, as in a container.
    #[error("no kernel thread is called {name}")]
    NoThread {
        /// The thread's name.
        name: &'static str,
    },
}
