//! Finds the guests of other VMMs among the host's processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{DiscoveredGuest, Monitor, hypervisor_line, qemu_line};
use crate::observe::sources::{unsigned, value_of};
use crate::observe::{ObserveError, Sources, started_of, time_of};
use crate::situation::{Backing, Vmm};

/// The most arguments of a process that are read.
const ARGUMENTS_MAX: usize = 4096;
/// The longest name of a guest, in characters.
const NAME_CHARS_MAX: usize = 128;

/// The guests found on a host.
#[derive(Debug, Default)]
pub struct Discovery {
    /// The guests, ordered by pid, with the names that they claim.
    pub guests: Vec<DiscoveredGuest>,
    /// Processes that look like a guest's and could not be read, and why.
    pub unreadable: Vec<(u32, ObserveError)>,
}

/// Searches all processes for QEMU and Cloud Hypervisor.
///
/// A process controls its own name and arguments, so what they say is only a claim.
/// [`super::query()`] and [`super::set_balloon`] verify that this process listens on the socket
/// before they send anything.
///
/// # Errors
/// If the list of processes cannot be read. Processes that end in the meantime are skipped.
pub fn discover(sources: &Sources) -> Result<Discovery, ObserveError> {
    let mounts = Mounts::of(&sources.read("proc/mounts").unwrap_or_default());
    let mut discovery = Discovery::default();
    for pid in sources.processes()? {
        let Some(vmm) = program(sources, pid).and_then(|name| vmm(&name)) else { continue };
        match found(sources, pid, vmm, &mounts) {
            Ok(Some(guest)) => discovery.guests.push(guest),
            Ok(None) | Err(ObserveError::Gone { .. }) => {}
            Err(error) => discovery.unreadable.push((pid, error)),
        }
    }
    Ok(discovery)
}

/// Returns the name of the program that `pid` runs. If the program cannot be read (another user's
/// process), returns the name that the process gives itself.
fn program(sources: &Sources, pid: u32) -> Option<String> {
    let name = match fs::read_link(sources.path(format!("proc/{pid}/exe"))) {
        Ok(path) => path.file_name()?.to_string_lossy().into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            sources.read_lossy_of(pid, "comm").ok()?.trim_end().to_owned()
        }
        // A kernel thread, or a process that has ended.
        Err(_) => return None,
    };
    // The program was upgraded while the guest runs.
    Some(name.strip_suffix(" (deleted)").unwrap_or(&name).to_owned())
}

fn vmm(program: &str) -> Option<Vmm> {
    if program.starts_with("qemu-system-") || program == "qemu-kvm" || program == "kvm" {
        Some(Vmm::Qemu)
    } else if program.starts_with("cloud-hyperviso") {
        // The name that a process gives itself has 15 characters at most.
        Some(Vmm::CloudHypervisor)
    } else {
        None
    }
}

/// Describes a guest; `None` for a process without arguments, e.g. one that is ending.
fn found(
    sources: &Sources,
    pid: u32,
    vmm: Vmm,
    mounts: &Mounts,
) -> Result<Option<DiscoveredGuest>, ObserveError> {
    let text = sources.read_lossy_of(pid, "cmdline")?;
    let arguments: Vec<String> =
        text.split('\0').skip(1).take(ARGUMENTS_MAX).map(str::to_owned).collect();
    if arguments.is_empty() {
        return Ok(None);
    }
    let (line, kind) = match vmm {
        Vmm::Qemu => (qemu_line::parse(&arguments, mounts), "qemu"),
        Vmm::CloudHypervisor | Vmm::Lighter => {
            (hypervisor_line::parse(&arguments), "cloud-hypervisor")
        }
    };
    let name = line.name.and_then(|name| sanitize_name(&name));
    let mut found = DiscoveredGuest {
        pid,
        started: started_of(sources, pid)?,
        name: name.unwrap_or_else(|| format!("{kind}-{pid}")),
        vmm,
        uid: uid(sources, pid)?,
        memory_bytes: line.memory_bytes,
        backing: line.backing,
        is_mergeable: line.is_mergeable,
        has_passthrough: line.has_passthrough || has_device(sources, pid),
        is_incoming: line.is_incoming,
        monitor: line.monitor,
    };
    if let Monitor::Qmp(path) | Monitor::CloudHypervisor(path) = &mut found.monitor {
        *path = absolute(sources, pid, path);
    }
    Ok(Some(found))
}

