//! The disk with a driver and a file, without KVM.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt;

use tempfile::NamedTempFile;

use super::*;
use crate::virtio::testing::{Bench, WRITABLE};

const SECTORS: u64 = 64;

fn file() -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    for sector in 0..SECTORS as u8 {
        file.write_all(&[sector; 512]).unwrap();
    }
    file
}

fn bench(file: &NamedTempFile, access: Access) -> Bench {
    let config = BlockConfig::new(file.path(), access, "serial-1").unwrap();
    Bench::new(Box::new(BlockDevice::open(&config).unwrap()))
}

const HEADER: u64 = 0x8000;
const DATA: u64 = 0x9000;
const STATUS: u64 = 0xf000;

/// Makes a request with `data` buffers and returns its status.
fn ask(bench: &mut Bench, kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> u8 {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    bench.ram.write(HEADER, &header).unwrap();
    bench.ram.write(STATUS, &[0xee]).unwrap();
    let mut buffers = vec![(HEADER, 16, 0)];
    buffers.extend(data);
    buffers.push((STATUS, 1, WRITABLE));
    bench.driver(0).offer(&buffers);
    bench.kick(0);
    bench.bytes(STATUS, 1)[0]
}

fn content(file: &NamedTempFile, sector: usize) -> Vec<u8> {
    std::fs::read(file.path()).unwrap()[sector * 512..][..512].to_vec()
}

#[test]
fn sectors_are_read_into_several_buffers() {
    let file = file();
    let mut bench = bench(&file, Access::ReadWrite);
    let data = [(DATA, 100, WRITABLE), (DATA + 1000, 924, WRITABLE)];
    assert_eq!(ask(&mut bench, 0, 5, &data), 0);
    assert_eq!(bench.driver(0).used(), [(0, 1025)]);
    assert_eq!(bench.bytes(DATA, 100), [5; 100]);
    assert_eq!(bench.bytes(DATA + 1000, 412), [5; 412]);
    assert_eq!(bench.bytes(DATA + 1412, 512), [6; 512]);
}

#[test]
fn sectors_are_written_and_flushed() {
    let file = file();
    let mut bench = bench(&file, Access::ReadWrite);
    bench.ram.write(DATA, &[0xaa; 1024]).unwrap();
    assert_eq!(ask(&mut bench, 1, 62, &[(DATA, 1024, 0)]), 0);
    assert_eq!(ask(&mut bench, 4, 0, &[]), 0);
    assert_eq!((content(&file, 62), content(&file, 63)), (vec![0xaa; 512], vec![0xaa; 512]));
    assert_eq!(content(&file, 61), [61; 512]);
}

#[test]
fn requests_beyond_the_disk_fail_and_the_disk_goes_on() {
    let file = file();
    let mut bench = bench(&file, Access::ReadWrite);
    assert_eq!(ask(&mut bench, 1, 63, &[(DATA, 1024, 0)]), 1);
    assert_eq!(ask(&mut bench, 99, 0, &[]), 2);
    assert_eq!(ask(&mut bench, 0, 63, &[(DATA, 512, WRITABLE)]), 0);
    assert!(!bench.signals.needs_reset());
    assert_eq!(std::fs::metadata(file.path()).unwrap().len(), SECTORS * 512);
}

#[test]
fn a_file_that_has_shrunk_is_an_error_of_the_request() {
    let file = file();
    let mut bench = bench(&file, Access::ReadWrite);
    file.as_file().set_len(512).unwrap();
    assert_eq!(ask(&mut bench, 0, 8, &[(DATA, 512, WRITABLE)]), 1);
    assert_eq!(ask(&mut bench, 0, 0, &[(DATA, 512, WRITABLE)]), 0);
}

#[test]
fn a_read_only_disk_is_not_written() {
    let file = file();
    let mut bench = bench(&file, Access::ReadOnly);
    assert_ne!(bench.backend.device().features() & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(ask(&mut bench, 1, 0, &[(DATA, 512, 0)]), 1);
    assert_eq!(ask(&mut bench, 0, 7, &[(DATA, 512, WRITABLE)]), 0);
    assert_eq!(content(&file, 0), [0; 512]);
}

#[test]
fn a_disk_tells_its_serial_number_and_its_size() {
    let file = file();
    let mut bench = bench(&file, Access::ReadWrite);
    assert_eq!(ask(&mut bench, 8, 0, &[(DATA, 20, WRITABLE)]), 0);
    assert_eq!(bench.bytes(DATA, 20), b"serial-1\0\0\0\0\0\0\0\0\0\0\0\0");
    let mut capacity = [0; 8];
    bench.signals.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), SECTORS);
}

#[test]
fn ranges_are_discarded_and_filled_with_zeros() {
    let file = file();
    let mut bench = bench(&file, Access::ReadWrite);
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
    assert!(std::fs::metadata(file.path()).unwrap().blocks() <= before);
}

#[test]
fn a_request_without_a_status_breaks_the_queue_and_nothing_else() {
    let file = file();
    let mut bench = bench(&file, Access::ReadWrite);
    bench.driver(0).offer(&[(HEADER, 16, 0)]);
    bench.kick(0);
    assert!(bench.signals.needs_reset());
}

#[test]
fn what_is_read_from_the_disk_is_dirty_memory() {
    use vm_memory::GuestMemoryRegion;
    use vm_memory::bitmap::Bitmap;
    let file = file();
    let mut bench = bench(&file, Access::ReadWrite);
    bench.ram.mappings().for_each(|region| (**region).bitmap().reset());
    assert_eq!(ask(&mut bench, 0, 0, &[(0x2_0000, 8192, WRITABLE)]), 0);
    let region = bench.ram.mappings().next().unwrap();
    let dirty = |page: usize| region.bitmap().dirty_at(page * 4096);
    assert_eq!([0x1f, 0x20, 0x21, 0x22].map(dirty), [false, true, true, false]);
}
