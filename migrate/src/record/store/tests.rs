//! Files of records.

use std::os::unix::fs::PermissionsExt;

use uuid::Uuid;

use super::super::file::MAX_FILE_BYTES;
use super::*;
use crate::protocol::Token;
use crate::record::{DestinationState, Side, SourceState};

fn source_record(state: SourceState) -> Record {
    let address = ([127, 0, 0, 1], 4950).into();
    Record {
        migration: MigrationId(Uuid::from_u128(7)),
        guest: "web-1".to_owned(),
        guest_uuid: Uuid::from_u128(1),
        pid: 42,
        started_unix_ms: 1,
        updated_unix_ms: 2,
        side: Side::Source {
            state,
            destination: "host-b".to_owned(),
            server_name: "host-b".to_owned(),
            node_address: address,
            process_address: address,
            token: Token([7; 32]),
        },
        report: None,
    }
}

fn empty_store() -> (tempfile::TempDir, RecordStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = RecordStore::open(folder.path()).unwrap();
    (folder, store)
}

fn read_source(store: &RecordStore, migration: MigrationId) -> Result<Option<Record>, RecordError> {
    store.read(migration, Role::Source, |_| true)
}

#[test]
fn only_files_left_unfinished_by_a_crash_are_removed() {
    let (_folder, store) = empty_store();
    drop(store.create(&source_record(SourceState::Undecided)).unwrap());
    let unfinished = path(&store).with_added_extension(regular_file::UNFINISHED);
    fs::write(&unfinished, "half a re").unwrap();
    let now = SystemTime::now();
    store.remove_unfinished(now).unwrap();
    assert!(unfinished.exists(), "it may be under way");
    store.remove_unfinished(now + UNFINISHED_AGE * 2).unwrap();
    assert!(!unfinished.exists());
    assert_eq!(store.list().unwrap().0.len(), 1);
}

#[test]
fn what_is_recorded_after_a_clock_was_set_back_is_later_all_the_same() {
    let (_folder, store) = empty_store();
    let now = store.timestamp();
    assert!(now.abs_diff(unix_ms()) < 60_000);
    let ahead = now + 8 * 3_600_000;
    let record = Record { updated_unix_ms: ahead, ..source_record(SourceState::Done) };
    drop(store.create(&record).unwrap());
    assert_eq!(store.timestamp(), ahead + 1);
}

fn state_of(record: &Record) -> SourceState {
    match record.side {
        Side::Source { state, .. } => state,
        Side::Destination { .. } => panic!("not a source's record"),
    }
}

/// Returns the path of a source's record.
fn path(store: &RecordStore) -> PathBuf {
    store.path_of(&source_record(SourceState::Undecided))
}

fn id() -> MigrationId {
    source_record(SourceState::Undecided).migration
}

#[test]
fn the_last_of_many_writes_counts_also_past_the_end_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let store = RecordStore::open(&folder.path().join("migrations")).unwrap();
    let mut file = store.create(&source_record(SourceState::Undecided)).unwrap();

    for turn in 0..100_u64 {
        let mut record = source_record(SourceState::Committed);
        record.updated_unix_ms = turn;
        file.write(&record).unwrap();
        assert_eq!(read_source(&store, id()).unwrap(), Some(record));
    }

    drop(file);
    let mut again = store.reopen(&source_record(SourceState::Done)).unwrap();
    again.write(&source_record(SourceState::Done)).unwrap();
    let read = read_source(&store, id()).unwrap().unwrap();
    assert_eq!(state_of(&read), SourceState::Done);
}