impl DiscoveredGuest {
    /// Returns the time since the guest began to boot, at the host's uptime `now`, if it has not
    /// rebooted since: its process boots it as it starts. `None` for a guest that was started to
    /// receive a migration.
    #[must_use]
    pub fn since_boot(&self, now: Duration) -> Option<Duration> {
        (!self.is_incoming).then(|| now.saturating_sub(time_of(self.started)))
    }
}

/// Returns the user of a process. The owner of its folder in `/proc` may be root regardless.
fn uid(sources: &Sources, pid: u32) -> Result<Option<u32>, ObserveError> {
    let status = sources.read_lossy_of(pid, "status")?;
    let uids = value_of(&status, "Uid").unwrap_or_default();
    let mut uids = uids.split_ascii_whitespace().map(unsigned);
    let first = uids.next().flatten();
    Ok(first.filter(|_| uids.all(|uid| uid == first)).and_then(|uid| u32::try_from(uid).ok()))
}

/// Returns whether a process has a device open that pins its memory, including one plugged in
/// later. Without permission to read the files (another user's process) it returns `false`.
pub(super) fn has_device(sources: &Sources, pid: u32) -> bool {
    let folder = format!("proc/{pid}/fd");
    let files = sources.entries(&folder).unwrap_or_default();
    let links =
        files.iter().filter_map(|file| fs::read_link(sources.path(&folder).join(file)).ok());
    let pins = ["/dev/vfio/", "/dev/iommu", "/dev/vhost-vdpa", "anon_inode:[vfio-device]"];
    links
        .filter_map(|link| link.to_str().map(str::to_owned))
        .any(|link| pins.iter().any(|device| link.starts_with(device)))
}

/// Makes a name safe to show: no control characters, none that change the direction or width of the
/// text after it, not too long, not empty.
fn sanitize_name(name: &str) -> Option<String> {
    let is_shown = |c: &char| {
        !c.is_control()
            && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let name: String = name.trim().chars().filter(is_shown).take(NAME_CHARS_MAX).collect();
    (!name.is_empty()).then_some(name)
}

/// Resolves a path relative to the working directory of the process.
fn absolute(sources: &Sources, pid: u32, path: &Path) -> PathBuf {
    let folder = fs::read_link(sources.path(format!("proc/{pid}/cwd")));
    folder.map_or_else(|_| path.to_owned(), |folder| folder.join(path))
}

/// Mount points of hugetlbfs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Mounts {
    huge: Vec<PathBuf>,
}

