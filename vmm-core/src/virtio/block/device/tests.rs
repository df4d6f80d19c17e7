//! The disk with a driver and a file, without KVM.

mod image;

use std::io::Write as _;
use std::num::NonZeroU64;
use std::os::unix::fs::MetadataExt;

use tempfile::NamedTempFile;

use super::super::cache::CacheMode;
use super::super::config::EngineChoice;
use super::super::testing::{DATA, HEADER, STATUS, ask, beside, disk_file};
use super::*;
use crate::virtio::testing::{Bench, SIZE, WRITABLE};

const SECTORS: u64 = 64;

/// How a disk is accessed.
type Mode = (EngineChoice, CacheMode);

fn file() -> NamedTempFile {
    let mut file = disk_file();
    for sector in 0..SECTORS as u8 {
        file.write_all(&[sector; 512]).unwrap();
    }
    file
}

fn bench(file: &NamedTempFile, access: Access, mode: Mode) -> Bench {
    bench_and_content(file, access, mode).0
}

fn bench_and_content(
    file: &NamedTempFile,
    access: Access,
    mode: Mode,
) -> (Bench, Arc<DiskContent>) {
    let config = BlockConfig::new(file.path(), access, "serial-1").unwrap();
    let config = config.with_queues(2).with_engine(mode.0).with_cache(mode.1);
    let device = BlockDevice::open(&config).unwrap();
    let content = device.content();
    (Bench::new(Box::new(device)), content)
}

fn content(file: &NamedTempFile, sector: usize) -> Vec<u8> {
    std::fs::read(file.path()).unwrap()[sector * 512..][..512].to_vec()
}

fn sectors_are_read_into_several_buffers(mode: Mode) {
    let file = file();
    let mut bench = bench(&file, Access::ReadWrite, mode);
    let data = [(DATA, 100, WRITABLE), (DATA + 1000, 924, WRITABLE)];
    assert_eq!(ask(&mut bench, 0, 5, &data), 0);
    assert_eq!(bench.driver(0).used(), [(0, 1025)]);
    assert_eq!(bench.bytes(DATA, 100), [5; 100]);
    assert_eq!(bench.bytes(DATA + 1000, 412), [5; 412]);
    assert_eq!(bench.bytes(DATA + 1412, 512), [6; 512]);
}

fn sectors_are_written_and_flushed(mode: Mode) {
    let file = file();
    let mut bench = bench(&file, Access::ReadWrite, mode);
    bench.ram.write(DATA, &[0xaa; 1024]).unwrap();
    assert_eq!(ask(&mut bench, 1, 62, &[(DATA, 1024, 0)]), 0);
    assert_eq!(ask(&mut bench, 4, 0, &[]), 0);
    assert_eq!((content(&file, 62), content(&file, 63)), (vec![0xaa; 512], vec![0xaa; 512]));
    assert_eq!(content(&file, 61), [61; 512]);
}

fn a_flush_reports_what_an_earlier_flush_of_lighter_was_told(mode: Mode) {
    let file = file();
    let (mut bench, disk) = bench_and_content(&file, Access::ReadWrite, mode);
    disk.note_synced(Err(io::Error::from_raw_os_error(libc::EIO))).unwrap_err();
    assert_eq!(ask(&mut bench, 1, 62, &[(DATA, 512, 0)]), 0);
    assert_eq!([ask(&mut bench, 4, 0, &[]), ask(&mut bench, 4, 0, &[])], [1, 1]);
    assert_eq!(ask(&mut bench, 0, 0, &[(DATA, 512, WRITABLE)]), 0);
}

fn requests_beyond_the_disk_fail_and_the_disk_goes_on(mode: Mode) {
    let file = file();
    let mut bench = bench(&file, Access::ReadWrite, mode);
    assert_eq!(ask(&mut bench, 1, 63, &[(DATA, 1024, 0)]), 1);
    assert_eq!(ask(&mut bench, 99, 0, &[]), 2);
    assert_eq!(ask(&mut bench, 0, 63, &[(DATA, 512, WRITABLE)]), 0);
    assert!(!bench.signals.needs_reset());
    assert_eq!(std::fs::metadata(file.path()).unwrap().len(), SECTORS * 512);
}

