//! Tests of the state folder with guests, nodes and commands that use it concurrently.

use std::os::unix::fs::PermissionsExt;

use uuid::Uuid;

use super::claim::REMOVAL_PAUSE;
use super::*;

fn name(text: &str) -> GuestName {
    text.parse().unwrap()
}

#[test]
fn a_name_is_taken_until_its_claim_is_dropped() {
    let (_folder, state) = StateDir::temporary();
    let guest = state.guest(&name("web"));
    let claim = guest.claim().unwrap();
    assert!(guest.claim().unwrap_err().to_string().contains("already running"));
    assert_eq!(state.live_guests().unwrap().len(), 1);

    drop(claim);
    assert!(!guest.path().exists());
    assert!(state.live_guests().unwrap().is_empty());
    assert!(guest.claim().is_ok());
}

#[test]
fn no_two_live_guests_have_one_uuid() {
    let (_folder, state) = StateDir::temporary();
    let (web, db, uuid) = (name("web"), name("db"), Uuid::from_u128(5));
    let claim = state.guest(&web).claim().unwrap();
    state.prepare_guest(&web, uuid).unwrap();
    state.prepare_guest(&web, uuid).unwrap();
    let error = state.prepare_guest(&db, uuid).unwrap_err().to_string();
    assert!(error.contains("web, which is live here, has the same UUID"), "{error}");
    state.prepare_guest(&db, Uuid::from_u128(6)).unwrap();
    drop(claim);
    state.prepare_guest(&db, uuid).unwrap();
}

#[test]
fn a_folder_in_which_others_could_plant_links_is_refused() {
    let (root, user) = (Uid::from_raw(0), Uid::from_raw(1000));
    assert!(expect_owner(0, root).is_ok() && expect_owner(0, user).is_ok());
    assert!(expect_owner(1000, user).is_ok() && expect_owner(1001, user).is_err());
    let error = expect_owner(1000, root).unwrap_err().to_string();
    assert!(error.contains("belongs to another user (UID 1000)"), "{error}");

    let (folder, state) = StateDir::temporary();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let error = state.create().unwrap_err().to_string();
    assert!(error.contains("all users may write to the state folder"), "{error}");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o775)).unwrap();
    state.create().unwrap();
}

#[test]
fn a_start_waits_for_one_that_removes_what_a_dead_process_has_left() {
    let (_folder, state) = StateDir::temporary();
    let guest = &state.guest(&name("web"));
    create(guest.path(), PASSAGE).unwrap();
    let removing = FileLock::try_acquire_to_remove(&guest.lock_file()).unwrap().unwrap();
    std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel();
        scope.spawn(move || sender.send(guest.claim().map(drop)).unwrap());
        let early = receiver.recv_timeout(10 * REMOVAL_PAUSE);
        assert!(early.is_err(), "{early:?}");
        assert!(!guest.is_live());
        drop(GuestClaim { dir: guest.clone(), _lock: removing });
        receiver.recv().unwrap().unwrap();
    });
}

#[test]
fn a_name_can_be_claimed_while_others_look_for_guests() {
    let (_folder, state) = StateDir::temporary();
    let (state, name) = (&state, &name("web"));
    let identity =
        |pid| GuestIdentity { name: name.clone(), uuid: Uuid::nil(), pid, started_unix_ms: 0 };
    let guest = state.guest(name);
    std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            while receiver.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                state.live_guests().unwrap();
            }
        });
        for pid in 0..1000 {
            let claim = guest.claim().unwrap();
            assert!(guest.lock_file().exists(), "it was taken for a dead one's");
            claim.dir().write_identity(&identity(pid)).unwrap();
            drop(claim);
            // What a process leaves that is killed, unless another one removes it meanwhile.
            let _ = create(guest.path(), PASSAGE);
            let _ = fs::write(guest.lock_file(), "");
            let _ = guest.write_identity(&identity(pid));
        }
        drop(sender);
    });
}

#[test]
fn stale_identities_are_removed_and_unfinished_ones_are_kept() {
    let (_folder, state) = StateDir::temporary();
    let (gone, here) = (name("gone"), name("here"));
    let _claim = state.guest(&here).claim().unwrap();
    state.prepare_guest(&gone, Uuid::nil()).unwrap();
    let being_written = state.identities().join("next.json.new");
    fs::write(&being_written, "").unwrap();
    state.prepare_guest(&here, Uuid::max()).unwrap();
    assert!(state.read_uuid(&gone).is_err());
    assert!(being_written.exists());
    state.prepare_guest(&name("other"), Uuid::nil()).unwrap();
    assert_eq!(state.read_uuid(&here).unwrap(), Uuid::max());
}

#[test]
fn a_guests_folders_exist_while_it_lives_or_they_are_not_empty() {
    let (_folder, state) = StateDir::temporary();
    let (web, next, uuid) = (name("web"), name("next"), Uuid::from_u128(5));
    let claim = state.guest(&web).claim().unwrap();
    state.prepare_guest(&web, uuid).unwrap();
    let (records, ended) = (state.place_of_records(&web, uuid), state.ended().place(&web));
    let prepare_another = || state.prepare_guest(&next, Uuid::nil()).unwrap();
    prepare_another();
    assert!(records.is_dir() && ended.is_dir());

    let (how, reason) = (How::Moved, "has moved".to_owned());
    let word = Ended {
        name: web.clone(),
        uuid,
        began_unix_ms: 0,
        ended_unix_ms: 0,
        how,
        reason,
        console_bytes: 0,
    };
    state.ended().write(&word).unwrap();
    drop(claim);
    prepare_another();
    assert!(!records.exists() && !records.parent().unwrap().exists());
    assert_eq!(state.ended().read(&web), Some(word));
    state.ended().forget(&web);
    prepare_another();
    assert!(!ended.exists());

    // Another guest of this name has other records.
    let _claim = state.guest(&web).claim().unwrap();
    state.prepare_guest(&web, uuid).unwrap();
    state.prepare_guest(&web, Uuid::max()).unwrap();
    assert!(!records.exists() && state.place_of_records(&web, Uuid::max()).is_dir());
}

