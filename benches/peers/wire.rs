//! A wire between two interfaces of this host, on which packets take time, queue and get lost, as
//! on a long one. It does what `sch_netem` does, on kernels with and without it, and takes
//! processor time from what is measured.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;
use fastrand::Rng;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::link::{Cable, QUEUE};
use super::packets;

/// Room for the longest frame, with its header.
const FRAME_BYTES: usize = 10 << 10;
/// As much later than it should may a packet arrive, so that many are carried at once.
const GRAIN: Duration = Duration::from_micros(200);
/// How often an idle wire looks whether it is still wanted.
const IDLE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// A wire, cut when dropped.
pub(crate) struct Wire {
    is_cut: Arc<AtomicBool>,
    ways: Vec<JoinHandle<()>>,
}

impl Wire {
    /// Connects two interfaces of this network namespace, which must be up, by a wire like `cable`.
    ///
    /// # Errors
    /// If this process may not read packets (`CAP_NET_RAW`), or has no such interface.
    pub(crate) fn between(interfaces: [&str; 2], cable: Cable) -> Result<Self> {
        let is_cut = Arc::new(AtomicBool::new(false));
        let ends = Arc::new([packets::open(interfaces[0])?, packets::open(interfaces[1])?]);
        let ways = [0, 1].map(|from| {
            let (is_cut, ends) = (is_cut.clone(), ends.clone());
            thread::spawn(move || {
                packets::prefer();
                let mut path = Path::new(cable, from as u64);
                while !is_cut.load(Relaxed) {
                    carry(&ends[from], &ends[1 - from], &mut path);
                }
            })
        });
        Ok(Self { is_cut, ways: ways.into() })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.is_cut.store(true, Relaxed);
        for way in self.ways.drain(..) {
            let _ = way.join();
        }
    }
}

/// Takes what has come in, and passes on what is due.
fn carry(mut from: &File, mut to: &File, path: &mut Path) {
    if path.is_empty() {
        // A signal ends the wait early, which does no harm.
        let _ = poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&IDLE));
    } else {
        thread::sleep(GRAIN);
    }
    let mut frame = [0; FRAME_BYTES];
    while let Ok(length) = from.read(&mut frame) {
        path.enter(Instant::now(), &frame[..length]);
    }
    while let Some(frame) = path.leave(Instant::now()) {
        // One that does not get through is lost, as on any wire.
        let _ = to.write(&frame);
    }
}

/// One direction of a wire.
struct Path {
    cable: Cable,
    /// When the last packet has been sent whole.
    free: Instant,
    /// What is under way, each with the time at which it arrives.
    frames: VecDeque<(Instant, Vec<u8>)>,
    random: Rng,
}

impl Path {
    fn new(cable: Cable, seed: u64) -> Self {
        let random = Rng::with_seed(seed);
        Self { cable, free: Instant::now(), frames: VecDeque::new(), random }
    }

    fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// A packet comes in, unless it is lost: at random, or since the queue is full.
    fn enter(&mut self, now: Instant, frame: &[u8]) {
        let begins = self.free.max(now);
        let is_lost = self.random.f64() * 100.0 < self.cable.loss_percent;
        if is_lost || begins - now > QUEUE {
            return;
        }
        let bits = (frame.len() - packets::HEADER_BYTES) as f64 * 8.0;
        self.free = begins + Duration::from_secs_f64(bits / self.cable.rate as f64);
        self.frames.push_back((self.free + self.cable.round_trip / 2, frame.to_vec()));
    }

    /// The next packet that has arrived.
    fn leave(&mut self, now: Instant) -> Option<Vec<u8>> {
        let (arrives, _) = self.frames.front()?;
        if *arrives > now {
            return None;
        }
        self.frames.pop_front().map(|(_, frame)| frame)
    }
}
