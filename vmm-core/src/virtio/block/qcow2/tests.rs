//! Tests of qcow2 images.

mod space;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use proptest::prelude::*;
use tempfile::TempDir;

use super::super::config::{BlockConfig, Occupied};
use super::super::content::DiskContent;
use super::super::disk::Disk;
use super::super::testing::beside;
use super::*;
use crate::sys::file::make_direct;
use crate::virtio::DeviceError;
use crate::virtio::buffers::tests::memory;

const CLUSTER: u64 = 64 << 10;

/// A folder for images.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir_in(beside()).unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn file(&self, name: &str) -> Arc<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        Arc::new(options.open(self.path(name)).unwrap())
    }

    /// Makes an image that is based on the file `backing`.
    fn create(&self, name: &str, bytes: u64, backing: Option<(&str, &str)>) {
        self.create_with(CLUSTER, name, bytes, backing);
    }

    /// As [`Folder::create`], with clusters of so many bytes.
    fn create_with(&self, cluster: u64, name: &str, bytes: u64, backing: Option<(&str, &str)>) {
        fs::write(self.path(name), []).unwrap();
        let storage = ImageFile::unmarked(&self.path(name), &self.file(name));
        let builder = Qcow2::<ImageFile>::create_builder(storage);
        let mut builder = builder.size(bytes).cluster_size(cluster as usize);
        if let Some((backing, format)) = backing {
            builder = builder.backing(backing.to_owned(), format.to_owned());
        }
        builder.create().unwrap();
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Image> {
        Image::open(&self.path(name), &self.file(name), access, &[])
    }

    fn refusal(&self, name: &str) -> String {
        self.open(name, Access::ReadOnly).unwrap_err().to_string()
    }
}

fn content(image: &Image) -> Vec<u8> {
    let mut bytes = vec![1; image.bytes() as usize];
    image.read(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn the_name_says_that_a_disk_is_an_image() {
    for (name, is_image) in [
        ("/d/a.qcow2", true),
        ("/d/a.b.QCOW2", true),
        ("/d/a.raw", false),
        ("/d/qcow2", false),
        ("/d/.qcow2", false),
        ("/d/a.qcow2.raw", false),
        ("/d.qcow2/a", false),
    ] {
        assert_eq!(is_named(Path::new(name)), is_image, "{name}");
    }
}

#[test]
fn an_image_reads_what_is_below_it_and_keeps_it() {
    let folder = Folder::new();
    let below: Vec<u8> = (0..3 * CLUSTER + 512).map(|at| (at / 512) as u8 | 1).collect();
    fs::write(folder.path("base.raw"), &below).unwrap();
    folder.create("middle.qcow2", below.len() as u64, Some(("base.raw", "raw")));
    folder.create("top.qcow2", below.len() as u64, Some(("middle.qcow2", "qcow2")));
    let expected_files = ["middle.qcow2", "base.raw"].map(|name| folder.path(name));
    assert_eq!(backing_files(&folder.path("top.qcow2")), expected_files);
    assert!(backing_files(&folder.path("base.raw")).is_empty());

    let image = folder.open("top.qcow2", Access::ReadWrite).unwrap();
    let mut expected = below.clone();
    assert!(content(&image) == expected);
    for (offset, bytes) in [(512, 512), (CLUSTER - 1024, 2048), (3 * CLUSTER, 512)] {
        image.write(&vec![0xaa; bytes], offset).unwrap();
        expected[offset as usize..][..bytes].fill(0xaa);
        assert!(content(&image) == expected, "{offset}");
    }
    image.clear(0, 2 * CLUSTER, Clearing::PunchHole).unwrap();
    expected[..2 * CLUSTER as usize].fill(0);
    image.open_again(Access::ReadOnly).unwrap();
    assert!(content(&image) == expected);
    assert_eq!(image.next_data(0, image.bytes()).unwrap(), Some((2 * CLUSTER, image.bytes())));
    for offset in [0, 3 * CLUSTER] {
        image.write(&[1; 512], offset).unwrap_err();
    }
    assert_eq!(fs::read(folder.path("base.raw")).unwrap(), below);
}

#[test]
fn bytes_are_in_place_where_one_file_has_all_of_them() {
    let folder = Folder::new();
    fs::write(folder.path("base"), vec![1; 4 * CLUSTER as usize]).unwrap();
    folder.create("a.qcow2", 4 * CLUSTER, Some(("base", "raw")));
    let image = folder.open("a.qcow2", Access::ReadWrite).unwrap();
    image.write(&[2; 512], CLUSTER).unwrap();
    let place = |at, bytes, direction| image.place(at, bytes, direction).unwrap();

    let (file, at) = place(2 * CLUSTER, 512, Direction::In).unwrap();
    let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL).unwrap());
    assert!(!flags.contains(OFlag::O_NONBLOCK), "io_uring would not wait for it");
    assert_eq!((file.metadata().unwrap().len(), at), (4 * CLUSTER, 2 * CLUSTER));
    let (file, at) = place(CLUSTER + 512, 1024, Direction::Out).unwrap();
    file.write_all_at(&[3; 1024], at).unwrap();
    let mut expected = vec![1; 4 * CLUSTER as usize];
    expected[CLUSTER as usize..][..512].fill(2);
    expected[CLUSTER as usize + 512..][..1024].fill(3);
    assert!(content(&image) == expected);

    assert!(place(2 * CLUSTER, 512, Direction::Out).is_none(), "of the backing file");
    assert!(place(CLUSTER - 512, 1024, Direction::In).is_none(), "in two files");
    image.clear(0, CLUSTER, Clearing::PunchHole).unwrap();
    assert!(place(0, 512, Direction::In).is_none(), "zeros that no file has");
    image.open_again(Access::ReadOnly).unwrap();
    assert!(place(CLUSTER, 512, Direction::Out).is_none(), "released");
    image.place(4 * CLUSTER, 512, Direction::In).unwrap_err();
}