impl Mounts {
    /// Parses the text of `/proc/mounts`.
    pub(super) fn of(text: &str) -> Self {
        let huge = text.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (path, kind) = (fields.next()?, fields.next()?);
            (kind == "hugetlbfs").then(|| PathBuf::from(path))
        });
        Self { huge: huge.collect() }
    }

    /// Returns what backs memory that is mapped from the file (or a file in the folder) at `path`.
    pub(super) fn backing_of_file(&self, path: &Path, is_shared: bool) -> Backing {
        if self.huge.iter().any(|mount| path.starts_with(mount)) {
            Backing::HugePool
        } else if is_shared {
            Backing::Shared
        } else {
            Backing::Template
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn process(root: &Path, pid: u32, program: &str, line: &str) {
        let folder = root.join(format!("proc/{pid}"));
        fs::create_dir_all(&folder).unwrap();
        symlink(program, folder.join("exe")).unwrap();
        symlink("/run/guests", folder.join("cwd")).unwrap();
        fs::write(folder.join("cmdline"), line.replace(' ', "\0") + "\0").unwrap();
        fs::write(folder.join("status"), "Name:\tx\nUid:\t107\t107\t107\t107\n").unwrap();
        let fields = [&["S"], &["0"; 18][..], &["4711"]].concat().join(" ");
        fs::write(folder.join("stat"), format!("{pid} (a) b) {fields} 0\n")).unwrap();
        fs::create_dir(folder.join("fd")).unwrap();
    }

    #[test]
    fn the_owner_and_passthrough_come_from_the_kernel() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for pid in [7, 8] {
            process(root, pid, "/usr/bin/qemu-system-x86_64", "qemu -m 1G");
        }
        symlink("/dev/vfio/12", root.join("proc/7/fd/31")).unwrap();
        symlink("/home/x/vfio", root.join("proc/8/fd/31")).unwrap();
        fs::write(root.join("proc/8/status"), "Uid:\t1000\t0\t0\t0\n").unwrap();
        let found = discover(&Sources::at(root)).unwrap().guests;
        let seen: Vec<_> = found.iter().map(|guest| (guest.uid, guest.has_passthrough)).collect();
        assert_eq!(seen, [(Some(107), true), (None, false)]);
        assert_eq!(found[0].started, 4711);
        let since_boot = |guest: &DiscoveredGuest| guest.since_boot(Duration::from_secs(50));
        assert_eq!(since_boot(&found[0]), Some(Duration::from_millis(2890)));
        let arriving = DiscoveredGuest { is_incoming: true, ..found[0].clone() };
        assert_eq!(since_boot(&arriving), None, "it was booted elsewhere");
        assert!(found[0].is_there(&Sources::at(root)));
        assert!(
            !DiscoveredGuest { started: 4710, ..found[0].clone() }.is_there(&Sources::at(root))
        );
    }

    #[test]
    fn finds_guests_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        process(root, 5, "/usr/bin/qemu-img", "qemu-img convert -m 2G");
        process(
            root,
            7,
            "/usr/bin/qemu-system-x86_64 (deleted)",
            "qemu -name web -m 1G -qmp unix:q.sock,server=on",
        );
        process(root, 8, "/usr/libexec/qemu-kvm", "qemu-kvm -name guest=web -m 2G");
        process(root, 9, "/opt/cloud-hypervisor-static", "ch --api-socket /run/a.sock");
        process(root, 10, "/usr/bin/qemu-system-aarch64", "");
        process(root, 11, "/usr/bin/qemu-system-x86_64", "qemu -name \u{1b}\u{202e}[2Jx");
        fs::create_dir_all(root.join("proc/12")).unwrap();

        let found = discover(&Sources::at(root)).unwrap();
        let names: Vec<_> =
            found.guests.iter().map(|guest| (guest.pid, guest.name.as_str())).collect();
        assert_eq!(names, [(7, "web"), (8, "web"), (9, "a"), (10, "qemu-10"), (11, "[2Jx")]);
        assert_eq!(found.guests[0].monitor, Monitor::Qmp("/run/guests/q.sock".into()));
        assert_eq!(found.guests[2].vmm, Vmm::CloudHypervisor);
        assert!(found.unreadable.is_empty());
    }

    #[test]
    fn unreadable_files_are_reported_with_their_process() {
        let folder = tempfile::tempdir().unwrap();
        process(folder.path(), 7, "/usr/bin/qemu-system-x86_64", "qemu");
        fs::write(folder.path().join("proc/7/cmdline"), vec![b'x'; (1 << 20) + 1]).unwrap();
        let found = discover(&Sources::at(folder.path())).unwrap();
        assert!(matches!(found.unreadable[..], [(7, ObserveError::TooLong { .. })]));
    }

    #[test]
    fn huge_pages_are_recognized_by_their_mount() {
        let mounts = Mounts::of("none /mnt/huge hugetlbfs rw 0 0\nproc /proc proc rw\nshort\n");
        assert_eq!(mounts.backing_of_file(Path::new("/mnt/huge/a"), true), Backing::HugePool);
        assert_eq!(mounts.backing_of_file(Path::new("/mnt/hugely"), true), Backing::Shared);
        assert_eq!(mounts.backing_of_file(Path::new("/mnt/x"), false), Backing::Template);
    }
}
