//! Tests of the records of disks that guests have left behind.

use migrate::record::SourceState;
use rustix::fs::XattrFlags;

use super::*;

fn departure(disk: &Path) -> Departure {
    let identity = DiskIdentity::at(disk).unwrap();
    Departure {
        guest: "db".parse().unwrap(),
        uuid: Uuid::from_u128(5),
        migration: MigrationId::random(),
        destination: "host-b\u{1b}".to_owned(),
        disks: vec![DepartedDisk { path: disk.canonicalize().unwrap(), identity }],
        is_shared: false,
        is_settled: false,
    }
}

fn record(departure: &Departure, state: SourceState) -> Record {
    let record = crate::node::liveness::tests::source_record(state, 1);
    let (migration, guest_uuid) = (departure.migration, departure.uuid);
    Record { migration, guest: departure.guest.to_string(), guest_uuid, ..record }
}

/// Creates a state folder, a disk, and the guest's record of that disk.
fn scene() -> (tempfile::TempDir, StateDir, PathBuf, Departure) {
    let (folder, state) = StateDir::temporary();
    let disk = folder.path().join("disk.raw");
    fs::write(&disk, "content").unwrap();
    let departure = departure(&disk);
    state.create().unwrap();
    state.prepare_guest(&departure.guest, departure.uuid).unwrap();
    state.departures().write(&departure).unwrap();
    (folder, state, disk, departure)
}

fn write_note(disk: &fs::File, note: &str) {
    let (name, none) = ("user.lighter.moved-to", XattrFlags::empty());
    rustix::fs::fsetxattr(disk, name, note.as_bytes(), none).unwrap();
}

#[test]
fn a_disk_has_left_once_its_guests_record_says_so_even_after_the_record_is_gone() {
    let (_folder, state, disk, departure) = scene();
    let expect = || state.departures().past().expect_here(&departure.guest, &disk);
    expect().unwrap();
    for (recorded, has_left) in
        [(SourceState::Undecided, false), (SourceState::Committed, true), (SourceState::Done, true)]
    {
        let record = record(&departure, recorded);
        let _ = state.records().unwrap().remove(&record);
        state.records().unwrap().create(&record).unwrap();
        assert_eq!(expect().is_err(), has_left, "{recorded:?}");
    }
    let error = expect().unwrap_err().to_string();
    assert!(error.contains("moved to host-b with the guest db; to use it"), "{error}");

    let record = record(&departure, SourceState::Done);
    let mut faults = BTreeSet::new();
    let open = state.departures().settle_by(std::slice::from_ref(&record), &mut faults);
    assert!(open.is_empty() && faults.is_empty(), "{faults:?}");
    state.records().unwrap().remove(&record).unwrap();
    expect().unwrap_err();
    let new = disk.with_extension("new");
    fs::write(&new, "came back").unwrap();
    fs::rename(new, &disk).unwrap();
    expect().unwrap();
}

#[test]
fn a_disk_of_a_guest_that_stays_is_free() {
    let (_folder, state, disk, departure) = scene();
    let noted = fs::File::open(&disk).unwrap();
    let write = |note: &str| write_note(&noted, note);
    let settle = |state_of_record| {
        let records = [record(&departure, state_of_record)];
        state.departures().settle_by(&records, &mut BTreeSet::new())
    };
    let is_listed = || !state.departures().list().departures.is_empty();
    let (host, uuid) = (departure.destination.as_str(), departure.uuid);
    for other in [
        note_text(host, uuid, MigrationId::random()),
        note_text(host, Uuid::from_u128(6), departure.migration),
    ] {
        write(&other);
        settle(SourceState::Aborted);
        assert!(departed_to(&disk).is_some(), "a note that is not its own stays");
        assert!(!is_listed());
        state.departures().write(&departure).unwrap();
    }
    write(&departure.note_text());
    settle(SourceState::Undecided);
    assert!(departed_to(&disk).is_some());
    let unmounted = disk.with_extension("unmounted");
    fs::rename(&disk, &unmounted).unwrap();
    settle(SourceState::Aborted);
    fs::rename(&unmounted, &disk).unwrap();
    assert!(is_listed(), "it is tried again");
    settle(SourceState::Aborted);
    assert_eq!(departed_to(&disk), None);
    assert!(!is_listed());
    state.departures().write(&Departure { is_settled: true, ..departure.clone() }).unwrap();
    state.departures().past().expect_here(&departure.guest, &disk).unwrap_err();
    state.departures().forget(&departure).unwrap();
    state.departures().past().expect_here(&departure.guest, &disk).unwrap();
}

