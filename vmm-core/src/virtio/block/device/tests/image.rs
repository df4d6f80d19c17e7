//! A disk in an image, whose driver has several requests in flight.

use std::fs;
use std::path::Path;

use imago::FormatCreateBuilder;
use imago::qcow2::Qcow2;
use proptest::prelude::*;

use super::*;
use crate::sys::image_file::ImageFile;

const CLUSTER: usize = 8 << 10;
/// Parts of the disk, of which each request takes one: two whole clusters, and half of one.
const SLOTS: usize = 12;
const SLOT_BYTES: usize = 20 << 10;
const BYTES: usize = SLOTS * SLOT_BYTES;
/// Requests in flight: the driver's descriptors are enough for no more.
const AT_ONCE: usize = 5;

#[derive(Debug, Clone, Copy)]
enum Ask {
    Read,
    Write { with: u8 },
    Flush,
    Discard,
    Zero { unmap: bool },
}

/// Requests that are in flight at once, each with its slot.
fn batch() -> impl Strategy<Value = Vec<(usize, Ask)>> {
    let ask = prop_oneof![
        3 => Just(Ask::Read),
        4 => any::<u8>().prop_map(|with| Ask::Write { with }),
        1 => Just(Ask::Flush),
        1 => Just(Ask::Discard),
        1 => any::<bool>().prop_map(|unmap| Ask::Zero { unmap }),
    ];
    proptest::collection::vec((0..SLOTS, ask), 1..=AT_ONCE)
}

/// Makes an image, based on a file if there is one.
fn create(path: &Path, backing: Option<&str>) {
    let file = fs::File::create_new(path).unwrap();
    drop(file);
    let file = Arc::new(fs::File::options().read(true).write(true).open(path).unwrap());
    let image = Qcow2::<ImageFile>::create_builder(ImageFile::unmarked(path, &file));
    let image = image.size(BYTES as u64).cluster_size(CLUSTER);
    match backing {
        Some(name) => image.backing(name.to_owned(), "raw".to_owned()),
        None => image,
    }
    .create()
    .unwrap();
}

/// Lets a file end before the zeros at its end, as other programs leave an image.
fn cut_zeros_off(path: &Path) {
    let bytes = fs::read(path).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_len(end.next_multiple_of(512)).unwrap();
}

fn open(path: &Path, engine: EngineChoice) -> Bench {
    open_with(path, (engine, CacheMode::Writeback), 1, true)
}

/// Opens a disk of so many queues, with a driver that flushes or does not.
fn open_with(path: &Path, (engine, cache): Mode, queues: u16, flushes: bool) -> Bench {
    let config = BlockConfig::new(path, Access::ReadWrite, "serial-1").unwrap();
    let config = config.with_engine(engine).with_cache(cache).with_queues(queues);
    let mut device = BlockDevice::open(&config).unwrap();
    device.take_over().unwrap();
    let mut bench = Bench::switched_off(Box::new(device));
    let features = bench.backend.device().features();
    let declined = if flushes { 0 } else { 1 << VIRTIO_BLK_F_FLUSH };
    bench.backend.activate(features & !declined, &bench.registers);
    bench.backend.resume();
    bench
}

/// The queue by which the driver asks for a slot.
fn queue_of(bench: &Bench, slot: usize) -> usize {
    slot % bench.registers.len()
}

/// Places in guest memory of request `number`: header, data and status. The data of every second
/// request are not aligned.
fn places(number: usize) -> (u64, u64, u64) {
    let number = number as u64;
    (0x2_0000 + number * 32, 0x3_0000 + number * 0x1_0000 + number % 2 * 100, STATUS + number)
}

fn offer(bench: &mut Bench, number: usize, slot: usize, ask: Ask) {
    let (header, data, status) = places(number);
    let sector = (slot * SLOT_BYTES / 512) as u64;
    let mut range = [sector.to_le_bytes(), [0; 8]].concat();
    range[8..12].copy_from_slice(&(SLOT_BYTES as u32 / 512).to_le_bytes());
    range[12] = u8::from(matches!(ask, Ask::Zero { unmap: true }));
    let (kind, bytes, flags) = match ask {
        Ask::Read => (0, vec![0xee; SLOT_BYTES], WRITABLE),
        Ask::Write { with } => (1, vec![with; SLOT_BYTES], 0),
        Ask::Flush => (4, Vec::new(), 0),
        Ask::Discard => (11, range, 0),
        Ask::Zero { .. } => (13, range, 0),
    };
    let of_transfer = if kind < 2 { sector } else { 0 };
    let words = [kind, of_transfer];
    bench.ram.write(header, &words.map(u64::to_le_bytes).concat()).unwrap();
    bench.ram.write(data, &bytes).unwrap();
    bench.ram.write(status, &[0xee]).unwrap();
    let mut buffers = vec![(header, 16, 0), (data, bytes.len() as u32, flags)];
    buffers.retain(|buffer| buffer.1 > 0);
    buffers.push((status, 1, WRITABLE));
    bench.driver(queue_of(bench, slot)).offer(&buffers);
}

/// Notifies the device of what the driver has offered.
fn kick(bench: &mut Bench) {
    (0..bench.registers.len()).for_each(|queue| bench.backend.notify(queue));
    bench.run();
}

