//! Disks that are copied with a guest.

use super::*;
use crate::guest::{DiskCopy, ExistingFile, MAX_DISKS};
use crate::protocol::FEATURE_LZ4;

fn disk(bytes: u64) -> DiskCopy {
    DiskCopy { device: 0, bytes, allocated_bytes: 0, existing: ExistingFile::Keep }
}

/// Returns the actions for a guest with which these disks are to be copied.
fn prepared_with(disks: Vec<DiskCopy>) -> Vec<Action> {
    let mut bench = Bench::new();
    bench.hear(hello(Offer::ours()));
    bench.hear(SourceMessage::Disks(disks));
    bench.hear(prepare(guest("web-1"), 1))
}

#[test]
fn announced_disks_are_copied_with_the_guest() {
    let actions = prepared_with(vec![disk(5000), disk(CHUNK_BYTES as u64 + 1)]);
    let [Action::Check(guest)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((guest.disks.len(), guest.chunks()), (2, 1 + 1 + 2));
    assert_eq!(guest.disk_bytes(), 5001 + CHUNK_BYTES as u64);
}

#[test]
fn impossible_disks_are_refused_before_anything_is_checked() {
    let too_many = vec![disk(512); MAX_DISKS + 1];
    let too_large = vec![disk(u64::MAX), disk(u64::MAX)];
    for (disks, words) in [
        (too_many, "at most 16"),
        (vec![disk(0)], "without a size"),
        (too_large, "share the disks"),
    ] {
        let actions = prepared_with(disks);
        let said = format!("{actions:?}");
        assert!(said.contains(words), "{said}");
        assert!(!actions.iter().any(|action| matches!(action, Action::Check(_))), "{actions:?}");
    }
}

#[test]
fn disks_are_announced_once_and_only_if_agreed_on() {
    let mut bench = Bench::new();
    bench.hear(hello(Offer { features: FEATURE_LZ4, ..Offer::ours() }));
    let actions = bench.hear(SourceMessage::Disks(vec![disk(512)]));
    assert_eq!(complaint(&actions), Reason::Protocol);

    let mut bench = Bench::new();
    bench.hear(hello(Offer::ours()));
    assert_eq!(bench.hear(SourceMessage::Disks(vec![disk(512)])), []);
    let actions = bench.hear(SourceMessage::Disks(vec![disk(512)]));
    assert_eq!(complaint(&actions), Reason::Protocol);
}

#[test]
fn a_guest_that_stays_paused_keeps_its_disks_all_the_same() {
    let mut bench = Bench::new();
    bench.hear(hello(Offer::ours()));
    bench.hear(SourceMessage::Disks(vec![disk(512)]));
    bench.hear(prepare(guest("web-1"), 1));
    bench.feed(Event::Checked(Ok(())));
    bench.feed(Event::Created(Ok(())));
    bench.feed(Event::Recorded);
    bench.commit_paused();
    let actions = bench.feed(Event::Adopted(Ok(())));
    assert!(actions.contains(&Action::Record(DestinationState::Running)), "{actions:?}");
}