#[test]
fn the_record_of_a_guest_that_stays_is_kept_while_its_disks_cannot_be_freed() {
    let (_folder, state, disk, departure) = scene();
    let disks = vec![DepartedDisk { path: disk.join("no-folder"), ..departure.disks[0].clone() }];
    let departure = Departure { disks, ..departure };
    state.departures().write(&departure).unwrap();
    let mut faults = BTreeSet::new();
    let records = [record(&departure, SourceState::Aborted)];
    let open = state.departures().settle_by(&records, &mut faults);
    assert_eq!(open, BTreeSet::from([departure.migration]));
    assert!(faults.iter().any(|fault| fault.contains("of db")), "{faults:?}");
}

#[test]
fn a_disk_of_a_guest_in_doubt_is_free_when_the_guest_is_to_run_here_all_the_same() {
    let (_folder, state, disk, departure) = scene();
    state.records().unwrap().create(&record(&departure, SourceState::Committed)).unwrap();
    let attribute = (std::fs::File::open(&disk).unwrap(), departure.note_text());
    let write = || write_note(&attribute.0, &attribute.1);
    let expect = || state.departures().past().expect_here(&departure.guest, &disk);
    // Twice, as after a power cut between writing the record and removing the note.
    for _ in 0..2 {
        write();
        crate::whereabouts::Whereabouts::claim(&state, &departure.guest).unwrap();
        assert_eq!(departed_to(&disk), None);
        expect().unwrap();
    }
    // The other host runs the guest after all.
    let mut faults = BTreeSet::new();
    state.departures().settle_by(&[record(&departure, SourceState::Done)], &mut faults);
    expect().unwrap_err();
}

#[test]
fn a_shared_disk_is_known_while_its_guest_is_on_another_host() {
    let (_folder, state, disk, copied) = scene();
    let departures = state.departures();
    departures.forget(&copied).unwrap();
    let shared = Departure { is_shared: true, ..copied.clone() };
    let at = |path: &Path| PresentDisk::at(path).unwrap();
    let files = || {
        let known = departures.with_shared_disks().into_iter();
        known.filter(|noted| noted.is_about(&at(&disk))).map(|noted| noted.file).collect::<Vec<_>>()
    };
    let settle = |departure: &Departure, state_of_record| {
        let records = [record(departure, state_of_record)];
        departures.settle_by(&records, &mut BTreeSet::new())
    };
    let forget = |leaving| departures.forget_shared(&shared.guest, shared.uuid, leaving).unwrap();

    departures.write(&shared).unwrap();
    assert!(files().is_empty(), "it has not left yet");
    let left = || departures.left_by(&shared.guest);
    assert_eq!(left(), []);
    settle(&shared, SourceState::Done);
    assert_eq!(files(), [departures.file(&shared)]);
    let listed = LeftDisk {
        path: disk.canonicalize().unwrap(),
        destination: shared.destination.clone(),
        is_shared: true,
        record: departures.file(&shared),
    };
    assert_eq!(left(), [listed]);
    assert_eq!(departures.left_by(&"web".parse().unwrap()), []);
    departures.past().expect_here(&shared.guest, &disk).unwrap();
    let other = disk.with_extension("other");
    fs::write(&other, "content").unwrap();
    assert!(!departures.with_shared_disks()[0].is_about(&at(&other)));

    // Its next migration has begun when the node learns that an earlier one was aborted.
    let [aborted, next] =
        [(); 2].map(|()| Departure { migration: MigrationId::random(), ..shared.clone() });
    departures.write(&aborted).unwrap();
    departures.write(&next).unwrap();
    settle(&aborted, SourceState::Aborted);
    assert!(!departures.file(&aborted).exists() && departures.file(&next).exists());
    // It runs here, and what it left with before is forgotten, but not what it is leaving with.
    forget(Some(next.migration));
    assert!(files().is_empty() && departures.file(&next).exists());
    settle(&next, SourceState::Done);
    assert_eq!(files(), [departures.file(&next)]);
    forget(None);
    assert!(files().is_empty() && !departures.file(&next).exists());
}

