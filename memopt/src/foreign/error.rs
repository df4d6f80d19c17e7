//! What can go wrong with guests that others run.

use std::io;
use std::time::Duration;

/// Why a guest of another monitor cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ForeignError {
    /// Nothing was given by which it could be asked.
    #[error("{guest} cannot be asked: {why}")]
    NoDoor {
        /// The guest.
        guest: String,
        /// What is missing, and the way out.
        why: &'static str,
    },
    /// Nobody listens on its socket.
    #[error("nobody answers on {socket}: {cause}")]
    Unreachable {
        /// The socket.
        socket: String,
        /// The system's answer.
        cause: io::Error,
    },
    /// The connection stands and the monitor does not greet: it serves one at a time. A process
    /// that hangs looks the same.
    #[error(
        "{socket} is taken: a QMP monitor serves one client, and somebody (libvirt?) is connected; start the guest with a second \
         one: -qmp unix:PATH,server=on,wait=off"
    )]
    Taken {
        /// The socket.
        socket: String,
    },
    /// Another process listens on the socket than the one that named it.
    #[error(
        "{socket} is not of the guest's process {pid} but of {listener}, so nothing is said to it"
    )]
    Elsewhere {
        /// The socket.
        socket: String,
        /// The process that named it.
        pid: u32,
        /// The process that listens, as far as it can be seen.
        listener: String,
    },
    /// No answer in time.
    #[error(
        "{socket} did not answer {question} within {patience:?}: the guest's process hangs, or the host is overloaded"
    )]
    Slow {
        /// The socket.
        socket: String,
        /// What was asked.
        question: String,
        /// How long was waited.
        patience: Duration,
    },
    /// The connection broke.
    #[error("{socket} broke off: {cause}")]
    Broken {
        /// The socket.
        socket: String,
        /// Why.
        cause: String,
    },
    /// What came is not what this monitor says.
    #[error("{socket} answered something unexpected: {what}")]
    Strange {
        /// The socket.
        socket: String,
        /// What was wrong with it, cut to 200 characters.
        what: String,
    },
    /// It refused.
    #[error("{socket} refused {question}: {reason}")]
    Refused {
        /// The socket.
        socket: String,
        /// What was asked.
        question: String,
        /// Its words, cut to 200 characters.
        reason: String,
    },
    /// It has a device of the host, so that all its memory is pinned.
    #[error(
        "{guest} has a device of the host (VFIO, vDPA), which pins all its memory: its balloon would give the host nothing"
    )]
    Pinned {
        /// The guest.
        guest: String,
    },
    /// It has no balloon.
    #[error(
        "{guest} has no balloon; start it with one (QEMU: -device virtio-balloon-pci, Cloud Hypervisor: --balloon size=0)"
    )]
    NoBalloon {
        /// The guest.
        guest: String,
    },
}

/// A peer's words: no control characters, 200 characters at most.
pub(super) fn words(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}
