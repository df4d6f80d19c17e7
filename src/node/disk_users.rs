//! Which guests of this host write a disk, or are about to. Another host asks before it gives the
//! disk to a guest.

use std::path::{Path, PathBuf};

use anyhow::Result;
use migrate::guest::RefusalKind;
use migrate::protocol::front::{DiskUser, FrontReply, SoughtDisk};
use migrate::text::PeerText;
use uuid::Uuid;

use super::inventory::{self, GuestAnswer, GuestView};
use super::service::Node;
use crate::api::types::GuestState;
use crate::cli::spec::RestartArg;
use crate::definitions::Definition;
use crate::ended::Ended;
use crate::names::GuestName;
use crate::saved_disks::SavedGuest;
use crate::sought_disk::may_be_at;
use crate::state_dir::StateDir;
use crate::whereabouts::Whereabouts;

/// Most guests that are named to the other host; it needs one.
const USERS_MAX: usize = 8;

impl Node {
    /// Finds the guests of this host that write `disk`, need it unchanged, or are started without a
    /// user's command and then write it.
    pub(crate) async fn disk_users(&self, disk: &SoughtDisk) -> FrontReply {
        match self.find_disk_users(disk).await {
            Ok(users) => FrontReply::DiskUsers(users),
            Err(error) => {
                let what = format!("cannot tell which guests are here: {error:#}");
                FrontReply::Refused(migrate::Refusal::new(RefusalKind::Other, what))
            }
        }
    }

    async fn find_disk_users(&self, disk: &SoughtDisk) -> Result<Vec<DiskUser>> {
        let state = self.state();
        let live = inventory::query_guests(state).await?;
        // Blocking: it reads the disks' features, and files of saved guests.
        tokio::task::block_in_place(|| {
            let mut users: Vec<DiskUser> =
                live.iter().filter_map(|guest| live_user(state, guest, disk)).collect();
            let is_off = |name: &GuestName| !live.iter().any(|guest| guest.name == *name);
            let ended = state.ended().list().into_iter().filter_map(|record| record.end.ok());
            users
                .extend(ended.filter(|it| is_off(&it.name)).filter_map(|it| saved_user(&it, disk)));
            let defined = state.definitions().list()?.into_iter().filter(|it| is_off(&it.name));
            users.extend(defined.filter_map(|it| defined_user(state, &it, disk)));
            users.truncate(USERS_MAX);
            Ok(users)
        })
    }
}

fn live_user(state: &StateDir, guest: &GuestAnswer, disk: &SoughtDisk) -> Option<DiskUser> {
    let Ok(GuestView { info, .. }) = &guest.answer else {
        let uuid = state.read_uuid(&guest.name).unwrap_or_default();
        return Some(user(uuid, &guest.name, "does not answer, and may write it"));
    };
    let is_described = info.memory_bytes > 0;
    if info.state == GuestState::Incoming && !is_described {
        return Some(user(info.uuid, &guest.name, "is arriving, and may write it"));
    }
    let written = info.disks.iter().filter(|its| !its.read_only).map(|its| its.path.as_path());
    let how = format!("writes it ({})", info.state.as_str());
    is_among(disk, written).then(|| user(info.uuid, &guest.name, &how))
}

/// Returns the guest if it was saved with the disk, and can be restored.
fn saved_user(ended: &Ended, disk: &SoughtDisk) -> Option<DiskUser> {
    let guest = SavedGuest::of(ended)?;
    let how = format!("was saved to {}, and needs it unchanged", guest.file.display());
    let written = guest.written.iter().map(PathBuf::as_path);
    is_among(disk, written).then(|| user(ended.uuid, &ended.name, &how))
}

/// Returns the guest if the node starts it, at the host's next boot or because it has failed.
fn defined_user(state: &StateDir, definition: &Definition, disk: &SoughtDisk) -> Option<DiskUser> {
    let Definition { name, autostart, spec, .. } = definition;
    let spec = spec.as_ref().ok()?;
    let has_failed = || state.ended().read(name).is_some_and(|ended| ended.how.is_failure());
    let how = if *autostart {
        "is started when that host boots, and then writes it"
    } else if spec.restart == Some(RestartArg::OnFailure) && has_failed() {
        "has failed, may be started again, and then writes it"
    } else {
        return None;
    };
    // The start of a guest that is on another host is refused.
    let is_elsewhere = || matches!(Whereabouts::of(state, name), Ok(Whereabouts::Elsewhere(_)));
    let is_user = is_among(disk, spec.written_disks()) && !is_elsewhere();
    is_user.then(|| user(spec.uuid.unwrap_or_default(), name, how))
}

