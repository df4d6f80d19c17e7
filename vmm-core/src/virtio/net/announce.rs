//! Announces the guest's new location to the network: sends frames from which switches learn its
//! port.
//!
//! The host sends them on behalf of the guest, so they do not depend on the guest's software. They
//! are reverse ARP requests (RFC 903), as other hypervisors send: no machine answers them, and only
//! the tables of switches change. The driver is also asked to announce itself
//! (`VIRTIO_NET_F_GUEST_ANNOUNCE`), since it knows its IP addresses and VLANs.

use std::time::{Duration, Instant};

use super::{HEADER_BYTES, MacAddress};

/// Frames per announcement: some switches lose the first ones.
const ROUNDS: u32 = 5;
/// Pause after the first frame; each further pause is longer by `PAUSE_STEP`.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const PAUSE_STEP: Duration = Duration::from_millis(100);

/// Size of an announcement frame with its header, in bytes.
pub(super) const ANNOUNCEMENT_BYTES: usize = HEADER_BYTES + 60;

/// Progress of an announcement: the frames still to be sent.
#[derive(Debug, Default)]
pub(super) struct Announcement {
    /// When the next frame is due, and how many have been sent.
    next: Option<(Instant, u32)>,
}

impl Announcement {
    /// Starts an announcement, or restarts it.
    pub(super) fn begin(&mut self, now: Instant) {
        self.next = Some((now, 0));
    }

    /// Stops the announcement.
    pub(super) fn end(&mut self) {
        self.next = None;
    }

    /// Returns when the next frame must be sent.
    pub(super) fn due(&self) -> Option<Instant> {
        self.next.map(|(due, _)| due)
    }

    /// Returns whether a frame must be sent now; if so, it counts as sent.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let Some((due, sent)) = self.next.filter(|(due, _)| *due <= now) else { return false };
        let pause = FIRST_PAUSE + PAUSE_STEP * sent;
        self.next = (sent + 1 < ROUNDS).then_some((due + pause, sent + 1));
        true
    }
}

/// Returns a broadcast frame with a reverse ARP request for `mac`, behind an empty virtio-net
/// header.
pub(super) fn frame(mac: MacAddress) -> [u8; ANNOUNCEMENT_BYTES] {
    let mac = mac.bytes();
    let mut bytes = [0; ANNOUNCEMENT_BYTES];
    let mut at = HEADER_BYTES;
    let mut put = |part: &[u8]| {
        bytes[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    };
    put(&[0xff; 6]);
    put(&mac);
    put(&[0x80, 0x35]); // reverse ARP
    put(&[0, 1, 8, 0, 6, 4]); // Ethernet, IPv4, lengths of their addresses
    put(&[0, 3]); // request
    put(&mac);
    put(&[0; 4]);
    put(&mac);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_frames_are_sent_at_growing_intervals() {
        let (start, mut announcement) = (Instant::now(), Announcement::default());
        assert!(!announcement.take(start));
        announcement.begin(start);
        let mut sent = Vec::new();
        for ms in 0..2000 {
            if announcement.take(start + Duration::from_millis(ms)) {
                sent.push(ms);
            }
        }
        assert_eq!(sent, [0, 50, 200, 450, 800]);
        assert_eq!(announcement.due(), None);
    }

    #[test]
    fn the_frame_is_a_reverse_arp_broadcast_of_the_guests() {
        let frame = frame("52:54:00:12:34:56".parse().unwrap());
        let mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
        assert_eq!(frame[..12], [0; 12]);
        assert_eq!(frame[12..18], [0xff; 6]);
        assert_eq!(frame[18..24], mac);
        assert_eq!(frame[24..34], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!((&frame[34..40], &frame[44..50]), (&mac[..], &mac[..]));
        assert_eq!(frame.len(), 72);
    }
}
