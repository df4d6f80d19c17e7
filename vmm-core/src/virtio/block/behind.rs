//! What is behind the loop devices below a disk: a guest that uses such a disk uses that, too.
//!
//! By claims ([`super::hold`]), the kernel keeps the writers of a disk, of its partitions and of
//! volumes on it away from each other. It does not do that for a loop device and what is behind it.

use std::path::{Path, PathBuf};

use super::SECTOR_BYTES;
use super::names::{STACK_MAX, behind_loop, disk_at, place_in_sysfs, place_of, read, slaves_of};

/// A range of bytes of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// The first byte.
    pub(super) start: u64,
    /// The byte after the last one; `u64::MAX` for all that follow.
    pub(super) end: u64,
}

impl Span {
    /// All bytes.
    pub(super) const WHOLE: Self = Self { start: 0, end: u64::MAX };

    /// Returns where these bytes are on the disk whose part from `start` on, of `bytes`, has them.
    fn on_disk(self, start: u64, bytes: u64) -> Self {
        let end = start.saturating_add(bytes);
        let at = |byte: u64| start.saturating_add(byte).min(end);
        Self { start: at(self.start), end: at(self.end) }
    }
}

/// A file or a block device behind a loop device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Behind {
    /// Its path.
    pub(super) path: PathBuf,
    /// The bytes that may be used through the loop device.
    pub(super) span: Span,
    /// A volume uses some of these bytes, and other volumes may use others.
    pub(super) has_volumes: bool,
}

/// Returns the paths of what is behind the loop devices below the disk at `path`. A process needs
/// the rights to a disk there, to lock it.
pub fn behind_loops(path: &Path) -> Vec<PathBuf> {
    let found = place_of(path).map(|place| below(&place)).unwrap_or_default();
    found.into_iter().map(|behind| behind.path).collect()
}

/// Returns what is behind the loop devices below the block device of this number; nothing if sysfs
/// cannot be read.
pub(super) fn of(device: u64) -> Vec<Behind> {
    place_in_sysfs(device).canonicalize().map(|place| below(&place)).unwrap_or_default()
}

/// Returns what is behind the loop devices below the block device whose sysfs folder is `place`.
fn below(place: &Path) -> Vec<Behind> {
    let mut found = Vec::new();
    let mut left = vec![(place.to_owned(), Span::WHOLE, false)];
    for _ in 0..STACK_MAX {
        let Some((place, span, has_volumes)) = left.pop() else { break };
        let disk = disk_at(&place);
        let span = if disk == place { span } else { on_whole_disk(&place, span) };
        if let Some(path) = behind_loop(disk) {
            let span = behind(disk, span);
            left.extend(place_of(&path).map(|place| (place, span, has_volumes)));
            found.push(Behind { path, span, has_volumes });
        }
        // Sysfs does not say which of their bytes a volume uses.
        let volumes = slaves_of(disk).unwrap_or_default();
        left.extend(volumes.into_iter().map(|place| (place, Span::WHOLE, true)));
    }
    found
}

/// Returns where these bytes of the partition at `place` are on its disk; all bytes if that is
/// unknown.
fn on_whole_disk(place: &Path, span: Span) -> Span {
    let bytes_at = |name| bytes(&place.join(name), SECTOR_BYTES);
    let on_disk = |start| Some(span.on_disk(start, bytes_at("size")?));
    bytes_at("start").and_then(on_disk).unwrap_or(Span::WHOLE)
}

/// Returns where these bytes of the loop device at `disk` are behind it.
fn behind(disk: &Path, span: Span) -> Span {
    let [start, limit] = ["loop/offset", "loop/sizelimit"]
        .map(|name| bytes(&disk.join(name), 1).unwrap_or_default());
    span.on_disk(start, if limit == 0 { u64::MAX } else { limit })
}