#[test]
fn a_line_torn_by_a_crash_leaves_the_one_before() {
    let (_folder, store) = empty_store();
    let mut file = store.create(&source_record(SourceState::Undecided)).unwrap();
    file.write(&source_record(SourceState::Committed)).unwrap();
    let path = path(&store);
    let whole = fs::read(&path).unwrap();
    let used = whole.iter().rposition(|&byte| byte == b'\n').unwrap() + 1;
    let first = whole.iter().position(|&byte| byte == b'\n').unwrap() + 1;

    for cut in first..used {
        for torn in [first..cut, cut..used] {
            let mut bytes = whole.clone();
            bytes[torn.clone()].fill(b' ');
            fs::write(&path, &bytes).unwrap();
            let read = read_source(&store, id()).unwrap().unwrap();
            // A line without its line feed is still intact.
            let intact = torn.is_empty() || torn == (used - 1..used);
            assert_eq!(state_of(&read) == SourceState::Committed, intact, "{torn:?}");
        }
    }
    let mut again = store.reopen(&source_record(SourceState::Done)).unwrap();
    again.write(&source_record(SourceState::Aborted)).unwrap();
    let read = read_source(&store, id()).unwrap().unwrap();
    assert_eq!(state_of(&read), SourceState::Aborted);
}

