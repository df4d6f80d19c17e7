//! Telling the network where the guest is now: frames that a switch learns its port from.
//!
//! The host sends them in the guest's name, so they come whatever the guest runs: reverse ARP (RFC
//! 903), as other hypervisors do, since nobody answers and nobody's table changes but those of
//! switches. The driver is asked to announce itself too (`VIRTIO_NET_F_GUEST_ANNOUNCE`), which
//! knows its IP addresses and VLANs.

use std::time::{Duration, Instant};

use super::{HEADER_BYTES, MacAddress};

/// Frames for each announcement: some switches lose the first ones.
const ROUNDS: u32 = 5;
/// From the first frame to the second, and what each pause is longer than the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const PAUSE_STEP: Duration = Duration::from_millis(100);

/// A frame with its header.
pub(super) const ANNOUNCEMENT_BYTES: usize = HEADER_BYTES + 60;

/// Frames that are still to be sent.
#[derive(Debug, Default)]
pub(super) struct Announcement {
    /// When the next is due, and how many have been sent.
    next: Option<(Instant, u32)>,
}

impl Announcement {
    /// Begins, or begins anew.
    pub(super) fn begin(&mut self, now: Instant) {
        self.next = Some((now, 0));
    }

    /// Sends no more.
    pub(super) fn end(&mut self) {
        self.next = None;
    }

    /// When the next frame is to be sent.
    pub(super) fn due(&self) -> Option<Instant> {
        self.next.map(|(due, _)| due)
    }

    /// Whether a frame is to be sent now; it then counts as sent.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let Some((due, sent)) = self.next.filter(|(due, _)| *due <= now) else { return false };
        let pause = FIRST_PAUSE + PAUSE_STEP * sent;
        self.next = (sent + 1 < ROUNDS).then_some((due + pause, sent + 1));
        true
    }
}

/// Reverse ARP to everybody, asking for the IP address of `mac`, after an empty header of
/// virtio-net's.
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