/// Returns the number in a sysfs file, which is in units of `unit` bytes.
fn bytes(file: &Path, unit: u64) -> Option<u64> {
    read(file)?.parse::<u64>().ok().map(|number| number.saturating_mul(unit))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A folder like sysfs, with these files and the folder `slaves` of `dm-0`.
    fn sysfs(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        fs::create_dir_all(folder.path().join("dm-0/slaves")).unwrap();
        folder
    }

    fn found(folder: &tempfile::TempDir, name: &str) -> Vec<(String, Span, bool)> {
        let found = below(&folder.path().join(name).canonicalize().unwrap());
        let fields = |it: Behind| (it.path.display().to_string(), it.span, it.has_volumes);
        found.into_iter().map(fields).collect()
    }

    fn file(start: u64, end: u64, has_volumes: bool) -> Vec<(String, Span, bool)> {
        vec![("/nowhere/a disk.raw".to_owned(), Span { start, end }, has_volumes)]
    }

    const FILE: (&str, &str) = ("loop0/loop/backing_file", "/nowhere/a disk.raw\n");

    #[test]
    fn a_loop_device_uses_the_file_behind_it_from_its_offset_to_its_limit() {
        let all = sysfs(&[FILE, ("loop0/loop/offset", "0\n"), ("loop0/loop/sizelimit", "0\n")]);
        assert_eq!(found(&all, "loop0"), file(0, u64::MAX, false));
        assert_eq!(found(&sysfs(&[FILE]), "loop0"), file(0, u64::MAX, false), "nothing is known");
        let rest = sysfs(&[FILE, ("loop0/loop/offset", "4096\n")]);
        assert_eq!(found(&rest, "loop0"), file(4096, u64::MAX, false));
        let limit = ("loop0/loop/sizelimit", "1024\n");
        let part = sysfs(&[FILE, ("loop0/loop/offset", "4096\n"), limit]);
        assert_eq!(found(&part, "loop0"), file(4096, 5120, false));
    }

    #[test]
    fn a_partition_of_a_loop_device_uses_its_own_bytes_of_the_file() {
        let partition = [FILE, ("loop0/loop0p1/partition", "1\n")];
        let place = [("loop0/loop0p1/start", "8\n"), ("loop0/loop0p1/size", "2\n")];
        let known = sysfs(&[&partition[..], &place, &[("loop0/loop/offset", "512\n")]].concat());
        assert_eq!(found(&known, "loop0/loop0p1"), file(9 * 512, 11 * 512, false));
        assert_eq!(found(&known, "loop0"), file(512, u64::MAX, false));
        let unknown = sysfs(&[&partition[..], &place[..1]].concat());
        assert_eq!(found(&unknown, "loop0/loop0p1"), file(0, u64::MAX, false));
        let cut = sysfs(&[&partition[..], &place, &[("loop0/loop/sizelimit", "4608\n")]].concat());
        assert_eq!(found(&cut, "loop0/loop0p1"), file(8 * 512, 9 * 512, false));
    }

    #[test]
    fn a_volume_may_use_any_bytes_of_what_is_behind_the_devices_below_it() {
        let files = [FILE, ("loop0/loop/offset", "512\n"), ("vdb/size", "1\n")];
        let folder = sysfs(&files);
        for name in ["loop0", "vdb"] {
            let slave = folder.path().join("dm-0/slaves").join(name);
            symlink(folder.path().join(name), slave).unwrap();
        }
        assert_eq!(found(&folder, "dm-0"), file(512, u64::MAX, true));
        assert!(found(&folder, "vdb").is_empty());
        // A loop of devices, which no kernel makes.
        symlink(folder.path().join("dm-0"), folder.path().join("dm-0/slaves/dm-0")).unwrap();
        assert!(found(&folder, "dm-0").len() <= STACK_MAX);
    }

    #[test]
    fn there_is_nothing_behind_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(behind_loops(file.path()).is_empty());
        assert!(behind_loops(Path::new("/dev/null")).is_empty());
    }
}
