//! What comes on the data streams is applied at the destination, some time after it has arrived:
//! also after the connection is lost that brought it.

use std::time::Duration;

use migrate::destination;
use migrate::memory::PAGES_PER_CHUNK;

use crate::shells::MS;
use crate::world::{Carried, Happening, Piece, World};

impl World {
    pub(crate) fn arrive(&mut self, carried: Carried) {
        if self.conns.get(&carried.conn).is_none_or(|conn| conn.broken) {
            return self.is_done(carried.conn);
        }
        let delay = if carried.conn == 0 { self.scenario.apply } else { Duration::ZERO };
        self.after(delay, Happening::Applied(carried));
    }

    pub(crate) fn apply(&mut self, carried: Carried) {
        let Carried { conn, stream, piece } = carried;
        self.is_done(conn);
        let Some(side) = self.destination.as_mut().filter(|side| side.accepts) else { return };
        let Some(guest) = &mut side.guest else { return };
        let applied = side.applied_of.entry((conn, stream)).or_default();
        match piece {
            // A stream is in order: nothing comes after what is lost.
            Piece::Frame { number, .. } if number != *applied + 1 => {}
            Piece::Frame { number, pages: (chunk, mask, pages) } => {
                *applied = number;
                side.applied[stream] += 1;
                for (page, content) in pages.into_iter().enumerate() {
                    if mask >> page & 1 == 1 {
                        guest.content.memory[chunk * PAGES_PER_CHUNK + page] = content;
                    }
                }
            }
            Piece::End { frames } => {
                let (stream, applied) = (stream as u16, *applied);
                self.feed_destination(destination::Event::StreamEnded {
                    stream,
                    announced: frames,
                    applied,
                });
            }
        }
    }

    fn is_done(&mut self, conn: u64) {
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.under_way -= 1;
        }
    }

    /// Counts the frames once nothing of earlier connections is under way.
    pub(crate) fn count_frames(&mut self) {
        let Some(side) = &self.destination else { return };
        let present = side.conn.unwrap_or(u64::MAX);
        let is_earlier = |id: &u64| *id < present;
        let is_busy = self.conns.iter().any(|(id, it)| is_earlier(id) && it.under_way > 0);
        if is_busy && !self.scenario.counts_early {
            return self.after(MS, Happening::Counting);
        }
        let counted = destination::Event::Counted(side.applied.clone());
        self.after(Duration::ZERO, Happening::ToDestination(counted));
    }
}
