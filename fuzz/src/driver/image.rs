//! A disk in a qcow2 image whose tables are damaged, and those of the image that it is based on.

use std::path::Path;
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use tempfile::TempDir;
use vmm_core::DeviceConfig;
use vmm_core::virtio::DiskContent;
use vmm_core::virtio::block::{Access, BlockConfig, CacheMode, Occupied};
use vmm_core::virtio::fuzzing::Bench;

use super::request::DiskRequest;
use super::{MEMORY_BYTES, Reach, Scene, Script, bench, run};

/// Size of the disk, in bytes.
const DISK_BYTES: u64 = 1 << 20;
/// Size of a page, in bytes.
const PAGE_BYTES: usize = 4096;
/// Size of a cluster, in bytes.
const CLUSTER_BYTES: usize = 64 << 10;
/// Clusters at the beginning of the image that hold tables.
const TABLES: usize = 6;
/// Offset of the length of the header, at the end of which its extensions are.
const HEADER_LENGTH: usize = 100;
/// The extension with the format of the backing file.
const BACKING_FORMAT: u32 = 0xe279_2aca;

/// An image with changes, what it is based on, and its guest's driver.
#[derive(Debug, Arbitrary)]
pub struct Damaged {
    backing: Backing,
    /// Whether it bypasses the host's cache.
    is_direct: bool,
    changes: Vec<Change>,
    /// Those of the image that it is based on.
    changes_below: Vec<Change>,
    script: Script<DiskRequest>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Arbitrary)]
enum Backing {
    Nothing,
    Raw,
    Image,
    /// The image is based on itself.
    Itself,
}

/// A replaced word in a table.
#[derive(Debug, Arbitrary)]
struct Change {
    table: u8,
    word: u8,
    value: Value,
}

#[derive(Debug, Arbitrary)]
enum Value {
    /// A cluster of the image, with the flags of a reference.
    Cluster(u8, bool),
    /// The word with this bit inverted.
    Flipped(u8),
    Any(u64),
}

impl Damaged {
    /// Whether it is based on a raw file.
    pub fn is_on_raw_file(&self) -> bool {
        matches!(self.backing, Backing::Raw)
    }

    /// Whether it is based on another image.
    pub fn is_on_image(&self) -> bool {
        matches!(self.backing, Backing::Image)
    }
}

/// Opens an image that may be damaged, and runs the script on its disk.
///
/// # Panics
/// If there is no room for temporary files.
pub fn image(damaged: &Damaged) -> Reach {
    static GOOD: OnceLock<(TempDir, Vec<u8>)> = OnceLock::new();
    let (folder, good) = GOOD.get_or_init(|| {
        // Not all file systems for temporary files have `O_DIRECT`.
        let program = std::env::current_exe().ok();
        let beside = program.as_deref().and_then(Path::parent).unwrap_or(Path::new("."));
        let folder = tempfile::tempdir_in(beside);
        let folder = folder.unwrap_or_else(|error| panic!("no folder: {error}"));
        let good = create(&folder.path().join("good.qcow2"));
        (folder, good)
    });
    let write = |name: &str, changes: &[Change], mut bytes: Vec<u8>| {
        changes.iter().for_each(|change| change.make(&mut bytes));
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap_or_else(|error| panic!("no image: {error}"));
        path
    };
    let disk = match damaged.backing {
        Backing::Nothing => good.clone(),
        Backing::Raw => based_on(good, "good.raw", "raw"),
        Backing::Image => {
            write("base.qcow2", &damaged.changes_below, good.clone());
            based_on(good, "base.qcow2", "qcow2")
        }
        Backing::Itself => based_on(good, "disk.qcow2", "qcow2"),
    };
    let path = write("disk.qcow2", &damaged.changes, disk);
    let Ok(config) = BlockConfig::new(&path, Access::ReadWrite, "") else {
        return Reach::default();
    };
    let cache = if damaged.is_direct { CacheMode::None } else { CacheMode::Writeback };
    match Bench::new(&DeviceConfig::Block(config.with_cache(cache)), MEMORY_BYTES) {
        Ok(bench) => run(Scene { bench, side: () }, &damaged.script),
        Err(_) => Reach::default(),
    }
}

/// Returns the `image` with the file `name` beside it as its backing file
/// (docs/interop/qcow2.rst of QEMU).
fn based_on(image: &[u8], name: &str, format: &str) -> Vec<u8> {
    let mut image = image.to_vec();
    let word = |text: &str| (text.len() as u32).to_be_bytes();
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let mut tail = [&BACKING_FORMAT.to_be_bytes()[..], &word(format), format.as_bytes()].concat();
    // Extensions have whole words of 8 bytes, and one without content is the last.
    tail.resize(tail.len().next_multiple_of(8) + 8, 0);
    let extensions = HEADER_LENGTH + 4;
    put(HEADER_LENGTH, &(extensions as u32).to_be_bytes());
    put(extensions, &tail);
    put(extensions + tail.len(), name.as_bytes());
    put(8, &((extensions + tail.len()) as u64).to_be_bytes());
    put(16, &word(name));
    image
}

/// Makes an image whose disk has content in two of its clusters; returns its bytes.
fn create(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("raw");
    let made = std::fs::write(&raw, vec![0; DISK_BYTES as usize]);
    made.unwrap_or_else(|error| panic!("no disk: {error}"));
    let config = BlockConfig::new(&raw, Access::ReadWrite, "");
    let config = config.unwrap_or_else(|error| panic!("no disk: {error}"));
    let arriving = config.at(path).arriving(Occupied::Refuse);
    let content = bench(&DeviceConfig::Block(arriving)).disk_content();
    let Some(content) = content else { panic!("the device is no disk") };
    let written = [0, 2].iter().try_for_each(|chunk| content.copy_in(*chunk, 0, &[7; PAGE_BYTES]));
    let written =
        written.and_then(|()| content.sync()).and_then(|()| DiskContent::adopt(&[&content]));
    written.unwrap_or_else(|error| panic!("no image: {error}"));
    std::fs::read(path).unwrap_or_else(|error| panic!("no image: {error}"))
}

impl Change {
    fn make(&self, image: &mut [u8]) {
        let at = usize::from(self.table) % TABLES * CLUSTER_BYTES + usize::from(self.word) * 8;
        let Some(place) = image.get_mut(at..).and_then(<[u8]>::first_chunk_mut) else { return };
        let before = u64::from_be_bytes(*place);
        *place = match self.value {
            Value::Cluster(cluster, is_own) => u64::from(cluster) << 16 | u64::from(is_own) << 63,
            Value::Flipped(bit) => before ^ 1 << (bit % 64),
            Value::Any(value) => value,
        }
        .to_be_bytes();
    }
}