#[test]
fn holes_in_the_files_of_an_image_are_no_data() {
    let folder = Folder::new();
    let base = folder.file("base.raw");
    base.set_len(8 * CLUSTER).unwrap();
    base.write_all_at(&[1; CLUSTER as usize], 2 * CLUSTER).unwrap();
    folder.create("top.qcow2", 8 * CLUSTER, Some(("base.raw", "raw")));
    let image = folder.open("top.qcow2", Access::ReadWrite).unwrap();
    image.write(&[2; 512], 5 * CLUSTER).unwrap();

    let (mut at, mut found) = (0, Vec::new());
    while let Some((from, to)) = image.next_data(at, image.bytes()).unwrap() {
        found.push((from / CLUSTER, to / CLUSTER));
        at = to;
    }
    assert_eq!(found, [(2, 3), (5, 6)]);
    assert_eq!(image.data_bytes().unwrap(), 2 * CLUSTER);
    drop(image);
    let config = BlockConfig::new(&folder.path("top.qcow2"), Access::ReadWrite, "").unwrap();
    let disk = Disk::open(&config).unwrap();
    assert_eq!(DiskContent::new(&config, disk.store()).allocated_bytes(), 2 * CLUSTER);
}

#[test]
fn opening_an_image_does_not_change_it() {
    let folder = Folder::new();
    folder.create("a.qcow2", 1 << 20, None);
    let image = folder.open("a.qcow2", Access::ReadWrite).unwrap();
    image.write(&[1; 512], 0).unwrap();
    image.flush().unwrap();
    drop(image);
    let (before, path) = (fs::read(folder.path("a.qcow2")).unwrap(), folder.path("a.qcow2"));
    let modified = || fs::metadata(&path).unwrap().modified().unwrap();
    let then = modified();
    let image = folder.open("a.qcow2", Access::ReadOnly).unwrap();
    image.open_again(Access::ReadWrite).unwrap();
    image.flush().unwrap();
    image.open_again(Access::ReadOnly).unwrap();
    drop(image);
    assert!(fs::read(&path).unwrap() == before && modified() == then);
}