#[test]
fn a_shared_disk_that_another_guest_takes_over_is_removed_from_the_record() {
    let (_folder, state, disk, copied) = scene();
    let departures = state.departures();
    departures.forget(&copied).unwrap();
    let second = disk.with_extension("second");
    fs::write(&second, "content").unwrap();
    let disks = [departure(&disk), departure(&second)].map(|it| it.disks).concat();
    let shared = Departure { is_shared: true, is_settled: true, disks, ..copied };
    departures.write(&shared).unwrap();
    for (taken, left) in [(&disk, 1), (&second, 0)] {
        let noted = departures.with_shared_disks().remove(0);
        let taken = PresentDisk::at(taken).unwrap();
        departures.release(&noted, std::slice::from_ref(&taken)).unwrap();
        let known = departures.with_shared_disks();
        assert_eq!(known.iter().map(|noted| noted.departure.disks.len()).sum::<usize>(), left);
        assert!(!known.iter().any(|noted| noted.is_about(&taken)));
    }
    assert!(!departures.file(&shared).exists());
}

#[test]
fn a_note_under_another_name_is_damage() {
    let (_folder, state, disk, departure) = scene();
    let departures = state.departures();
    departures.forget(&departure).unwrap();
    let place = departures.place(&departure.guest, departure.uuid);
    let settled = Departure { is_settled: true, ..departure };
    let shared = Departure { is_shared: true, ..settled.clone() };
    let id = settled.migration;
    for (note, name) in [
        (&settled, "x.json".to_owned()),
        (&settled, format!("{id}.shared")),
        (&shared, "x.shared".to_owned()),
        (&shared, format!("{id}.json")),
    ] {
        let file = place.join(&name);
        durable::write_json(&file, note).unwrap();
        assert!(departures.with_shared_disks().is_empty(), "{name}");
        let error = departures.past().expect_here(&settled.guest, &disk).unwrap_err().to_string();
        assert!(error.contains("cannot be read") && error.contains(&name), "{error}");
        departures.past().expect_here(&"web".parse().unwrap(), &disk).unwrap();
        fs::remove_file(file).unwrap();
    }
}

#[test]
fn a_note_in_another_guests_name_is_damage_and_blocks_its_own_guest() {
    let (_folder, state, disk, departure) = scene();
    let own = departure.guest.clone();
    let other: GuestName = "web".parse().unwrap();
    let forged = Departure { guest: other.clone(), is_settled: true, ..departure.clone() };
    let file = state.departures().file(&departure);
    durable::write_json(&file, &forged).unwrap();
    let expect = |guest: &GuestName| state.departures().past().expect_here(guest, &disk);
    for spoil in [false, true] {
        if spoil {
            fs::write(&file, "garbage").unwrap();
        }
        expect(&other).unwrap();
        let error = expect(&own).unwrap_err().to_string();
        assert!(error.contains(&file.display().to_string()), "{error}");
    }
    fs::remove_file(&file).unwrap();
    expect(&own).unwrap();
}

#[test]
fn too_many_notes_block_their_guest_from_starting() {
    let (_folder, state, disk, departure) = scene();
    let place = state.departures().place(&departure.guest, departure.uuid);
    for number in 0..FILES_MAX {
        fs::write(place.join(format!("{number}.json")), "").unwrap();
    }
    let past = state.departures().past();
    assert!(past.damaged.iter().any(|(_, it)| *it == place));
    past.expect_here(&departure.guest, &disk).unwrap_err();
}

#[test]
fn a_disk_with_which_a_guest_has_left_is_overwritten_only_by_its_own_copy() {
    let (_folder, state, disk, departure) = scene();
    let departures = state.departures();
    let settled = Departure { is_settled: true, ..departure.clone() };
    departures.write(&settled).unwrap();
    let (own, another) = (departure.uuid, Uuid::from_u128(6));
    let expect = |uuid| departures.past().expect_unused((&departure.guest, uuid), &disk);
    expect(own).unwrap();
    let refused = expect(another).unwrap_err().to_string();
    assert!(refused.contains("the guest db has left") && refused.contains("`rm "), "{refused}");

    // The guest runs here with that disk again.
    let present = [PresentDisk::at(&disk).unwrap()];
    let forget = |leaving| {
        departures.forget_copied((&departure.guest, own), &present, leaving).unwrap();
    };
    forget(Some(departure.migration));
    expect(another).unwrap_err();
    forget(None);
    expect(another).unwrap();

    departures.write(&Departure { is_shared: true, ..settled }).unwrap();
    expect(own).unwrap_err();
}