fn a_file_that_has_shrunk_is_an_error_of_the_request(mode: Mode) {
    let file = file();
    let mut bench = bench(&file, Access::ReadWrite, mode);
    file.as_file().set_len(512).unwrap();
    assert_eq!(ask(&mut bench, 0, 8, &[(DATA, 512, WRITABLE)]), 1);
    assert_eq!(ask(&mut bench, 0, 0, &[(DATA, 512, WRITABLE)]), 0);
}

fn a_read_only_disk_is_not_written(mode: Mode) {
    let file = file();
    let mut bench = bench(&file, Access::ReadOnly, mode);
    assert_ne!(bench.backend.device().features() & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(ask(&mut bench, 1, 0, &[(DATA, 512, 0)]), 1);
    assert_eq!(ask(&mut bench, 0, 7, &[(DATA, 512, WRITABLE)]), 0);
    assert_eq!(content(&file, 0), [0; 512]);
}

fn a_disk_reports_its_serial_number_and_size(mode: Mode) {
    let file = file();
    let mut bench = bench(&file, Access::ReadWrite, mode);
    assert_eq!(ask(&mut bench, 8, 0, &[(DATA, 20, WRITABLE)]), 0);
    assert_eq!(bench.bytes(DATA, 20), b"serial-1\0\0\0\0\0\0\0\0\0\0\0\0");
    let mut capacity = [0; 8];
    bench.signals.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), SECTORS);
}

fn ranges_are_discarded_and_filled_with_zeros(mode: Mode) {
    let file = file();
    let mut bench = bench(&file, Access::ReadWrite, mode);
    let range = |sector: u64, sectors: u32, flags: u32| {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes
    };
    file.as_file().sync_all().unwrap();
    let before = std::fs::metadata(file.path()).unwrap().blocks();
    bench.ram.write(DATA, &range(0, 32, 0)).unwrap();
    assert_eq!(ask(&mut bench, 11, 0, &[(DATA, 16, 0)]), 0);
    bench.ram.write(DATA, &range(33, 1, 0)).unwrap();
    assert_eq!(ask(&mut bench, 13, 0, &[(DATA, 16, 0)]), 0);
    bench.ram.write(DATA, &range(35, 1, 1)).unwrap();
    assert_eq!(ask(&mut bench, 13, 0, &[(DATA, 16, 0)]), 0);
    assert_eq!((content(&file, 33), content(&file, 35)), (vec![0; 512], vec![0; 512]));
    assert_eq!((content(&file, 34), content(&file, 32)), (vec![34; 512], vec![32; 512]));
    let after = std::fs::metadata(file.path()).unwrap().blocks();
    assert!(after < before, "{after} blocks of {before}: the file system has none back");
}

fn a_request_without_a_status_breaks_the_queue_and_nothing_else(mode: Mode) {
    let file = file();
    let mut bench = bench(&file, Access::ReadWrite, mode);
    bench.driver(0).offer(&[(HEADER, 16, 0)]);
    bench.kick(0);
    assert!(bench.signals.needs_reset());
}

fn what_is_read_from_the_disk_is_dirty_memory(mode: Mode) {
    use vm_memory::GuestMemoryRegion;
    use vm_memory::bitmap::Bitmap;
    let file = file();
    let mut bench = bench(&file, Access::ReadWrite, mode);
    bench.ram.mappings().for_each(|region| (**region).bitmap().reset());
    assert_eq!(ask(&mut bench, 0, 0, &[(0x2_0000, 8192, WRITABLE)]), 0);
    let region = bench.ram.mappings().next().unwrap();
    let dirty = |page: usize| region.bitmap().dirty_at(page * 4096);
    assert_eq!([0x1f, 0x20, 0x21, 0x22].map(dirty), [false, true, true, false]);
}

