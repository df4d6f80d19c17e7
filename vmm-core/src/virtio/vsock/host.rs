//! The host's side: a Unix socket at which programs reach the guest, and sockets at which the guest
//! reaches programs.
//!
//! The protocol is that of Firecracker and Cloud Hypervisor. A program that connects to the socket
//! `PATH` and writes `CONNECT PORT\n` is connected to that port of the guest, and reads `OK PORT\n`
//! first. A guest that connects to port `PORT` of the host is connected to the socket `PATH_PORT`,
//! if a program listens there.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Most connected programs that have not sent their request yet; more are rejected.
const VISITORS_MAX: usize = 64;
/// Longest request without its `\n`: `CONNECT`, a space, a number and a `\r`.
const REQUEST_BYTES_MAX: usize = 19;
/// Identifies the listener among the watched descriptors; programs are numbered from 1.
const LISTENER: u64 = 0;
/// Most events taken per wait.
const EVENTS_MAX: usize = 16;

/// The listening socket for programs of the host, and the programs that have not sent a request
/// yet.
#[derive(Debug)]
pub(super) struct Listener {
    epoll: Epoll,
    listener: Option<(UnixListener, PathBuf)>,
    visitors: BTreeMap<u64, PendingClient>,
    next: u64,
}

/// A connected program that has not sent its request yet.
#[derive(Debug)]
struct PendingClient {
    stream: UnixStream,
    line: Vec<u8>,
}

/// What a program has sent so far.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Unfinished,
    Connect(u32),
    Invalid,
}

