//! Valid, invalid, and random requests.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::buffers::tests::memory;

const LIMITS: Limits = Limits { sectors: 100, access: Access::ReadWrite };

fn buffers(memory: &RamMap, pieces: &[(u64, u32)]) -> Buffers {
    let mut buffers = Buffers::default();
    for (gpa, len) in pieces {
        assert!(buffers.push(memory, *gpa, *len));
    }
    buffers
}

/// A request with `data` in the readable part, and space for `room` bytes and a status.
fn request(limits: Limits, kind: u32, sector: u64, data: &[u8], room: u32) -> Request {
    let memory = memory();
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    memory.write_slice(&header, GuestAddress(0x1000)).unwrap();
    memory.write_slice(data, GuestAddress(0x2000)).unwrap();
    // Split in odd places, as a driver may do.
    let readable = buffers(&memory, &[(0x1000, 5), (0x1005, 11), (0x2000, data.len() as u32)]);
    let writable = buffers(&memory, &[(0x4_0000, room), (0x8_0000, 1)]);
    parse(Chain { head: 0, readable, writable }, &memory, &limits).unwrap()
}

fn refusal(limits: Limits, kind: u32, sector: u64, data: &[u8], room: u32) -> Status {
    match request(limits, kind, sector, data, room).wish {
        Wish::Refused(status) => status,
        wish => panic!("{wish:?}"),
    }
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

#[test]
fn reading_and_writing_say_where_and_how_much() {
    let read = request(LIMITS, VIRTIO_BLK_T_IN, 98, &[], 1024);
    assert_eq!(read.data_bytes, 1024);
    let Wish::Do(Operation::Read { offset, into }) = read.wish else { panic!("no read") };
    assert_eq!((offset, into.bytes()), (98 * 512, 1024));

    let write = request(LIMITS, VIRTIO_BLK_T_OUT, 0, &[1; 512], 0);
    assert_eq!(write.data_bytes, 0);
    let Wish::Do(Operation::Write { offset, from }) = write.wish else { panic!("no write") };
    assert_eq!((offset, from.bytes()), (0, 512));
    assert_eq!(request(LIMITS, VIRTIO_BLK_T_FLUSH, 0, &[], 0).wish, Wish::Do(Operation::Flush));
}

#[test]
fn what_does_not_fit_the_disk_fails() {
    for (sector, bytes) in [(99, 1024), (100, 512), (u64::MAX, 512), (0, 0), (0, 511), (0, 513)] {
        assert_eq!(refusal(LIMITS, VIRTIO_BLK_T_IN, sector, &[], bytes), Status::Failed);
        let data = vec![0; bytes as usize];
        assert_eq!(refusal(LIMITS, VIRTIO_BLK_T_OUT, sector, &data, 0), Status::Failed);
    }
}

#[test]
fn a_disk_to_read_is_not_written() {
    let limits = Limits { access: Access::ReadOnly, ..LIMITS };
    assert_eq!(refusal(limits, VIRTIO_BLK_T_OUT, 0, &[0; 512], 0), Status::Failed);
    assert_eq!(refusal(limits, VIRTIO_BLK_T_DISCARD, 0, &range(0, 1, 0), 0), Status::Failed);
    assert_eq!(refusal(limits, VIRTIO_BLK_T_WRITE_ZEROES, 0, &range(0, 1, 0), 0), Status::Failed);
}

#[test]
fn the_serial_number_has_room_for_20_bytes() {
    let identify = request(LIMITS, VIRTIO_BLK_T_GET_ID, 0, &[], 20);
    assert!(matches!(identify.wish, Wish::Identify(place) if place.bytes() == 20));
    assert_eq!(identify.data_bytes, 20);
    assert_eq!(refusal(LIMITS, VIRTIO_BLK_T_GET_ID, 0, &[], 19), Status::Failed);
}

#[test]
fn ranges_are_checked_one_by_one() {
    let table = [range(0, 10, 0), range(90, 10, 0)].concat();
    let discard = request(LIMITS, VIRTIO_BLK_T_DISCARD, 0, &table, 0);
    let expected = vec![
        Range { offset: 0, bytes: 5120, unmap: false },
        Range { offset: 90 * 512, bytes: 5120, unmap: false },
    ];
    assert_eq!(discard.wish, Wish::Do(Operation::Discard(expected)));
    let zeroes = request(LIMITS, VIRTIO_BLK_T_WRITE_ZEROES, 0, &range(1, 1, 1), 0);
    let expected = vec![Range { offset: 512, bytes: 512, unmap: true }];
    assert_eq!(zeroes.wish, Wish::Do(Operation::WriteZeroes(expected)));

    let discard = |data: &[u8]| refusal(LIMITS, VIRTIO_BLK_T_DISCARD, 0, data, 0);
    assert_eq!(discard(&range(0, 1, 1)), Status::Unsupported, "no discard unmaps");
    assert_eq!(discard(&range(91, 10, 0)), Status::Failed);
    assert_eq!(discard(&range(u64::MAX, 1, 0)), Status::Failed);
    assert_eq!(discard(&range(0, 0, 0)), Status::Failed);
    assert_eq!(discard(&range(0, u32::MAX, 0)), Status::Failed);
    assert_eq!(discard(&range(0, 1, 0)[..15]), Status::Failed);
    assert_eq!(discard(&[]), Status::Failed);
    assert_eq!(discard(&range(0, 1, 0).repeat(17)), Status::Failed);
}

#[test]
fn unknown_requests_are_unsupported() {
    for kind in [2, 3, 14, 0xffff_ffff] {
        assert_eq!(refusal(LIMITS, kind, 0, &[], 0), Status::Unsupported);
    }
}

#[test]
fn a_request_without_a_header_fails_and_one_without_a_status_breaks_the_queue() {
    let memory = memory();
    let chain = |readable: &[(u64, u32)], writable: &[(u64, u32)]| Chain {
        head: 0,
        readable: buffers(&memory, readable),
        writable: buffers(&memory, writable),
    };
    let short = parse(chain(&[(0x1000, 15)], &[(0x8000, 1)]), &memory, &LIMITS).unwrap();
    assert_eq!(short.wish, Wish::Refused(Status::Failed));
    let mute = parse(chain(&[(0x1000, 16)], &[]), &memory, &LIMITS);
    assert_eq!(mute.unwrap_err(), QueueError::Request);
}

proptest! {
    #[test]
    fn whatever_is_accepted_lies_on_the_disk(
        kind in prop_oneof![0..16u32, any::<u32>()],
        sector in prop_oneof![0..110u64, any::<u64>()],
        data in prop::collection::vec(any::<u8>(), 0..2048),
        room in 0..2048u32,
        read_only in any::<bool>(),
    ) {
        let access = if read_only { Access::ReadOnly } else { Access::ReadWrite };
        let request = request(Limits { access, ..LIMITS }, kind, sector, &data, room);
        prop_assert_eq!(request.status.bytes(), 1);
        let end = 100 * SECTOR_BYTES;
        match request.wish {
            Wish::Do(Operation::Read { offset, into }) => {
                prop_assert!(offset + into.bytes() <= end);
                prop_assert_eq!(into.bytes(), u64::from(request.data_bytes));
            }
            Wish::Do(Operation::Write { offset, from }) => {
                prop_assert!(!read_only && offset + from.bytes() <= end);
            }
            Wish::Do(Operation::Discard(ranges) | Operation::WriteZeroes(ranges)) => {
                prop_assert!(!read_only);
                prop_assert!(ranges.iter().all(|range| range.offset + range.bytes <= end));
            }
            Wish::Do(Operation::Flush) | Wish::Identify(_) | Wish::Refused(_) => {}
        }
    }
}
