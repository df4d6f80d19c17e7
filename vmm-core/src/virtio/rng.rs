//! An entropy source (virtio 1.2, 5.4): one queue of buffers, filled from the host's `getrandom`.
//!
//! A request gets at most [`REQUEST_BYTES_MAX`], and the number of requests answered per second is
//! limited: a guest that asks without end waits, instead of keeping a CPU of the host busy.

use std::time::{Duration, Instant};

use super::device::{Device, DeviceKind, Progress, Rings};
use super::queue::QueueError;
use super::signals::ConfigSpace;
use crate::sys::file;

/// Most bytes per request; a driver that wants more asks again. Linux asks for 64.
const REQUEST_BYTES_MAX: usize = 256;
/// Requests answered per second; with the limit above, 1 MiB of entropy.
const REQUESTS_PER_SECOND: u32 = 4096;
/// Most requests answered at once after an idle period.
const BURST: u32 = 256;
/// Requests answered before the thread checks for other work.
const BATCH: u32 = 64;
/// Entries of the queue.
const QUEUE_SIZE: u16 = 64;

/// The entropy device.
#[derive(Debug, Default)]
pub(crate) struct RngDevice {
    allowance: Allowance,
}

impl Device for RngDevice {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn config(&self) -> ConfigSpace {
        ConfigSpace::read_only(Vec::new())
    }

    fn process(&mut self, index: usize, rings: &mut Rings<'_>) -> Result<Progress, QueueError> {
        let allowed = self.allowance.requests(rings.now());
        if allowed == 0 {
            return Ok(Progress::After(Duration::from_secs(1) / REQUESTS_PER_SECOND * BATCH));
        }
        let mut used = 0;
        let progress = rings.serve(index, allowed.min(BATCH) as usize, |mut chain, memory| {
            used += 1;
            let mut bytes = [0; REQUEST_BYTES_MAX];
            let len = chain.writable.bytes().min(REQUEST_BYTES_MAX as u64);
            let bytes = &mut bytes[..len as usize];
            let place = chain.writable.take_front(len).ok_or(QueueError::Buffer)?;
            // Without entropy the answer is empty; the driver asks again.
            if file::fill_random(bytes).is_err() {
                return Ok(0);
            }
            place.write(memory, bytes).map_err(|_| QueueError::Buffer)?;
            Ok(len as u32)
        });
        self.allowance.spend(used);
        progress
    }
}

/// Number of requests that may still be answered: refills with time, up to [`BURST`].
#[derive(Debug, Default)]
struct Allowance {
    /// Time and amount of the last update; `None` means full.
    last: Option<(Instant, u32)>,
}

impl Allowance {
    /// Returns how many requests may be answered now.
    fn requests(&mut self, now: Instant) -> u32 {
        let Some((then, left)) = self.last else {
            self.last = Some((now, BURST));
            return BURST;
        };
        let elapsed_us = now.saturating_duration_since(then).as_micros();
        let earned = elapsed_us * u128::from(REQUESTS_PER_SECOND) / 1_000_000;
        if earned > 0 {
            let left = u32::try_from(earned).unwrap_or(BURST).saturating_add(left).min(BURST);
            self.last = Some((now, left));
            return left;
        }
        left
    }

    fn spend(&mut self, requests: u32) {
        if let Some((_, left)) = &mut self.last {
            *left = left.saturating_sub(requests);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{Bench, WRITABLE};

    #[test]
    fn requests_are_filled_up_to_the_limit() {
        let mut bench = Bench::new(Box::new(RngDevice::default()));
        bench.driver(0).offer(&[(0x8000, 64, WRITABLE)]);
        bench.driver(0).offer(&[(0x9000, 100_000, WRITABLE)]);
        bench.kick(0);
        assert_eq!(bench.driver(0).used(), [(0, 64), (1, 256)]);
        assert_ne!(bench.bytes(0x8000, 64), [0; 64]);
        assert_eq!(bench.bytes(0x8040, 64), [0; 64]);
        assert_ne!(bench.bytes(0x90f0, 16), [0; 16]);
        assert_eq!(bench.bytes(0x9100, 16), [0; 16]);
    }

    #[test]
    fn a_request_without_a_place_gets_nothing() {
        let mut bench = Bench::new(Box::new(RngDevice::default()));
        bench.driver(0).offer(&[(0x8000, 64, 0)]);
        bench.kick(0);
        assert_eq!(bench.driver(0).used(), [(0, 0)]);
    }

    #[test]
    fn a_greedy_driver_waits() {
        let start = Instant::now();
        let mut allowance = Allowance::default();
        assert_eq!(allowance.requests(start), BURST);
        allowance.spend(BURST);
        assert_eq!(allowance.requests(start), 0);
        let mut answered = 0;
        for tick in 1..=10_000 {
            let now = start + Duration::from_micros(100) * tick;
            let requests = allowance.requests(now);
            allowance.spend(requests);
            answered += requests;
        }
        assert!(answered.abs_diff(REQUESTS_PER_SECOND) < 1000, "{answered} in a second");
        assert_eq!(allowance.requests(start + Duration::from_secs(3600)), BURST);
    }
}