fn a_disk_grows_while_its_driver_uses_it(mode: Mode) {
    let file = file();
    let (mut bench, disk) = bench_and_content(&file, Access::ReadWrite, mode);
    let grow = |bench: &mut Bench, bytes| {
        let grown =
            bench.backend.on_device(|disk: &mut BlockDevice, rings| disk.grow(bytes, rings));
        grown.unwrap().map_err(|error| error.to_string())
    };
    let sectors = |bench: &Bench| {
        let mut capacity = [0; 8];
        bench.signals.read_config(0, &mut capacity);
        u64::from_le_bytes(capacity)
    };
    assert!(grow(&mut bench, Some(65 * 512)).unwrap_err().contains("does not hold it"));
    bench.backend.device().take_over().unwrap();
    for (bytes, why) in [(Some(63 * 512), "shrink"), (Some(40_000), "sectors"), (None, "new size")]
    {
        assert!(grow(&mut bench, bytes).unwrap_err().contains(why));
    }
    assert_eq!(grow(&mut bench, Some(SECTORS * 512)), Ok(SECTORS * 512));
    assert_eq!((bench.signals.config_generation(), bench.signals.interrupt_status()), (0, 0));
    assert_eq!(ask(&mut bench, 1, 70, &[(DATA, 512, 0)]), 1);
    bench.signals.acknowledge(u32::MAX);

    assert_eq!(grow(&mut bench, Some(80 * 512)), Ok(80 * 512));
    assert_eq!((sectors(&bench), disk.bytes()), (80, 80 * 512));
    assert_eq!((bench.signals.config_generation(), bench.signals.interrupt_status()), (1, 2));
    assert_eq!(ask(&mut bench, 1, 70, &[(DATA, 512, 0)]), 0);
    assert_eq!(ask(&mut bench, 1, 80, &[(DATA, 512, 0)]), 1);
    bench.backend.reset();
    assert_eq!((sectors(&bench), file.as_file().metadata().unwrap().len()), (80, 80 * 512));
}

fn a_disk_that_is_only_read_does_not_grow(mode: Mode) {
    let file = file();
    let mut bench = bench(&file, Access::ReadOnly, mode);
    bench.backend.device().take_over().unwrap();
    let grown =
        bench.backend.on_device(|disk: &mut BlockDevice, rings| disk.grow(Some(1 << 20), rings));
    assert!(grown.unwrap().unwrap_err().to_string().contains("only reads it"));
}

/// Offers `count` reads of a sector each, without a notification.
fn offer_reads(bench: &mut Bench, count: u64) {
    for index in 0..count {
        let (header, data) = (0x2_0000 + index * 32, 0x3_0000 + index * 512);
        let mut bytes = [0; 16];
        bytes[8..].copy_from_slice(&index.to_le_bytes());
        bench.ram.write(header, &bytes).unwrap();
        bench.driver(0).offer(&[
            (header, 16, 0),
            (data, 512, WRITABLE),
            (STATUS + index, 1, WRITABLE),
        ]);
    }
}

fn a_pause_waits_for_what_is_under_way(mode: Mode) {
    let file = file();
    let mut bench = bench(&file, Access::ReadWrite, mode);
    offer_reads(&mut bench, 5);
    bench.backend.notify(0);
    bench.backend.work(std::time::Instant::now());
    bench.backend.pause();
    let mut heads: Vec<_> = bench.driver(0).used().iter().map(|(head, _)| *head).collect();
    heads.sort_unstable();
    assert_eq!(heads, [0, 3, 6, 9, 12]);
    for index in 0..5 {
        assert_eq!(bench.bytes(0x3_0000 + index * 512, 512), [index as u8; 512]);
    }
}

fn what_is_written_beyond_the_limit_delays_what_is_behind_it(mode: Mode) {
    let file = file();
    let (mut bench, disk) = bench_and_content(&file, Access::ReadWrite, mode);
    disk.limit_writes(NonZeroU64::new(1), Duration::from_secs(60));
    assert_eq!(ask(&mut bench, 0, 8, &[(DATA, 512, WRITABLE)]), 0);
    assert_eq!(ask(&mut bench, 1, 8, &[(DATA, 512, 0)]), 0);
    offer_reads(&mut bench, 1);
    bench.kick(0);
    assert_eq!(bench.driver(0).used().len(), 2, "it waits");
    disk.stop_log();
    bench.backend.work(Instant::now() + Duration::from_secs(1));
    bench.backend.pause();
    assert_eq!(bench.driver(0).used().len(), 3);
}

