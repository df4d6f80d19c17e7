//! Errors of guests that other VMMs run.

use std::io;
use std::time::Duration;

/// Why a guest of another VMM cannot be queried or changed.
#[derive(Debug, thiserror::Error)]
pub enum ForeignError {
    /// The guest has no usable monitor.
    #[error("{guest} cannot be asked: {why}")]
    NoMonitor {
        /// The guest's name.
        guest: String,
        /// What is missing, and what to do about it.
        why: &'static str,
    },
    /// The socket cannot be connected to, usually because no process listens on it.
    #[error("no process answers on {socket}: {cause}")]
    Unreachable {
        /// Path of the monitor's socket.
        socket: String,
        /// The system's error.
        cause: io::Error,
    },
    /// The connection is open but the monitor does not greet: it serves another client. A process
    /// that hangs looks the same.
    #[error(
        "{socket} is in use: a QMP monitor serves one client, and another program (libvirt?) is connected; start the guest with a second \
         one: -qmp unix:PATH,server=on,wait=off"
    )]
    Taken {
        /// Path of the monitor's socket.
        socket: String,
    },
    /// A process other than the one that named the socket listens on it.
    #[error(
        "{socket} is not of the guest's process {pid} but of {listener}, so nothing is said to it"
    )]
    Elsewhere {
        /// Path of the socket that was to be the monitor's.
        socket: String,
        /// The process that named it.
        pid: u32,
        /// The process that listens, if it can be identified.
        listener: String,
    },
    /// No answer within the time limit.
    #[error(
        "{socket} did not answer {question} within {patience:?}: the guest's process hangs, or the host is overloaded"
    )]
    Slow {
        /// Path of the monitor's socket.
        socket: String,
        /// What was asked for, such as a command or a connection.
        question: String,
        /// The time limit.
        patience: Duration,
    },
    /// The connection broke.
    #[error("{socket} broke off: {cause}")]
    Broken {
        /// Path of the monitor's socket.
        socket: String,
        /// The error of the system or of HTTP that ended the connection.
        cause: String,
    },
    /// The answer does not follow the protocol.
    #[error("{socket} answered something unexpected: {what}")]
    Strange {
        /// Path of the monitor's socket.
        socket: String,
        /// What was wrong with the answer, cut to 200 characters.
        what: String,
    },
    /// The monitor refused the command.
    #[error("{socket} refused {question}: {reason}")]
    Refused {
        /// Path of the monitor's socket.
        socket: String,
        /// Name of the refused command.
        question: String,
        /// The monitor's message, cut to 200 characters.
        reason: String,
    },
    /// The guest has a device of the host, so all its memory is pinned.
    #[error(
        "{guest} has a device of the host (VFIO, vDPA), which pins all its memory: its balloon would give the host nothing"
    )]
    Pinned {
        /// The guest's name.
        guest: String,
    },
    /// The guest has no balloon.
    #[error(
        "{guest} has no balloon; start it with one (QEMU: -device virtio-balloon-pci, Cloud Hypervisor: --balloon size=0)"
    )]
    NoBalloon {
        /// The guest's name.
        guest: String,
    },
}

/// Makes a peer's text safe to show: no control characters, 200 characters at most.
pub(super) fn words(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}