#[test]
fn what_another_host_has_written_is_seen_after_the_take_over() {
    let folder = Folder::new();
    folder.create("a.qcow2", 8 << 20, None);
    let here = folder.open("a.qcow2", Access::ReadOnly).unwrap();
    assert!(content(&here).iter().all(|byte| *byte == 0));
    let there = folder.open("a.qcow2", Access::ReadWrite).unwrap();
    there.write(&[7; 4096], 5 << 20).unwrap();
    there.open_again(Access::ReadOnly).unwrap();
    here.open_again(Access::ReadWrite).unwrap();
    let mut read = [0; 4096];
    here.read(&mut read, 5 << 20).unwrap();
    assert_eq!(read, [7; 4096]);
    // A cluster is not used twice.
    here.write(&[8; 4096], 6 << 20).unwrap();
    here.read(&mut read, 5 << 20).unwrap();
    assert_eq!(read, [7; 4096]);
}

#[test]
fn files_elsewhere_and_chains_without_an_end_are_not_opened() {
    let folder = Folder::new();
    fs::create_dir(folder.path("below")).unwrap();
    fs::write(folder.path("below/secret"), [1; 512]).unwrap();
    symlink("below/secret", folder.path("link")).unwrap();
    let up = format!("{}etc/passwd", "../".repeat(32));
    for backing in ["below/secret", "link", "/etc/passwd", &up] {
        folder.create("a.qcow2", 512, Some((backing, "raw")));
        let refusal = folder.refusal("a.qcow2");
        assert!(refusal.contains("in the folder of the image"), "{backing}: {refusal}");
        assert!(backing_files(&folder.path("a.qcow2")).is_empty());
    }
    folder.create("loop.qcow2", 512, Some(("loop.qcow2", "qcow2")));
    assert!(folder.refusal("loop.qcow2").contains("more than 32 files"));
    folder.create("a.qcow2", 512, Some(("gone", "raw")));
    assert!(folder.refusal("a.qcow2").contains("No such file"));
    nix::unistd::mkfifo(&folder.path("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    folder.create("a.qcow2", 512, Some(("pipe", "raw")));
    assert!(folder.refusal("a.qcow2").contains("pipe"));
}

#[test]
fn a_link_that_replaces_a_backing_file_meanwhile_leads_nowhere() {
    let folder = Folder::new();
    let [base, new, inside] = ["base", "new", "inside"].map(|name| folder.path(name));
    fs::create_dir(folder.path("below")).unwrap();
    fs::write(folder.path("below/secret"), [2; 512]).unwrap();
    fs::write(&inside, [1; 512]).unwrap();
    fs::hard_link(&inside, &base).unwrap();
    folder.create("a.qcow2", 512, Some(("base", "raw")));
    let is_over = AtomicBool::new(false);
    let swap = || {
        while !is_over.load(Ordering::Relaxed) {
            symlink("below/secret", &new).unwrap();
            fs::rename(&new, &base).unwrap();
            fs::hard_link(&inside, &new).unwrap();
            fs::rename(&new, &base).unwrap();
        }
    };
    let read = || {
        let image = folder.open("a.qcow2", Access::ReadOnly);
        image.map(|image| content(&image)).ok()
    };
    let found = std::thread::scope(|scope| {
        scope.spawn(swap);
        let found: Vec<_> = (0..5_000).filter_map(|_| read()).collect();
        is_over.store(true, Ordering::Relaxed);
        found
    });
    assert!(found.iter().all(|bytes| *bytes == [1; 512]));
}

#[test]
fn an_image_that_was_replaced_has_no_backing_files() {
    let folder = Folder::new();
    fs::write(folder.path("base"), [1; 512]).unwrap();
    folder.create("a.qcow2", 512, Some(("base", "raw")));
    folder.create("b.qcow2", 512, None);
    let opened = folder.file("a.qcow2");
    Image::open(&folder.path("a.qcow2"), &opened, Access::ReadOnly, &[]).unwrap();
    fs::rename(folder.path("b.qcow2"), folder.path("a.qcow2")).unwrap();
    let refused = Image::open(&folder.path("a.qcow2"), &opened, Access::ReadOnly, &[]);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("moved or replaced"), "{refused}");
}

#[test]
fn images_whose_tables_need_much_memory_are_refused() {
    const TIB: u64 = 1 << 40;
    let folder = Folder::new();
    let create = |name: &str, backing: Option<&str>, cluster: u64| {
        let backing = backing.map(|backing| (backing, "qcow2"));
        folder.create_with(cluster, name, 16 * TIB, backing);
    };
    // 32 L2 tables in each file, and 32 refcount blocks, of 2 MiB.
    create("1.qcow2", None, 2 << 20);
    create("2.qcow2", Some("1.qcow2"), 2 << 20);
    folder.open("2.qcow2", Access::ReadWrite).unwrap();
    create("3.qcow2", Some("2.qcow2"), 2 << 20);
    create("4.qcow2", Some("3.qcow2"), 2 << 20);
    let refusal = folder.refusal("4.qcow2");
    assert!(refusal.contains("more than 512 MiB of memory"), "{refusal}");
    create("small.qcow2", Some("2.qcow2"), 64 << 10);
    folder.open("small.qcow2", Access::ReadWrite).unwrap();
}

#[test]
fn what_an_image_gets_when_it_grows_are_zeros() {
    let folder = Folder::new();
    let below = vec![7; 8 * CLUSTER as usize];
    fs::write(folder.path("base"), &below).unwrap();
    for backing in [None, Some(("base", "raw"))] {
        let known = CLUSTER + 1024;
        folder.create("a.qcow2", known, backing);
        let image = folder.open("a.qcow2", Access::ReadWrite).unwrap();
        image.write(&[1; 1024], CLUSTER).unwrap();
        let Some((file, at)) = image.place(CLUSTER, 512, Direction::Out).unwrap() else {
            panic!("no place")
        };
        file.write_all_at(&[9; 4096], at + 1024).unwrap();
        let mut expected = content(&image);
        // More than an L1 table of one cluster has, and L2 tables of a cluster.
        for bytes in [12 * CLUSTER + 512, 12 * CLUSTER + 512, 5 << 40] {
            image.grow(expected.len() as u64, bytes).unwrap();
            expected.resize(12 * CLUSTER as usize + 512, 0);
            let mut found = vec![1; expected.len()];
            image.read(&mut found, 0).unwrap();
            assert!(found == expected && image.bytes() == bytes);
        }
        image.write(&[3; 512], (5 << 40) - 512).unwrap();
        drop(image);
        let image = folder.open("a.qcow2", Access::ReadOnly).unwrap();
        let mut found = vec![1; expected.len()];
        image.read(&mut found, 0).unwrap();
        assert!(found == expected && image.bytes() == 5 << 40);
        image.read(&mut found[..512], (5 << 40) - 512).unwrap();
        assert_eq!(found[..512], [3; 512]);
        image.grow(5 << 40, 6 << 40).unwrap_err();
    }
}

#[test]
fn an_image_does_not_grow_so_far_that_it_could_not_be_opened() {
    let folder = Folder::new();
    folder.create("below.qcow2", 512, None);
    folder.create("a.qcow2", 512, Some(("below.qcow2", "qcow2")));
    let image = folder.open("a.qcow2", Access::ReadWrite).unwrap();
    let refusal = image.grow(512, 1 << 56).unwrap_err().to_string();
    assert!(refusal.contains("more than 512 MiB of memory") && image.bytes() == 512, "{refusal}");
    let mut much = 1 << 56;
    while image.grow(512, much).is_err() {
        much /= 2;
    }
    image.open_again(Access::ReadWrite).unwrap();
    assert!(image.bytes() == much && much >= 1 << 44);
}

/// Copies all of a disk to `path`, as a migration does.
fn copy(disk: &BlockConfig, path: &Path) -> BlockConfig {
    let arriving = disk.at(path).arriving(Occupied::Refuse).made().unwrap();
    let [from, to] = [disk, &arriving].map(|config| Disk::open(config).unwrap());
    let [from, mut to] = [(disk, from), (&arriving, to)]
        .map(|(config, disk)| (DiskContent::new(config, disk.store()), disk));
    let mut words = vec![0; from.0.chunks()];
    from.0.find_data(&mut words).unwrap();
    for (chunk, word) in words.iter().enumerate() {
        for page in (0..64).filter(|page| word >> page & 1 == 1) {
            let mut bytes = [0; 4096];
            from.0.copy_out(chunk, page, &mut bytes).unwrap();
            to.0.copy_in(chunk, page, &bytes).unwrap();
        }
    }
    to.0.zero(0, 0b10).unwrap();
    to.0.sync().unwrap();
    to.1.take_over().unwrap();
    DiskContent::adopt(&[&to.0]).unwrap();
    to.1.release();
    BlockConfig::new(path, Access::ReadWrite, "").unwrap()
}

#[test]
fn a_copied_disk_arrives_in_the_format_of_its_name() {
    let folder = Folder::new();
    let mut expected: Vec<u8> = (0..5 * CLUSTER + 512).map(|at| (at / 512) as u8).collect();
    expected[CLUSTER as usize..2 * CLUSTER as usize].fill(0);
    fs::write(folder.path("base"), &expected).unwrap();
    folder.create("a.qcow2", expected.len() as u64, Some(("base", "raw")));
    let image = BlockConfig::new(&folder.path("a.qcow2"), Access::ReadWrite, "").unwrap();
    expected[4096..8192].fill(0);
    let other = copy(&image, &folder.path("b.qcow2"));
    assert!(backing_files(other.path()).is_empty());
    assert!(content(&folder.open("b.qcow2", Access::ReadOnly).unwrap()) == expected);
    let raw = copy(&other, &folder.path("c.raw"));
    assert!(fs::read(raw.path()).unwrap() == expected);
    copy(&raw, &folder.path("d.qcow2"));
    assert!(content(&folder.open("d.qcow2", Access::ReadOnly).unwrap()) == expected);
}

#[test]
fn what_an_image_is_based_on_cannot_be_written_meanwhile() {
    let folder = Folder::new();
    fs::write(folder.path("base"), [1; 512]).unwrap();
    for name in ["a.qcow2", "b.qcow2"] {
        folder.create(name, 512, Some(("base", "raw")));
    }
    let open = |name: &str| {
        let config = BlockConfig::new(&folder.path(name), Access::ReadWrite, "").unwrap();
        Disk::open(&config).unwrap()
    };
    let [mut a, mut b, mut base] = ["a.qcow2", "b.qcow2", "base"].map(open);
    a.take_over().unwrap();
    b.take_over().unwrap();
    let refused = base.take_over().unwrap_err();
    assert!(matches!(refused, DeviceError::DiskInUse { .. }), "{refused}");
    [&mut a, &mut b].into_iter().for_each(Disk::release);
    base.take_over().unwrap();
    let refused = a.take_over().unwrap_err();
    assert!(matches!(refused, DeviceError::BehindDiskInUse { .. }), "{refused}");
}

#[test]
fn what_is_no_image_is_refused() {
    let folder = Folder::new();
    for bytes in [&b""[..], b"QFI\xfb", &[0; 65_536]] {
        fs::write(folder.path("a.qcow2"), bytes).unwrap();
        folder.open("a.qcow2", Access::ReadOnly).unwrap_err();
    }
}

#[test]
fn unsupported_images_are_refused() {
    let folder = Folder::new();
    fs::write(folder.path("base"), [1; 512]).unwrap();
    folder.create("plain.qcow2", 512, None);
    let good = fs::read(folder.path("plain.qcow2")).unwrap();
    // The method of encryption; of the incompatible features: corrupt, data in another file,
    // another compression, subclusters.
    for (at, bit) in [(35, 0), (79, 1), (79, 2), (79, 3), (79, 4)] {
        let mut bytes = good.clone();
        bytes[at] |= 1 << bit;
        fs::write(folder.path("odd.qcow2"), bytes).unwrap();
        for access in [Access::ReadOnly, Access::ReadWrite] {
            folder.open("odd.qcow2", access).unwrap_err();
        }
        folder.create("above.qcow2", 512, Some(("odd.qcow2", "qcow2")));
        let refusal = folder.refusal("above.qcow2");
        assert!(refusal.contains("odd.qcow2"), "byte {at}, bit {bit}: {refusal}");
        folder.create("raw.qcow2", 512, Some(("odd.qcow2", "raw")));
        folder.open("raw.qcow2", Access::ReadOnly).unwrap();
    }
    for format in ["vmdk", "file"] {
        folder.create("a.qcow2", 512, Some(("base", format)));
        assert!(folder.refusal("a.qcow2").contains("not supported"), "{format}");
    }
}

#[test]
fn an_image_of_version_2_is_only_read() {
    let folder = Folder::new();
    folder.create("a.qcow2", CLUSTER, None);
    let mut bytes = fs::read(folder.path("a.qcow2")).unwrap();
    bytes[7] = 2;
    fs::write(folder.path("a.qcow2"), bytes).unwrap();
    folder.open("a.qcow2", Access::ReadOnly).unwrap();
    let refusal = folder.open("a.qcow2", Access::ReadWrite).unwrap_err().to_string();
    assert!(refusal.contains("compat=1.1"), "{refusal}");
}

#[test]
fn an_image_whose_writer_has_died_is_not_written() {
    let folder = Folder::new();
    folder.create("a.qcow2", 4 * CLUSTER, None);
    let opened = || folder.open("a.qcow2", Access::ReadWrite).map_err(|error| error.to_string());
    let image = opened().unwrap();
    image.write(&[1; 512], 0).unwrap();
    image.flush().unwrap();
    // As if it were killed.
    std::mem::forget(image);
    assert!(opened().unwrap_err().contains("qemu-img check -r all"));
    // Another host reads it while it is being written.
    let read = content(&folder.open("a.qcow2", Access::ReadOnly).unwrap());
    assert_eq!(read[..512], [1; 512]);

    let mut bytes = fs::read(folder.path("a.qcow2")).unwrap();
    bytes[79] = 0;
    fs::write(folder.path("a.qcow2"), bytes).unwrap();
    let image = opened().unwrap();
    image.write(&[2; 512], CLUSTER).unwrap();
    image.close().unwrap();
    opened().unwrap();
    image.write(&[3; 512], 2 * CLUSTER).unwrap();
    image.flush().unwrap();
    assert!(opened().is_err(), "it is being written again");
    drop(image);
    opened().unwrap();
}

#[test]
fn the_format_of_a_backing_file_is_not_guessed() {
    let folder = Folder::new();
    fs::write(folder.path("secret"), [1; 512]).unwrap();
    folder.create("guests.raw", 512, Some(("secret", "raw")));
    folder.create("a.qcow2", 512, Some(("guests.raw", "raw")));
    let mut bytes = fs::read(folder.path("a.qcow2")).unwrap();
    let extension = 0xe279_2aca_u32.to_be_bytes();
    let at = bytes.windows(4).position(|window| window == extension).unwrap();
    bytes[at..at + 4].copy_from_slice(&0x1234_5678_u32.to_be_bytes());
    fs::write(folder.path("a.qcow2"), bytes).unwrap();
    assert!(folder.refusal("a.qcow2").contains("does not say which format"));
    folder.create("above.qcow2", 512, Some(("a.qcow2", "qcow2")));
    assert!(folder.refusal("above.qcow2").contains("does not say which format"));
}

/// What a guest may ask of its disk.
#[derive(Debug, Clone)]
enum Step {
    Write { at: u64, bytes: u64, with: u8 },
    Clear { at: u64, bytes: u64, keeps_space: bool },
    Grow { bytes: u64 },
    Flush,
    OpenAgain,
}

const DISK_BYTES: u64 = 5 * CLUSTER + 1024;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let sectors = DISK_BYTES / 512;
    let range = (0..sectors, 1..300_u64)
        .prop_map(move |(at, sectors_wanted)| (at * 512, sectors_wanted.min(sectors - at) * 512));
    let step = prop_oneof![
        4 => (range.clone(), 1..=u8::MAX)
            .prop_map(|((at, bytes), with)| Step::Write { at, bytes, with }),
        2 => (range, any::<bool>())
            .prop_map(|((at, bytes), keeps_space)| Step::Clear { at, bytes, keeps_space }),
        1 => (1..200_u64).prop_map(|sectors| Step::Grow { bytes: sectors * 512 }),
        1 => Just(Step::Flush),
        1 => Just(Step::OpenAgain),
    ];
    proptest::collection::vec(step, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_image_has_what_was_written_last(
        steps in steps(),
        cluster in prop::sample::select(vec![512, 4096, CLUSTER]),
        (has_backing, bypasses_cache) in any::<(bool, bool)>(),
        base_bytes in prop::sample::select(vec![1000, CLUSTER + 100, DISK_BYTES, 2 * DISK_BYTES]),
    ) {
        let folder = Folder::new();
        let base: Vec<u8> = (0..base_bytes).map(|at| (at / 512) as u8 | 1).collect();
        fs::write(folder.path("base"), &base).unwrap();
        let mut below = base;
        below.resize(DISK_BYTES as usize, 0);
        let backing = has_backing.then_some(("base", "raw"));
        folder.create_with(cluster, "a.qcow2", DISK_BYTES, backing);
        let image = folder.open("a.qcow2", Access::ReadWrite).unwrap();
        if bypasses_cache {
            make_direct(&image.file).unwrap();
        }
        let mut expected = if has_backing { below } else { vec![0; DISK_BYTES as usize] };
        let memory = memory();
        for step in steps {
            match step {
                Step::Write { at, bytes, with } => {
                    // In two buffers, as a guest's driver has them.
                    let mut buffers = Buffers::default();
                    let first = bytes / 1024 * 512;
                    for (gpa, len) in [(0x1000, first), (0x80_000, bytes - first)] {
                        if len > 0 {
                            assert!(buffers.push(&memory, gpa, len as u32));
                        }
                    }
                    buffers.write(&memory, &vec![with; bytes as usize]).unwrap();
                    image.transfer(at, &buffers, &memory, Direction::Out).unwrap();
                    expected[at as usize..][..bytes as usize].fill(with);
                    image.transfer(at, &buffers, &memory, Direction::In).unwrap();
                    let mut read = vec![0; bytes as usize];
                    buffers.read(&memory, &mut read).unwrap();
                    prop_assert!(read.iter().all(|byte| *byte == with));
                }
                Step::Clear { at, bytes, keeps_space } => {
                    let how = if keeps_space { Clearing::Zero } else { Clearing::PunchHole };
                    image.clear(at, bytes, how).unwrap();
                    expected[at as usize..][..bytes as usize].fill(0);
                }
                Step::Grow { bytes } => {
                    let known = expected.len();
                    expected.resize(known + bytes as usize, 0);
                    image.grow(known as u64, expected.len() as u64).unwrap();
                }
                Step::Flush => image.flush().unwrap(),
                Step::OpenAgain => image.open_again(Access::ReadWrite).unwrap(),
            }
            prop_assert!(content(&image) == expected);
        }
        let (mut at, end) = (0, expected.len() as u64);
        let mut data = vec![0; expected.len()];
        while let Some((from, to)) = image.next_data(at, end).unwrap() {
            prop_assert!(at <= from && from < to && to <= end);
            image.read(&mut data[from as usize..to as usize], from).unwrap();
            at = to;
        }
        prop_assert!(data == expected, "only what is data has to be copied");
    }
}
