//! The rounds of the source: what is dirty is copied while the guest runs, and sent in frames.

use std::time::Duration;

use migrate::memory::PAGES_PER_CHUNK;
use migrate::source::{self, FinalSent, RoundSent};

use crate::shells::MS;
use crate::world::{Carried, Happening, Piece, World};

impl World {
    /// Sends a round while the guest runs: over a link that is still slow after a hand-over that
    /// was called off, or over one that is fast again.
    pub(crate) fn send_next_round(&mut self) {
        let is_fast_again = self.hand_overs >= self.scenario.slow_hand_overs;
        if let (true, Some(source)) = (is_fast_again, &mut self.source) {
            source.slower = 1;
        }
        self.send_round();
    }

    pub(crate) fn send_final_round(&mut self) {
        let is_slow = self.hand_overs <= self.scenario.slow_hand_overs;
        let Some(source) = &mut self.source else { return };
        source.slower = if is_slow { self.scenario.slower_after_pause } else { 1 };
        if let Some(guest) = &mut source.guest {
            guest.collect(&mut source.pending);
        }
        self.send_round();
    }

    fn send_round(&mut self) {
        let Some(source) = &mut self.source else { return };
        let set = source.pending.take();
        source.unsent = set.clone();
        let generation = source.generation;
        let page = Duration::from_secs(1) * source.slower / self.scenario.pages_per_second;
        let mut delay = Duration::ZERO;
        for (chunk, mask) in set.iter() {
            self.after(delay, Happening::Copy { generation, chunk, mask });
            delay += page * mask.count_ones();
        }
        let pages = set.count();
        self.after(delay + MS / 10, Happening::RoundDone { generation, pages });
    }

    /// Goes on over a new connection: what was not sent, and what the destination does not have of
    /// what was, is dirty.
    pub(crate) fn reopen_streams(&mut self, applied: &[u64]) {
        let scenario_trusts = self.scenario.trusts_streams;
        let Some(source) = &mut self.source else { return };
        source.generation += 1;
        let unsent = source.unsent.take();
        source.pending.union(&unsent);
        for (chunk, (frame, pages)) in source.journal.iter_mut().enumerate() {
            if *frame > applied[chunk % applied.len()] && !scenario_trusts {
                source.pending.words_mut()[chunk] |= *pages;
            }
            (*frame, *pages) = (0, 0);
        }
        source.frames.fill(0);
        source.stream_clock.fill(self.now);
        source.frames_before = applied.to_vec();
    }

    /// Re-arms and copies the pages of a chunk, and sends them.
    pub(crate) fn copy(&mut self, generation: u32, chunk: usize, mask: u64) {
        let Some(source) = self.source.as_mut().filter(|s| s.generation == generation) else {
            return;
        };
        let Some(guest) = &mut source.guest else { return };
        guest.rearm(chunk, mask);
        source.unsent.words_mut()[chunk] &= !mask;
        let first = chunk * PAGES_PER_CHUNK;
        let pages = guest.content.memory[first..first + PAGES_PER_CHUNK].to_vec();
        let stream = chunk % source.frames.len();
        source.frames[stream] += 1;
        let number = source.frames[stream];
        let carried = source.journal[chunk].1 | mask;
        source.journal[chunk] = (source.frames_before[stream] + number, carried);
        // Streams may overtake each other, but each keeps its order.
        let arrives = (self.now + self.scenario.latency * (stream as u32 + 1))
            .max(source.stream_clock[stream]);
        source.stream_clock[stream] = arrives;
        if !std::mem::take(&mut self.lose_frame) && self.now >= self.outage_until {
            self.carry(arrives, stream, Piece::Frame { number, pages: (chunk, mask, pages) });
        }
    }

    /// Has a piece of a stream arrive at this time over the present connection.
    fn carry(&mut self, arrives: Duration, stream: usize, piece: Piece) {
        let Some(conn) = self.source.as_ref().and_then(|source| source.conn) else { return };
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.under_way += 1;
        }
        self.at(arrives, Happening::Arrived(Carried { conn, stream, piece }));
    }

    pub(crate) fn round_done(&mut self, generation: u32, pages: u64) {
        let Some(source) = self.source.as_mut().filter(|s| s.generation == generation) else {
            return;
        };
        let Some(guest) = &mut source.guest else { return };
        guest.collect(&mut source.pending);
        let dirty_pages = source.pending.count();
        let wire_bytes = pages * 4096;
        let sent = RoundSent {
            pages,
            zero_pages: pages / 3,
            wire_bytes,
            dirty_pages,
            ..RoundSent::default()
        };
        self.feed_source(source::Event::RoundSent(sent));
    }

    pub(crate) fn send_remainder(&mut self) {
        let Some(source) = &mut self.source else { return };
        let Some(guest) = &source.guest else { return };
        guest.collect(&mut source.pending);
        let set = source.pending.take();
        let generation = source.generation;
        for (chunk, mask) in set.iter() {
            self.copy(generation, chunk, mask);
        }
        self.end_streams();
        let sent = FinalSent { pages: set.count(), ..FinalSent::default() };
        self.after(MS, Happening::ToSource(source::Event::RemainderSent(sent)));
    }

    fn end_streams(&mut self) {
        let Some(source) = &self.source else { return };
        let ends: Vec<_> = source.frames.iter().copied().zip(source.stream_clock.clone()).collect();
        for (stream, (frames, clock)) in ends.into_iter().enumerate() {
            let arrives = clock.max(self.now + self.scenario.latency);
            self.carry(arrives, stream, Piece::End { frames });
        }
    }

    /// Ends the round and the streams, and reports what is dirty or was not sent.
    pub(crate) fn drain(&mut self) {
        let Some(source) = &mut self.source else { return };
        let Some(guest) = &mut source.guest else { return };
        source.generation += 1;
        let unsent = source.unsent.take();
        source.pending.union(&unsent);
        guest.collect(&mut source.pending);
        let missing = source.pending.take();
        missing.iter().for_each(|(chunk, mask)| guest.rearm(chunk, mask));
        self.end_streams();
        self.after(MS, Happening::ToSource(source::Event::StreamsEnded(missing)));
    }
}