/// Waits for the answer of request `number`, and returns what is in its place for data then.
fn answer(bench: &mut Bench, number: usize) -> Vec<u8> {
    let (_, data, status) = places(number);
    while bench.bytes(status, 1)[0] == 0xee {
        bench.backend.ready(0);
    }
    assert_eq!(bench.bytes(status, 1)[0], 0);
    bench.bytes(data, SLOT_BYTES)
}

/// Lets the driver ask all of a batch at once; checks the answers against `expected`, the disk's
/// content, and changes that. What a slot has of which several things are asked is up to the disk.
fn ask_all(bench: &mut Bench, batch: &[(usize, Ask)], expected: &mut [u8]) {
    for (number, (slot, ask)) in batch.iter().enumerate() {
        offer(bench, number, *slot, *ask);
    }
    kick(bench);
    let is_alone = |slot| batch.iter().filter(|(other, _)| *other == slot).count() == 1;
    for (number, &(slot, ask)) in batch.iter().enumerate() {
        let found = answer(bench, number);
        let part = &mut expected[slot * SLOT_BYTES..][..SLOT_BYTES];
        match ask {
            Ask::Read if is_alone(slot) => assert!(found == part, "slot {slot}"),
            Ask::Write { with } => part.fill(with),
            Ask::Discard | Ask::Zero { .. } => part.fill(0),
            Ask::Read | Ask::Flush => {}
        }
    }
    for &(slot, _) in batch.iter().filter(|(slot, _)| !is_alone(*slot)) {
        offer(bench, 0, slot, Ask::Read);
        kick(bench);
        expected[slot * SLOT_BYTES..][..SLOT_BYTES].copy_from_slice(&answer(bench, 0));
    }
}

#[test]
fn what_a_discard_frees_is_not_written_by_requests_in_flight() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    create(&path, None);
    let mut bench = open(&path, EngineChoice::IoUring);
    let (mut expected, write) = (vec![0; BYTES], |with| Ask::Write { with });
    for slot in 0..SLOTS - 1 {
        ask_all(&mut bench, &[(slot, write(1))], &mut expected);
        // The last write takes the clusters that the discard has freed.
        let batch = [(slot, write(2)), (slot, Ask::Discard), (SLOTS - 1, write(3))];
        ask_all(&mut bench, &batch, &mut expected);
        ask_all(&mut bench, &[(SLOTS - 1, Ask::Read)], &mut expected);
        ask_all(&mut bench, &[(SLOTS - 1, Ask::Discard)], &mut expected);
    }
}

#[test]
fn a_broken_queue_leaves_requests_that_are_completed_and_not_answered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    create(&path, None);
    let mut expected = vec![0; BYTES];
    for (with, is_reset) in [(2, false), (3, true)] {
        let mut bench = open(&path, EngineChoice::IoUring);
        ask_all(&mut bench, &[(0, Ask::Write { with: 1 })], &mut expected);
        let before = bench.driver(0).used().len();
        // The discard waits for the write; then comes a request without a status.
        offer(&mut bench, 0, 0, Ask::Write { with });
        offer(&mut bench, 1, 1, Ask::Discard);
        bench.driver(0).offer(&[(HEADER, 16, 0)]);
        let content = bench.backend.on_device(|disk: &mut BlockDevice, _| disk.content()).unwrap();
        content.start_log();
        kick(&mut bench);
        assert!(bench.signals.needs_reset());
        if is_reset {
            bench.backend.reset();
        } else {
            bench.backend.pause();
        }
        assert_eq!(bench.driver(0).used().len(), before + 1, "the discard alone");
        assert_eq!(marked(&content)[0] & 0b11111, 0b11111, "the write is logged");
        drop((bench, content));
        expected[..SLOT_BYTES].fill(with);
        ask_all(
            &mut open(&path, EngineChoice::Sync),
            &[(0, Ask::Read), (1, Ask::Read)],
            &mut expected,
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn requests_at_once_read_and_write_what_they_say(
        batches in proptest::collection::vec(batch(), 1..12),
        (has_backing, by_ring, flushes, bypasses_cache) in any::<(bool, bool, bool, bool)>(),
        queues in 1..=2_u16,
    ) {
        let folder = tempfile::tempdir_in(beside()).unwrap();
        let path = folder.path().join("a.qcow2");
        let below: Vec<u8> = (0..BYTES).map(|at| (at / 512) as u8).collect();
        fs::write(folder.path().join("base"), &below).unwrap();
        create(&path, has_backing.then_some("base"));
        let mut expected = if has_backing { below } else { vec![0; BYTES] };
        let engine = if by_ring { EngineChoice::IoUring } else { EngineChoice::Sync };
        let cache = if bypasses_cache { CacheMode::None } else { CacheMode::Writeback };
        for part in batches.chunks(4) {
            let mut bench = open_with(&path, (engine, cache), queues, flushes);
            for batch in part {
                ask_all(&mut bench, batch, &mut expected);
            }
            drop(bench);
            cut_zeros_off(&path);
        }
        let mut bench = open(&path, engine);
        for slots in (0..SLOTS).collect::<Vec<_>>().chunks(AT_ONCE) {
            let reads: Vec<_> = slots.iter().map(|slot| (*slot, Ask::Read)).collect();
            ask_all(&mut bench, &reads, &mut expected);
        }
    }
}
