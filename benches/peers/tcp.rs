//! A TCP connection that shares the link with a migration: how much of it does each get?

use std::fs::{File, read_to_string};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::place::Place;

/// Bytes written and read at once.
const BUFFER_BYTES: usize = 256 << 10;

/// Returns the congestion control of all TCP here, QEMU's included: `cubic` on most hosts.
///
/// # Errors
/// If the kernel does not tell.
pub(crate) fn congestion_control() -> Result<String> {
    let path = "/proc/sys/net/ipv4/tcp_congestion_control";
    let name = read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Ok(name.trim().to_owned())
}

/// A connection that carries as much as it can until it is dropped.
pub(crate) struct Connection {
    arrived: Arc<AtomicU64>,
    began: Instant,
    stream: TcpStream,
}

impl Connection {
    /// Connects two places, and begins to send from the first to the second.
    ///
    /// # Errors
    /// If they cannot be connected.
    pub(crate) fn open(from: &Place, to: &Place) -> Result<Self> {
        let listener = within(to, || TcpListener::bind((to.address(), 0)))?;
        let at = listener.local_addr()?;
        let mut stream = within(from, || TcpStream::connect(at))?;
        let (mut receiver, _) = listener.accept()?;
        let arrived = Arc::new(AtomicU64::new(0));
        let connection =
            Self { arrived: arrived.clone(), began: Instant::now(), stream: stream.try_clone()? };
        // Both threads end when the connection is shut down.
        thread::spawn(move || while stream.write_all(&[1; BUFFER_BYTES]).is_ok() {});
        thread::spawn(move || {
            let mut buffer = vec![0; BUFFER_BYTES];
            while let Ok(length @ 1..) = receiver.read(&mut buffer) {
                arrived.fetch_add(length as u64, Relaxed);
            }
        });
        Ok(connection)
    }

    /// Megabits that have arrived each second so far.
    pub(crate) fn mbit_per_second(&self) -> f64 {
        self.arrived.load(Relaxed) as f64 * 8e-6 / self.began.elapsed().as_secs_f64()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // It may have ended on its own.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Makes a socket in a place: a socket stays in the namespace of the thread that made it.
fn within<T: Send>(place: &Place, make: impl FnOnce() -> std::io::Result<T> + Send) -> Result<T> {
    let namespace = place.namespace.as_ref().map(|name| File::open(format!("/run/netns/{name}")));
    let namespace = namespace.transpose()?;
    let made = thread::scope(|scope| {
        let thread = scope.spawn(|| -> Result<T> {
            if let Some(namespace) = &namespace {
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(namespace.as_fd(), kind)?;
            }
            Ok(make()?)
        });
        thread.join()
    });
    made.ok().context("a thread that makes a socket panicked")?
}