#[test]
fn a_pipe_in_the_folder_is_reported_and_does_not_block() {
    let (_folder, state) = StateDir::temporary();
    let path = state.merge_domain_file();
    fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = format!("{:#}", state.create().unwrap_err());
    assert!(error.contains("merge-domain") && error.contains("not a file"), "{error}");
}

#[test]
fn the_folder_of_a_dead_process_is_cleaned_when_found() {
    let (_folder, state) = StateDir::temporary();
    let guest = state.guest(&name("web"));
    fs::create_dir_all(guest.path()).unwrap();
    for file in ["lock", "guest.json", "api.sock", "console.log", "console.log.old"] {
        fs::write(guest.path().join(file), "left").unwrap();
    }

    assert!(state.live_guests().unwrap().is_empty());
    assert!(!guest.path().exists());
}

#[test]
fn files_of_other_programs_are_not_removed() {
    let (_folder, state) = StateDir::temporary();
    let saves = state.guest(&name("saves"));
    fs::create_dir_all(saves.path()).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), state.guest(&name("link")).path()).unwrap();
    let dead = state.guest(&name("dead"));
    fs::create_dir_all(dead.path()).unwrap();
    let files = [saves.path(), elsewhere.path(), dead.path()].map(|it| it.join("w1.lighter"));
    let locks = [elsewhere.path().join("lock"), dead.path().join("lock")];
    files.iter().chain(&locks).for_each(|file| fs::write(file, "mine").unwrap());

    assert!(state.live_guests().unwrap().is_empty());
    for file in files {
        assert!(file.exists(), "{}", file.display());
    }
}

#[test]
fn a_claim_starts_with_an_empty_folder() {
    let (_folder, state) = StateDir::temporary();
    let guest = state.guest(&name("web"));
    fs::create_dir_all(guest.path()).unwrap();
    fs::write(guest.console_log(), "left").unwrap();

    let claim = guest.claim().unwrap();
    assert!(!claim.dir().console_log().exists());
}

#[test]
fn identity_is_read_as_written() {
    let (_folder, state) = StateDir::temporary();
    let claim = state.guest(&name("web")).claim().unwrap();
    let identity =
        GuestIdentity { name: name("web"), uuid: uuid::Uuid::new_v4(), pid: 7, started_unix_ms: 1 };
    claim.dir().write_identity(&identity).unwrap();
    assert_eq!(claim.dir().read_identity().unwrap(), identity);
    let mode = fs::metadata(claim.dir().guest_file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it is this user's alone");
}

#[test]
fn a_special_or_oversized_identity_is_refused_at_once() {
    let (_folder, state) = StateDir::temporary();
    let claim = state.guest(&name("web")).claim().unwrap();
    let file = claim.dir().guest_file();
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = format!("{:#}", claim.dir().read_identity().unwrap_err());
    assert!(error.contains("guest.json: it is a pipe, not a file"), "{error}");

    fs::remove_file(&file).unwrap();
    fs::write(&file, vec![b' '; GUEST_FILE_BYTES_MAX as usize + 1]).unwrap();
    let error = format!("{:#}", claim.dir().read_identity().unwrap_err());
    assert!(error.contains("too large"), "{error}");
}

#[test]
fn an_unknown_guest_is_refused_with_the_known_names() {
    let (_folder, state) = StateDir::temporary();
    let _claim = state.guest(&name("web")).claim().unwrap();
    let message = state.live_guest(&name("wbe")).unwrap_err().to_string();
    assert!(message.contains("no guest wbe") && message.contains("live here: web"), "{message}");
}

#[test]
fn a_guest_that_has_ended_is_refused_with_what_runs_it_again() {
    let (_folder, state) = StateDir::temporary();
    let file = state.root().join("web.toml");
    fs::write(&file, "name = \"web\"").unwrap();
    let web = state.definitions().define(&file, |_| Ok(None)).unwrap();
    let (start, restore) = ("`lighter start web`", "`lighter restore /srv/w.lighter --name web`");
    let identity =
        GuestIdentity { name: web.clone(), uuid: Uuid::nil(), pid: 7, started_unix_ms: 1 };
    for (how, reason, advice) in [
        (How::PoweredOff, "powered off", Some(start)),
        (How::Saved, "was saved to /srv/w.lighter", Some(restore)),
        (How::Moved, "moved to host-b", None),
    ] {
        state.guest(&web).record_end(&identity, how, reason).unwrap();
        let message = state.live_guest(&web).unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
        for command in [start, restore] {
            assert_eq!(message.contains(command), advice == Some(command), "{message}");
        }
    }
    fs::write(state.ended().place(&web).join("ended.json"), "{").unwrap();
    let message = state.live_guest(&web).unwrap_err().to_string();
    assert!(message.contains("is damaged") && !message.contains(start), "{message}");
}

#[test]
fn a_path_too_long_for_a_socket_is_refused_by_name() {
    let (folder, _) = StateDir::temporary();
    let state = StateDir::new(&folder.path().join("x".repeat(80))).unwrap();
    let message = state.guest(&name("web")).claim().unwrap_err().to_string();
    assert!(message.contains("--state-dir"), "{message}");
}
