//! What can go wrong while observing.

use std::io;

/// An observation that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The process has ended.
    #[error("process {pid} has ended")]
    Gone {
        /// Its id.
        pid: u32,
    },
    /// The kernel does not let this user look.
    #[error("not allowed to read {file}; run as the user that owns the process, or as root")]
    Forbidden {
        /// The file under `/proc`.
        file: String,
    },
    /// This kernel has no such file, or was told not to serve it.
    #[error("this kernel has no {file}")]
    Absent {
        /// The file under `/proc` or `/sys`.
        file: String,
    },
    /// Reading failed otherwise.
    #[error("cannot read {file}: {cause}")]
    Read {
        /// The file under `/proc`.
        file: String,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The file is longer than the kernel ever makes it.
    #[error("{file} is longer than {limit} bytes")]
    TooLong {
        /// The file under `/proc`.
        file: String,
        /// What is read at most.
        limit: usize,
    },
    /// A field that every supported kernel has is not there.
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
        /// What stands there, cut to 40 characters.
        value: String,
    },
    /// A file does not hold what the kernel writes there.
    #[error("{file} holds something unexpected: {value:?}")]
    Unexpected {
        /// The file under `/proc` or `/sys`.
        file: String,
        /// What stands there, cut to 40 characters.
        value: String,
    },
    /// The process has gone, or no process has that name.
    #[error("no kernel thread is called {name}")]
    NoThread {
        /// The thread's name.
        name: &'static str,
    },
}