impl Listener {
    /// Creates it without a listening socket.
    ///
    /// # Errors
    /// If no epoll instance can be created.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new()?, listener: None, visitors: BTreeMap::new(), next: LISTENER })
    }

    /// Returns a descriptor that becomes readable when [`Listener::requests`] may have something to
    /// return.
    pub(super) fn descriptor(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Listens at `path`; file permissions of its folder control access. Does nothing if it already
    /// listens there.
    ///
    /// # Errors
    /// If the file system refuses, or the path is too long for a socket.
    pub(super) fn open(&mut self, path: &Path) -> io::Result<()> {
        if self.listener.as_ref().is_some_and(|(_, at)| at == path) {
            return Ok(());
        }
        self.close();
        // The caller owns this path; a file there was left by a process that has ended.
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        watch(&self.epoll, &listener, LISTENER)?;
        self.listener = Some((listener, path.to_owned()));
        Ok(())
    }

    /// Stops listening and disconnects the programs that have not sent a request.
    pub(super) fn close(&mut self) {
        self.visitors.clear();
        if let Some((_, path)) = self.listener.take() {
            // Even if the file stays, nothing listens behind it.
            let _ = fs::remove_file(path);
        }
    }

    /// Returns the streams of programs that asked for a connection, each with the guest's port.
    pub(super) fn requests(&mut self) -> Vec<(UnixStream, u32)> {
        let mut events = [EpollEvent::default(); EVENTS_MAX];
        let mut requests = Vec::new();
        loop {
            let count = self.epoll.wait(0, &mut events).unwrap_or(0);
            for event in &events[..count] {
                match event.data() {
                    LISTENER => self.let_in(),
                    visitor => requests.extend(self.listen_to(visitor)),
                }
            }
            if count == 0 {
                return requests;
            }
        }
    }

    fn let_in(&mut self) {
        while let Some((listener, _)) = &self.listener {
            let Ok((stream, _)) = listener.accept() else { return };
            self.next += 1;
            let is_watched = self.visitors.len() < VISITORS_MAX
                && stream.set_nonblocking(true).is_ok()
                && watch(&self.epoll, &stream, self.next).is_ok();
            if is_watched {
                self.visitors.insert(self.next, PendingClient { stream, line: Vec::new() });
            }
        }
    }

    fn listen_to(&mut self, number: u64) -> Option<(UnixStream, u32)> {
        let line = self.visitors.get_mut(&number)?.read_line();
        match line {
            Line::Unfinished => None,
            Line::Invalid => {
                self.visitors.remove(&number);
                None
            }
            Line::Connect(port) => {
                let stream = self.visitors.remove(&number)?.stream;
                let event = EpollEvent::default();
                // From now on the connection owns and watches the stream.
                self.epoll.ctl(ControlOperation::Delete, stream.as_raw_fd(), event).ok()?;
                Some((stream, port))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.close();
    }
}

impl PendingClient {
    /// Reads to the end of the line and not a byte further: what follows is for the guest.
    fn read_line(&mut self) -> Line {
        let mut byte = [0];
        loop {
            match self.stream.read(&mut byte) {
                Ok(1) if byte == *b"\n" => return self.request(),
                Ok(1) if self.line.len() < REQUEST_BYTES_MAX => self.line.push(byte[0]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Line::Unfinished,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return Line::Invalid,
            }
        }
    }

    fn request(&self) -> Line {
        let text = std::str::from_utf8(&self.line).unwrap_or_default();
        let port = text.strip_prefix("CONNECT ").and_then(|port| port.trim().parse().ok());
        port.map_or(Line::Invalid, Line::Connect)
    }
}

/// Connects to the program that listens for the guest's connections to `port`; never blocks.
///
/// # Errors
/// If no program listens there, or its backlog is full.
pub(super) fn dial(socket_path: &Path, port: u32) -> io::Result<UnixStream> {
    let mut path = socket_path.as_os_str().to_owned();
    path.push(format!("_{port}"));
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(Path::new(&path))?)?;
    Ok(socket.into())
}

/// Adds `descriptor` to `epoll`, edge-triggered.
///
/// # Errors
/// If the system call fails.
pub(super) fn watch(epoll: &Epoll, descriptor: &impl AsRawFd, data: u64) -> io::Result<()> {
    let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    epoll.ctl(ControlOperation::Add, descriptor.as_raw_fd(), EpollEvent::new(events, data))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn open_listener() -> (tempfile::TempDir, Listener, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vsock");
        let mut listener = Listener::new().unwrap();
        listener.open(&path).unwrap();
        (folder, listener, path)
    }

    fn ports(listener: &mut Listener) -> Vec<u32> {
        listener.requests().into_iter().map(|(_, port)| port).collect()
    }

    #[test]
    fn a_program_may_name_its_port_in_any_number_of_pieces() {
        let (_folder, mut listener, path) = open_listener();
        let mut program = UnixStream::connect(&path).unwrap();
        assert!(ports(&mut listener).is_empty());
        program.write_all(b"CONNECT 10").unwrap();
        assert!(ports(&mut listener).is_empty());
        program.write_all(b"24\nfor the guest").unwrap();
        let (mut stream, port) = listener.requests().remove(0);
        assert_eq!(port, 1024);
        let mut rest = [0; 13];
        stream.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"for the guest");
    }

    #[test]
    fn clients_that_send_nonsense_are_refused() {
        let (_folder, mut listener, path) = open_listener();
        let lines = ["connect 1\n", "CONNECT -1\n", "CONNECT 4294967296\n", "CONNECT\n", "\n"];
        for line in lines.map(str::to_owned).into_iter().chain(["C".repeat(100)]) {
            let mut program = UnixStream::connect(&path).unwrap();
            program.write_all(line.as_bytes()).unwrap();
            assert!(ports(&mut listener).is_empty(), "{line:?}");
            assert_eq!(program.read(&mut [0]).unwrap_or(0), 0, "{line:?}");
        }
        assert!(listener.visitors.is_empty());
    }

    #[test]
    fn silent_clients_hold_a_limited_number_of_places() {
        let (_folder, mut listener, path) = open_listener();
        let silent: Vec<_> = (0..VISITORS_MAX + 3)
            .map(|_| {
                let program = UnixStream::connect(&path).unwrap();
                assert!(ports(&mut listener).is_empty());
                program
            })
            .collect();
        assert_eq!(listener.visitors.len(), VISITORS_MAX);
        drop(silent);
        assert!(ports(&mut listener).is_empty());
        assert!(listener.visitors.len() < VISITORS_MAX, "who leaves gives the place back");
    }

    #[test]
    fn a_closed_socket_is_removed_and_a_stale_one_is_replaced() {
        let (_folder, mut listener, path) = open_listener();
        listener.open(&path).unwrap();
        listener.close();
        assert!(!path.exists());
        drop(UnixListener::bind(&path).unwrap());
        listener.open(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn the_guest_reaches_only_its_own_listeners() {
        let (folder, _listener, path) = open_listener();
        assert!(dial(&path, 7).is_err());
        let listener = UnixListener::bind(folder.path().join("vsock_7")).unwrap();
        let mut guest = dial(&path, 7).unwrap();
        guest.write_all(b"x").unwrap();
        let mut byte = [0];
        listener.accept().unwrap().0.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }
}
