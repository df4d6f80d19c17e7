//! Decides, chunk by chunk, whether lz4 is worth its time.
//!
//! Compression pays if sending the bytes it saves would take longer than saving them. Both are
//! measured while the migration runs: [`WireRate`] measures what a byte costs on the wire, and
//! every attempt measures what lz4 costs and saves on this guest's memory. After an attempt that
//! does not pay, a growing number of chunks is sent raw before the next attempt.

use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The compression mode that the operator selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// lz4 where it makes the migration faster.
    #[default]
    Auto,
    /// Never compress.
    Off,
    /// lz4 wherever it saves bytes, at any cost: for links that are billed by the byte.
    Lz4,
}

/// An attempt that saves less than this share counts as incompressible data.
pub(super) const SAVING_MIN: f64 = 0.10;
/// Chunks sent raw after a first attempt that did not pay; doubled after each further one in a row.
const SKIP_FIRST: u32 = 4;
/// Most chunks sent raw between two attempts: 64 MiB of memory.
const SKIP_MAX: u32 = 256;

/// Decides for one stream when to try lz4.
#[derive(Debug)]
pub(super) struct Chooser {
    mode: Compression,
    skip_left: u32,
    skip_next: u32,
}

impl Chooser {
    pub(super) fn new(mode: Compression) -> Self {
        Self { mode, skip_left: 0, skip_next: SKIP_FIRST }
    }

    /// Returns whether to try lz4 on the next chunk.
    pub(super) fn wants(&mut self, wire: &WireRate) -> bool {
        match self.mode {
            Compression::Off => return false,
            Compression::Auto if wire.ns_per_byte.is_none() => return false,
            Compression::Auto | Compression::Lz4 => {}
        }
        if self.skip_left == 0 {
            return true;
        }
        self.skip_left -= 1;
        false
    }

    /// Updates the skip count from an attempt; returns whether its result is to be sent.
    pub(super) fn judge(&mut self, attempt: &Attempt, wire: &WireRate) -> Verdict {
        let saved = attempt.input_bytes.saturating_sub(attempt.output_bytes) as f64;
        let saving = saved / attempt.input_bytes.max(1) as f64;
        let pays = saving >= SAVING_MIN
            && match (self.mode, wire.ns_per_byte) {
                (Compression::Auto, Some(wire)) => saved * wire > attempt.took.as_nanos() as f64,
                _ => true,
            };
        if pays {
            self.skip_next = SKIP_FIRST;
        } else {
            self.skip_left = self.skip_next;
            self.skip_next = (self.skip_next * 2).min(SKIP_MAX);
        }
        if saving >= SAVING_MIN { Verdict::Send } else { Verdict::Discard }
    }
}

/// The cost and result of one compression attempt.
pub(super) struct Attempt {
    pub(super) input_bytes: usize,
    pub(super) output_bytes: usize,
    pub(super) took: Duration,
}

/// What to do with an attempt's result: once made, it is sent if it saves at least `SAVING_MIN`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Send,
    Discard,
}

/// The time that a byte costs on the wire, measured while the sender has to wait for it.
#[derive(Debug, Clone, Default)]
pub struct WireRate {
    ns_per_byte: Option<f64>,
    full_at: Option<Instant>,
    bytes: u64,
}

/// A write that waited less than this did not find the transport's buffer full.
const WAITED_MIN: Duration = Duration::from_micros(20);
/// Fewest bytes between two full buffers that make a measurement.
const SAMPLE_BYTES_MIN: u64 = 1 << 20;

impl WireRate {
    /// Records that `bytes` were handed to the transport after the sender had waited for `waited`.
    ///
    /// Between two times at which the buffer was full, the bytes written are the bytes that the
    /// wire took. Returns the new rate of the wire in bytes per second if this call measured it.
    pub fn wrote(&mut self, bytes: u64, waited: Duration, now: Instant) -> Option<f64> {
        self.bytes += bytes;
        if waited < WAITED_MIN {
            return None;
        }
        let Some(full_at) = self.full_at else {
            self.full_at = Some(now);
            self.bytes = 0;
            return None;
        };
        if self.bytes < SAMPLE_BYTES_MIN {
            return None;
        }
        let sample = now.duration_since(full_at).as_nanos() as f64 / self.bytes as f64;
        self.ns_per_byte = Some(self.ns_per_byte.map_or(sample, |old| 0.75 * old + 0.25 * sample));
        self.full_at = Some(now);
        self.bytes = 0;
        self.bytes_per_second()
    }

    /// Forgets the last full buffer, because sending was interrupted; keeps the measured rate.
    pub fn paused(&mut self) {
        self.full_at = None;
        self.bytes = 0;
    }

    /// Returns the rate of the wire in bytes per second; none before it was measured.
    pub fn bytes_per_second(&self) -> Option<f64> {
        self.ns_per_byte.map(|ns| 1e9 / ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(ns_per_byte: f64) -> WireRate {
        WireRate { ns_per_byte: Some(ns_per_byte), ..WireRate::default() }
    }

    fn attempt(output_bytes: usize) -> Attempt {
        let took = Duration::from_nanos(1000);
        Attempt { input_bytes: 1000, output_bytes, took }
    }

    fn attempts_in(chunks: u32, chooser: &mut Chooser, wire: &WireRate, output: usize) -> u32 {
        let mut made = 0;
        for _ in 0..chunks {
            if chooser.wants(wire) {
                made += 1;
                chooser.judge(&attempt(output), wire);
            }
        }
        made
    }

    #[test]
    fn bails_out_on_incompressible_data() {
        let mut chooser = Chooser::new(Compression::Lz4);
        assert!(attempts_in(4096, &mut chooser, &wire(100.0), 990) < 25);
    }

    #[test]
    fn compresses_everything_on_a_slow_wire() {
        let mut chooser = Chooser::new(Compression::Auto);
        assert_eq!(attempts_in(1000, &mut chooser, &wire(8.0), 400), 1000);
    }

    #[test]
    fn leaves_compressible_data_raw_on_a_fast_wire() {
        let mut chooser = Chooser::new(Compression::Auto);
        assert!(attempts_in(4096, &mut chooser, &wire(0.4), 400) < 25);
    }

    #[test]
    fn never_tries_when_off_or_before_the_wire_is_measured() {
        let unknown = WireRate::default();
        assert_eq!(attempts_in(100, &mut Chooser::new(Compression::Auto), &unknown, 1), 0);
        assert_eq!(attempts_in(100, &mut Chooser::new(Compression::Off), &wire(9.0), 1), 0);
    }

    #[test]
    fn comes_back_when_data_turns_compressible() {
        let mut chooser = Chooser::new(Compression::Lz4);
        attempts_in(4096, &mut chooser, &wire(8.0), 1000);
        assert!(attempts_in(1000, &mut chooser, &wire(8.0), 400) > 700);
    }

    #[test]
    fn measures_the_wire_between_two_full_buffers() {
        let start = Instant::now();
        let mut wire = WireRate::default();
        wire.wrote(4 << 20, Duration::from_millis(1), start);
        assert_eq!(wire.bytes_per_second(), None);
        wire.wrote(1 << 20, Duration::ZERO, start);
        wire.wrote(1 << 20, Duration::from_millis(1), start + Duration::from_millis(2));
        let rate = wire.bytes_per_second().unwrap();
        assert!((rate - f64::from(1 << 30)).abs() / rate < 0.05, "{rate}");
    }
}
