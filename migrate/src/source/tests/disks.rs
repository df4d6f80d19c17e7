//! Disks that are copied with a guest.

use super::*;
use crate::guest::{DiskCopy, ExistingFile};
use crate::protocol::FEATURE_LZ4;

fn bench_with_a_disk() -> Bench {
    let mut bench = Bench::new();
    bench.source.config.guest.disks = vec![DiskCopy {
        device: 0,
        bytes: 8192,
        allocated_bytes: 4096,
        existing: ExistingFile::Keep,
    }];
    bench.feed(Event::Connected);
    bench.feed(Event::Recorded);
    bench
}

#[test]
fn disks_are_announced_before_the_guest() {
    let mut bench = bench_with_a_disk();
    let features = Features::SUPPORTED;
    let actions = bench.hear(DestinationMessage::Welcome { version: Version(1), features });
    let [Action::Send(SourceMessage::Disks(disks)), Action::Send(SourceMessage::Prepare(_))] =
        &actions[..]
    else {
        panic!("{actions:?}")
    };
    assert_eq!(disks, &bench.source.config.guest.disks);
}

#[test]
fn a_destination_without_disk_support_gets_no_guest_with_disks() {
    let mut bench = bench_with_a_disk();
    let features = FEATURE_LZ4;
    let actions = bench.hear(DestinationMessage::Welcome { version: Version(1), features });
    let prepares = |action: &Action| matches!(action, Action::Send(SourceMessage::Prepare(_)));
    assert!(!actions.iter().any(prepares), "{actions:?}");
}

#[test]
fn remaining_memory_and_disks_are_counted_separately() {
    let mut bench = Bench::copying();
    bench.source.round.disk_pages = 100;
    bench.source.round.pages = 300;
    let transfer = Transfer {
        raw_pages: 40,
        zero_pages: 10,
        disk_pages: 25,
        disk_zero_pages: 5,
        ..Transfer::default()
    };
    bench.feed(Event::Transferred(transfer));
    let progress = bench.source.progress(bench.now);
    assert_eq!((progress.remaining_bytes, progress.disk_remaining_bytes), (150 << 12, 70 << 12));
    let sent =
        RoundSent { pages: 300, dirty_pages: 9, dirty_disk_pages: 4, ..RoundSent::default() };
    bench.feed(Event::RoundSent(sent));
    let progress = bench.source.progress(bench.now);
    assert_eq!((progress.remaining_bytes, progress.disk_remaining_bytes), (5 << 12, 4 << 12));
}
