//! The files and ports that Landlock leaves to a guest's process.

use std::fs::{File, FileType};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use anyhow::{Context, Result};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, NetPort, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope, make_bitflags,
};
use regular_file::opened::link_to;

use super::files::{Files, Use};
use crate::api::types::LandlockState;
use crate::cli::spec::SwitchArg;

/// The Landlock version to request (Linux 6.12); an older kernel enforces what it can.
const WANTED: ABI = ABI::V6;
/// The port of name servers, which answer over TCP when a response is long.
const DNS_PORT: u16 = 53;

/// Limits this thread, and those that it starts, to `files`, to TCP connections to name servers,
/// and to signals and abstract Unix sockets within its own Landlock domain. Call it while there is
/// no other thread.
///
/// # Errors
/// If the kernel has Landlock and refuses.
pub(crate) fn restrict(switch: SwitchArg, files: &Files) -> Result<LandlockState> {
    if switch == SwitchArg::Off {
        return Ok(LandlockState::Off);
    }
    let status = enforce(files).context(
        "cannot confine the guest's process to its files: `--landlock off` runs it all the same",
    )?;
    Ok(match status {
        RulesetStatus::FullyEnforced => LandlockState::Full,
        RulesetStatus::PartiallyEnforced => LandlockState::Partial,
        RulesetStatus::NotEnforced => {
            tracing::warn!(
                "this host's kernel has no Landlock: the guest's process can open any file that its user can"
            );
            LandlockState::Missing
        }
    })
}

fn enforce(files: &Files) -> Result<RulesetStatus> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(WANTED))?
        .handle_access(AccessNet::from_all(WANTED))?
        .scope(Scope::from_all(WANTED))?
        .create()?
        .add_rule(NetPort::new(DNS_PORT, AccessNet::ConnectTcp))?;
    let mut kept = Vec::new();
    for (path, what) in files.wanted() {
        // A file that does not exist cannot be opened later either.
        let Ok(place) = PathFd::new(path) else { continue };
        // Ask the open file: by now its name may lead to another one.
        let kind = File::from(place.as_fd().try_clone_to_owned()?).metadata()?.file_type();
        let Some(access) = rights(*what, kind) else { continue };
        if *what == Use::Backing && !is_at(&place, path) {
            tracing::warn!(path = %path.display(), "a backing file was replaced meanwhile: not read");
            continue;
        }
        rules = rules.add_rule(PathBeneath::new(&place, access))?;
        // A rule is about an inode, and procfs makes a new one when it has dropped the old one from
        // its cache. It does not drop what is open.
        if path.starts_with("/proc") {
            kept.push(place);
        }
    }
    // For as long as the process lives.
    std::mem::forget(kept);
    Ok(rules.restrict_self()?.ruleset)
}

/// Returns whether an open file is at `path` itself, and not where links led from there.
fn is_at(file: &impl AsFd, path: &Path) -> bool {
    std::fs::read_link(link_to(file)).is_ok_and(|place| place == path)
}

/// The rights of `what` on a file of this kind; `None` if the kind does not suit the use.
fn rights(what: Use, kind: FileType) -> Option<BitFlags<AccessFs>> {
    let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let write = read | AccessFs::WriteFile | AccessFs::Truncate;
    let access = match what {
        Use::Read => read,
        Use::Write => write,
        Use::Keep => write | make_bitflags!(AccessFs::{MakeReg | MakeSock | RemoveFile}),
        Use::RemoveFolders => AccessFs::RemoveDir.into(),
        Use::Backing if kind.is_file() => read,
        Use::Device if kind.is_char_device() => write | AccessFs::IoctlDev,
        Use::Disk if kind.is_file() || kind.is_block_device() => write | AccessFs::IoctlDev,
        Use::Backing | Use::Device | Use::Disk => return None,
    };
    Some(if kind.is_dir() { access } else { access & AccessFs::from_file(WANTED) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_link_does_not_lead_to_what_an_image_is_based_on() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let [file, link] = ["file", "link"].map(|name| folder.join(name));
        std::fs::write(&file, "content").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(is_at(&PathFd::new(&file).unwrap(), &file));
        assert!(!is_at(&PathFd::new(&link).unwrap(), &link));
    }

    #[test]
    fn only_files_and_block_devices_are_opened_for_disks() {
        let folder = tempfile::tempdir().unwrap();
        let [file, pipe, socket] = ["file", "pipe", "socket"].map(|it| folder.path().join(it));
        std::fs::write(&file, "content").unwrap();
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _listener = UnixListener::bind(&socket).unwrap();
        let rights_at = |path: &Path| rights(Use::Disk, path.metadata().unwrap().file_type());
        let disk = rights_at(&file).unwrap();
        assert!(disk.contains(AccessFs::WriteFile) && !disk.contains(AccessFs::ReadDir));
        let backing = |path: &Path| rights(Use::Backing, path.metadata().unwrap().file_type());
        assert!(backing(&file).is_some_and(|access| !access.contains(AccessFs::WriteFile)));
        assert!(backing(&pipe).is_none() && backing(folder.path()).is_none());
        for other in [Path::new("/"), Path::new("/dev/null"), folder.path(), &pipe, &socket] {
            assert_eq!(rights_at(other), None, "{}", other.display());
        }
    }
}
