//! A network between source and process that can fall silent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use tokio::net::UdpSocket;

use super::super::limiter::Limiter;
use super::world::LOOPBACK;

/// Forwards datagrams between one source socket and one process until it is silenced.
#[derive(Clone, Default)]
pub(super) struct Relay {
    pub(super) silent: Arc<AtomicBool>,
    /// Bytes per second forwarded to the process; 0 for no limit.
    pub(super) bytes_per_second: u64,
}

impl Relay {
    /// Starts forwarding to `port`; returns the port to send to.
    pub(super) fn start(&self, port: u16) -> u16 {
        self.start_at(SocketAddr::new(LOOPBACK, 0), port)
    }

    /// As [`Self::start`], and listens at `address`.
    pub(super) fn start_at(&self, address: SocketAddr, port: u16) -> u16 {
        let here = std::net::UdpSocket::bind(address).unwrap();
        here.set_nonblocking(true).unwrap();
        let there = std::net::UdpSocket::bind(SocketAddr::new(LOOPBACK, 0)).unwrap();
        there.set_nonblocking(true).unwrap();
        there.connect(SocketAddr::new(LOOPBACK, port)).unwrap();
        let relay_port = here.local_addr().unwrap().port();
        let (silent, rate) = (self.silent.clone(), self.bytes_per_second);
        tokio::spawn(async move {
            let (here, there) =
                (UdpSocket::from_std(here).unwrap(), UdpSocket::from_std(there).unwrap());
            pass_on(&here, &there, &silent, rate).await;
        });
        relay_port
    }
}

async fn pass_on(here: &UdpSocket, there: &UdpSocket, silent: &AtomicBool, rate: u64) {
    let (mut out, mut back) = (vec![0; 65536], vec![0; 65536]);
    let mut source = None;
    let link = Limiter::new((rate > 0).then_some(rate));
    loop {
        tokio::select! {
            Ok((length, from)) = here.recv_from(&mut out) => {
                source = Some(from);
                if !silent.load(SeqCst) {
                    link.take(length).await;
                    let _ = there.send(&out[..length]).await;
                }
            }
            Ok(length) = there.recv(&mut back) => {
                if let (false, Some(source)) = (silent.load(SeqCst), source) {
                    let _ = here.send_to(&back[..length], source).await;
                }
            }
        }
    }
}