fn a_reset_ends_pending_requests_without_an_answer(mode: Mode) {
    let file = file();
    let (mut bench, disk) = bench_and_content(&file, Access::ReadWrite, mode);
    disk.start_log();
    bench.ram.write(DATA, &[0xbb; 512]).unwrap();
    bench.ram.write(HEADER, &[1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    bench.driver(0).offer(&[(HEADER, 16, 0), (DATA, 512, 0), (STATUS, 1, WRITABLE)]);
    bench.backend.notify(0);
    bench.backend.work(std::time::Instant::now());
    let answered = bench.driver(0).used().len();
    bench.backend.reset();
    bench.backend.ready(0);
    assert_eq!(bench.driver(0).used().len(), answered);
    assert_eq!((content(&file, 9), marked(&disk)), (vec![0xbb; 512], vec![0b10]));
}

fn marked(content: &DiskContent) -> Vec<u64> {
    let mut words = vec![0; content.chunks()];
    content.collect_written(&mut words);
    words
}

fn whatever_is_written_is_logged_and_nothing_else(mode: Mode) {
    let file = file();
    let (mut bench, content) = bench_and_content(&file, Access::ReadWrite, mode);
    content.start_log();
    assert_eq!(ask(&mut bench, 0, 0, &[(DATA, 512, WRITABLE)]), 0);
    assert_eq!(ask(&mut bench, 4, 0, &[]), 0);
    assert_eq!(ask(&mut bench, 1, 64, &[(DATA, 512, 0)]), 1);
    assert_eq!(marked(&content), [0]);
    assert_eq!(ask(&mut bench, 1, 8, &[(DATA, 1024, 0)]), 0);
    assert_eq!(marked(&content), [0b10]);
    let mut range = 16u64.to_le_bytes().to_vec();
    range.extend([8, 0, 0, 0, 0, 0, 0, 0]);
    for kind in [11, 13] {
        bench.ram.write(DATA, &range).unwrap();
        content.rearm(0, &[u64::MAX]);
        assert_eq!(ask(&mut bench, kind, 0, &[(DATA, 16, 0)]), 0);
        assert_eq!(marked(&content), [0b100], "{kind}");
    }
}

fn a_driver_that_offers_one_request_again_and_again_breaks_its_queue(mode: Mode) {
    let file = file();
    let mut bench = bench(&file, Access::ReadWrite, mode);
    // More requests than the ring has entries.
    bench.driver(0).set_available_index(SIZE + 1);
    bench.kick(0);
    assert!(bench.signals.needs_reset());
}

/// Makes a module with all tests for each mode.
macro_rules! in_each_mode {
    ($tests:tt $($module:ident: $mode:tt;)*) => {
        $(mod $module { in_each_mode! { @ $tests $mode } })*
    };
    (@ [$($name:ident,)*] ($engine:ident, $cache:ident)) => {
        $(#[test] fn $name() {
            super::$name((super::EngineChoice::$engine, super::CacheMode::$cache))
        })*
    };
}

in_each_mode! {
    [
    sectors_are_read_into_several_buffers,
    sectors_are_written_and_flushed,
    a_flush_reports_what_an_earlier_flush_of_lighter_was_told,
    requests_beyond_the_disk_fail_and_the_disk_goes_on,
    a_file_that_has_shrunk_is_an_error_of_the_request,
    a_read_only_disk_is_not_written,
    a_disk_reports_its_serial_number_and_size,
    ranges_are_discarded_and_filled_with_zeros,
    a_request_without_a_status_breaks_the_queue_and_nothing_else,
    what_is_read_from_the_disk_is_dirty_memory,
    a_pause_waits_for_what_is_under_way,
    what_is_written_beyond_the_limit_delays_what_is_behind_it,
    a_reset_ends_pending_requests_without_an_answer,
    whatever_is_written_is_logged_and_nothing_else,
    a_driver_that_offers_one_request_again_and_again_breaks_its_queue,
    a_disk_grows_while_its_driver_uses_it,
    a_disk_that_is_only_read_does_not_grow,
    ]
    by_system_calls: (Sync, Writeback);
    by_io_uring: (IoUring, Writeback);
    direct_by_system_calls: (Sync, None);
    direct_by_io_uring: (IoUring, None);
}