#[test]
fn both_sides_share_a_folder_that_other_users_cannot_read() {
    let (_folder, store) = empty_store();
    let source = source_record(SourceState::Undecided);
    let destination = Record {
        side: Side::Destination {
            state: DestinationState::Ready,
            source_address: ([127, 0, 0, 1], 9).into(),
            source_name: Some("host-a".to_owned()),
            source_node_port: std::num::NonZeroU16::new(4950),
            port: 5000,
            token: Token([7; 32]),
        },
        started_unix_ms: 5,
        ..source.clone()
    };
    store.create(&source).unwrap();
    store.create(&destination).unwrap();
    fs::write(path(&store).with_file_name("rubbish.json"), "{}").unwrap();

    let (records, errors) = store.list().unwrap();

    assert_eq!(records, [destination, source]);
    assert_eq!(errors.len(), 1);
    let mode = fs::metadata(path(&store)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_record_is_read_of_a_lighter_that_kept_less_of_the_source() {
    let side = Side::Destination {
        state: DestinationState::Ready,
        source_address: ([127, 0, 0, 1], 9).into(),
        source_name: None,
        source_node_port: None,
        port: 5000,
        token: Token([7; 32]),
    };
    let text = format!(
        r#"{{"role": "destination", "state": "ready", "source_address": "127.0.0.1:9", "port": 5000, "token": {}}}"#,
        serde_json::to_string(&Token([7; 32])).unwrap()
    );
    assert_eq!(serde_json::from_str::<Side>(&text).unwrap(), side);
    let written = serde_json::to_string(&side).unwrap();
    assert!(!written.contains("source_n"), "{written}");
}

#[test]
fn a_special_file_is_an_error_and_does_not_block() {
    let (_folder, store) = empty_store();
    let path = path(&store);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    fs::create_dir(path.with_file_name("folder.json")).unwrap();

    let errors = [
        read_source(&store, id()).unwrap_err().to_string(),
        store.reopen(&source_record(SourceState::Done)).unwrap_err().to_string(),
    ];
    let (records, faults) = store.list().unwrap();

    for error in errors {
        assert!(error.ends_with("it is a pipe, not a file"), "{error}");
    }
    assert_eq!((records.len(), faults.len()), (0, 2));
    fs::remove_file(&path).unwrap();
    fs::write(&path, vec![b' '; MAX_FILE_BYTES as usize + 1]).unwrap();
    let large = read_source(&store, id()).unwrap_err().to_string();
    assert!(large.contains("it is too large"), "{large}");
}

#[test]
fn a_guests_records_are_in_its_folder_and_concern_no_other_guest() {
    let (folder, store) = empty_store();
    let own = source_record(SourceState::Done);
    store.create(&own).unwrap();
    let (guest, migration) = ("db".to_owned(), MigrationId(Uuid::from_u128(8)));
    let other = Record { guest, migration, started_unix_ms: 5, ..own.clone() };
    store.create(&other).unwrap();
    assert_eq!(store.list().unwrap().0, [other.clone(), own.clone()]);
    let of_guest = RecordStore::of_guest(folder.path(), "web-1");
    assert_eq!(of_guest.list().unwrap().0, std::slice::from_ref(&own));
    assert_eq!(read_source(&of_guest, other.migration).unwrap(), None);

    let uuid = Uuid::from_u128(2);
    for place in [("db", own.guest_uuid), ("web-1", uuid)] {
        RecordStore::create_place(folder.path(), place.0, place.1).unwrap();
        let foreign = RecordStore::place(folder.path(), place.0, place.1);
        let foreign = foreign.join(file_name(own.migration, Role::Source));
        fs::copy(path(&store), &foreign).unwrap();
        let (records, faults) = store.list().unwrap();
        assert_eq!(records, [other.clone(), own.clone()], "{place:?}");
        assert!(faults[0].to_string().contains("another guest"), "{faults:?}");
        assert_eq!(read_source(&store, own.migration).unwrap(), Some(own.clone()));
        fs::remove_file(foreign).unwrap();
    }
}

#[test]
fn another_guest_with_the_id_of_a_migration_does_not_hide_its_record() {
    let (_folder, store) = empty_store();
    let own = source_record(SourceState::Committed);
    store.create(&own).unwrap();
    for guest in ["a", "z"] {
        store.create(&Record { guest: guest.to_owned(), ..own.clone() }).unwrap();
    }
    for guest in ["a", "web-1", "z"] {
        let read = store.read(id(), Role::Source, |it| it.guest == guest).unwrap().unwrap();
        assert_eq!(read.guest, guest);
    }
    assert!(store.read(id(), Role::Source, |_| false).unwrap().is_some(), "any is told of");
    let place = RecordStore::place(store.folder.as_path(), "web-1", own.guest_uuid);
    fs::write(place.join(file_name(id(), Role::Source)), "rubbish").unwrap();
    assert!(store.read(id(), Role::Source, |it| it.guest == "z").unwrap().is_some());
}

#[test]
fn a_record_of_an_earlier_version_and_one_of_another_guest_with_its_id_are_kept_apart() {
    let (folder, store) = empty_store();
    let own = source_record(SourceState::Committed);
    store.create(&own).unwrap();
    let flat = folder.path().join(file_name(id(), Role::Source));
    fs::rename(path(&store), &flat).unwrap();
    let forged = Record { guest: "h".to_owned(), started_unix_ms: u64::MAX, ..own.clone() };
    store.create(&forged).unwrap();

    let aborted = Record { updated_unix_ms: 9, ..forged.clone() };
    store.reopen(&forged).unwrap().write(&aborted).unwrap();
    assert_eq!(store.list().unwrap().0, [aborted.clone(), own.clone()]);
    store.remove(&forged).unwrap();
    assert_eq!(store.list().unwrap().0, std::slice::from_ref(&own));

    store.create(&forged).unwrap();
    store.remove(&own).unwrap();
    assert_eq!(store.list().unwrap().0, [forged]);
}

#[test]
fn what_a_guest_does_to_its_folder_hides_no_other_guests_records() {
    let (folder, store) = empty_store();
    let own = source_record(SourceState::Done);
    store.create(&own).unwrap();
    let uuid = Uuid::from_u128(2);
    let other = |migration| Record {
        guest: "h".to_owned(),
        guest_uuid: uuid,
        migration: MigrationId(Uuid::from_u128(migration)),
        ..own.clone()
    };
    store.create(&other(1)).unwrap();
    let place = RecordStore::place(folder.path(), "h", uuid);
    let name = |migration| file_name(other(migration).migration, Role::Source);
    let reports = |what: &str, expected: usize| {
        let (records, faults) = store.list().unwrap();
        assert!(records.contains(&own) && records.len() == 1, "{what}: {records:?}");
        let of_h = faults.iter().filter(|fault| fault.path().starts_with(place.parent().unwrap()));
        assert_eq!((of_h.count(), faults.len()), (expected, expected), "{what}: {faults:?}");
        let read = store.read(id(), Role::Source, |it| *it == own).unwrap();
        assert_eq!(read, Some(own.clone()), "{what}");
    };

    fs::rename(place.join(name(1)), place.join(name(2))).unwrap();
    reports("one that is named as another", 1);
    for number in 0..FILES_MAX {
        fs::write(place.join(format!("{number}.json")), "").unwrap();
    }
    reports("too many files", 1);
    fs::remove_dir_all(&place).unwrap();
    fs::create_dir(&place).unwrap();
    fs::File::create(place.join("x.json")).unwrap().set_len(BYTES_MAX + 1).unwrap();
    reports("too many bytes", 1);
    let of_guest = place.parent().unwrap();
    fs::remove_dir_all(of_guest).unwrap();
    std::os::unix::fs::symlink("loop", of_guest).unwrap();
    reports("a link instead", 0);
}

#[test]
fn a_folder_behind_a_link_is_refused_and_not_read() {
    let (folder, store) = empty_store();
    let own = source_record(SourceState::Done);
    store.create(&own).unwrap();
    let place = RecordStore::places(folder.path()).join(&own.guest);
    fs::rename(&place, folder.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("../elsewhere", &place).unwrap();
    let refused = store.create(&own).unwrap_err().to_string();
    assert!(refused.ends_with("not a folder"), "{refused}");
}

#[test]
fn records_of_earlier_versions_are_read_and_written_where_they_are() {
    let (folder, store) = empty_store();
    let record = source_record(SourceState::Committed);
    store.create(&record).unwrap();
    let flat = folder.path().join(file_name(record.migration, Role::Source));
    fs::rename(path(&store), &flat).unwrap();

    assert_eq!(store.list().unwrap().0, std::slice::from_ref(&record));
    let done = source_record(SourceState::Done);
    store.reopen(&record).unwrap().write(&done).unwrap();
    assert_eq!(read_source(&store, record.migration).unwrap(), Some(done.clone()));
    store.remove(&done).unwrap();
    assert!(!flat.exists());
}

#[test]
fn a_missing_record_is_none_and_removing_it_is_harmless() {
    let (_folder, store) = empty_store();
    assert_eq!(read_source(&store, id()).unwrap(), None);
    store.remove(&source_record(SourceState::Done)).unwrap();
    store.create(&source_record(SourceState::Done)).unwrap();
    store.remove(&source_record(SourceState::Done)).unwrap();
    assert_eq!(read_source(&store, id()).unwrap(), None);
    assert!(store.reopen(&source_record(SourceState::Done)).is_err());
}

#[test]
fn a_retired_record_is_found_only_under_its_guest() {
    let (_folder, store) = empty_store();
    let at = |record: Record, id, started_unix_ms| {
        let migration = MigrationId(Uuid::from_u128(id));
        let record = Record { migration, started_unix_ms, ..record };
        store.create(&record).unwrap();
        store.retire(&record).unwrap();
        record
    };
    let uuid = source_record(SourceState::Done).guest_uuid;
    let kept = || -> Vec<MigrationId> {
        store.retired(uuid).unwrap().iter().map(|record| record.migration).collect()
    };
    let mut offered = source_record(SourceState::Done);
    offered.side = Side::Destination {
        state: DestinationState::Discarded,
        source_address: ([127, 0, 0, 1], 4950).into(),
        source_name: None,
        source_node_port: None,
        port: 4951,
        token: Token([7; 32]),
    };
    at(offered.clone(), 1, 1);
    assert_eq!(kept(), [], "it never was here");
    let left = at(source_record(SourceState::Done), 2, 3);
    at(source_record(SourceState::Aborted), 3, 2);
    assert_eq!(kept(), [left.migration], "the later one stays");
    let not_taken = at(offered, 4, 4);
    assert_eq!(kept(), [left.migration, not_taken.migration]);
    assert_eq!(store.list().unwrap().0, []);

    let Side::Source { token, .. } = store.retired(uuid).unwrap().remove(0).side else { panic!() };
    assert_eq!(token, Token([0; 32]));
    let path = store.past_of(uuid, true);
    assert!(fs::metadata(&path).unwrap().len() < 1024);
    fs::copy(&path, store.past_of(Uuid::from_u128(9), true)).unwrap();
    assert!(store.retired(Uuid::from_u128(9)).is_err(), "another guest's");
    fs::write(&path, "rubbish").unwrap();
    assert!(store.retired(uuid).is_err());
}