fn is_among<'a>(disk: &SoughtDisk, mut paths: impl Iterator<Item = &'a Path>) -> bool {
    paths.any(|path| may_be_at(disk, path))
}

fn user(uuid: Uuid, name: &GuestName, how: &str) -> DiskUser {
    DiskUser { uuid, name: PeerText::new(name.as_str()), how: PeerText::new(how) }
}

#[cfg(test)]
mod tests {
    use migrate::record::SourceState;

    use super::super::liveness::tests::source_record;
    use super::super::service::tests::node;
    use super::*;
    use crate::ended::{How, SAVED_TO};
    use crate::sought_disk::describe;

    /// Creates a disk and a node that has the guest `web`, defined with that disk and `more`.
    fn scene(more: &str) -> (tempfile::TempDir, Node, PathBuf) {
        let (folder, node) = node();
        let disk = folder.path().canonicalize().unwrap().join("disk.raw");
        std::fs::write(&disk, "content").unwrap();
        let file = folder.path().join("guest.toml");
        let path = disk.display();
        let text =
            format!("name = \"web\"\nkernel = \"/k\"\n{more}\n[[disk]]\npath = \"{path}\"\n");
        std::fs::write(&file, text).unwrap();
        node.state().definitions().define(&file, |_| Ok(None)).unwrap();
        (folder, node, disk)
    }

    async fn users(node: &Node, disk: &Path) -> Vec<String> {
        let users = node.find_disk_users(&describe(disk).unwrap()).await.unwrap();
        users.iter().map(|user| format!("{} {}", user.name, user.how)).collect()
    }

    fn end(node: &Node, how: How, reason: &str) {
        let (name, uuid): (GuestName, _) = ("web".parse().unwrap(), Uuid::from_u128(5));
        let (began_unix_ms, ended_unix_ms, console_bytes) = (0, 1, 0);
        let reason = reason.to_owned();
        let ended = Ended { name, uuid, began_unix_ms, ended_unix_ms, how, reason, console_bytes };
        node.state().ended().create_place(&ended.name).unwrap();
        node.state().ended().write(&ended).unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_guest_that_starts_with_the_host_uses_its_disk_unless_it_is_elsewhere() {
        let (_folder, node, disk) = scene("");
        assert_eq!(users(&node, &disk).await, [""; 0], "only a user starts it");
        let web = "web".parse().unwrap();
        node.state().definitions().set_autostart(&web, true).unwrap();
        let starts = ["web is started when that host boots, and then writes it"];
        assert_eq!(users(&node, &disk).await, starts);
        let other = disk.with_extension("other");
        std::fs::write(&other, "content").unwrap();
        assert_eq!(users(&node, &other).await, [""; 0]);
        node.records().create(&source_record(SourceState::Done, 1)).unwrap();
        assert_eq!(users(&node, &disk).await, [""; 0]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_guest_that_has_failed_uses_its_disk_if_it_is_started_again() {
        let (_folder, node, disk) = scene("restart = \"on-failure\"");
        end(&node, How::PoweredOff, "powered off");
        assert_eq!(users(&node, &disk).await, [""; 0]);
        end(&node, How::Died, "died");
        let again = ["web has failed, may be started again, and then writes it"];
        assert_eq!(users(&node, &disk).await, again);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_saved_guest_whose_file_is_gone_or_damaged_uses_no_disk() {
        let (_folder, node, disk) = scene("");
        let file = disk.with_extension("lighter");
        end(&node, How::Saved, &format!("{SAVED_TO}{}", file.display()));
        assert_eq!(users(&node, &disk).await, [""; 0]);
        std::fs::write(&file, "damaged").unwrap();
        assert_eq!(users(&node, &disk).await, [""; 0]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_guest_that_does_not_answer_may_use_any_disk() {
        let (_folder, node, disk) = scene("");
        let _live = node.state().guest(&"db".parse().unwrap()).claim().unwrap();
        assert_eq!(users(&node, &disk).await, ["db does not answer, and may write it"]);
    }
}
