//! A plain copy over TCP on the same path, for comparison: without encryption, between two threads.

use std::io::{Read, Result, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// Bytes written and read at once.
const BUFFER: usize = 256 << 10;

/// Copies `bytes`; returns GB/s.
pub(crate) fn copy(bytes: u64) -> Result<f64> {
    let copying = Copying::start()?;
    while copying.arrived() < bytes {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Ok(copying.rate())
}

/// A connection that carries as much as it can until it is dropped.
pub(crate) struct Copying {
    arrived: Arc<AtomicU64>,
    began: Instant,
    stream: TcpStream,
}

impl Copying {
    /// Connects and starts to send.
    pub(crate) fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        let (mut receiver, _) = listener.accept()?;
        let mut sender = stream.try_clone()?;
        let arrived = Arc::new(AtomicU64::new(0));
        let count = arrived.clone();
        // Both end when the connection is shut down.
        std::thread::spawn(move || while sender.write_all(&[1; BUFFER]).is_ok() {});
        std::thread::spawn(move || {
            let mut buffer = vec![0; BUFFER];
            while let Ok(length @ 1..) = receiver.read(&mut buffer) {
                count.fetch_add(length as u64, Relaxed);
            }
        });
        Ok(Self { arrived, began: Instant::now(), stream })
    }

    /// Returns the GB that have arrived each second so far.
    pub(crate) fn rate(&self) -> f64 {
        self.arrived() as f64 / 1e9 / self.began.elapsed().as_secs_f64()
    }

    fn arrived(&self) -> u64 {
        self.arrived.load(Relaxed)
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}
