//! What links take of a round, and when the round is over.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{advance, timeout};

use super::context;
use super::memory::Content;
use super::world::FakeSource;
use crate::guest::{GuestError, SourceGuest};
use crate::memory::PageSet;
use crate::session::pool::{Pool, REPEAT_AFTER, Share};
use crate::session::stream_sender::StreamSendError;

const CHUNKS: usize = 64;
/// Short enough that it does not count.
const ROUND_TRIP: Duration = Duration::from_millis(1);

fn pool(links: usize) -> (Arc<FakeSource>, Arc<Pool>) {
    let guest = FakeSource::new(CHUNKS, Content::Random);
    let context = context(guest.clone(), CHUNKS);
    (guest, Arc::new(Pool::new(context, (links, 0), ROUND_TRIP)))
}

fn take(pool: &Pool, link: usize) -> Vec<(usize, u64)> {
    match pool.take(link).unwrap() {
        Share::Chunks(_, chunks) => chunks,
        Share::Nothing => Vec::new(),
        Share::End(_) => panic!("it has ended"),
    }
}

fn acknowledge(pool: &Pool, round: u32, chunks: &[(usize, u64)]) {
    chunks.iter().for_each(|(chunk, _)| pool.acknowledged(round, *chunk as u64));
}

/// Begins a round in which everything is sent.
async fn begin(pool: &Arc<Pool>, dirty: PageSet) -> tokio::task::JoinHandle<Option<PageSet>> {
    let theirs = pool.clone();
    let round = tokio::spawn(async move { theirs.send(dirty).await.ok().map(|(_, left)| left) });
    tokio::task::yield_now().await;
    round
}

#[tokio::test(start_paused = true)]
async fn each_chunk_goes_to_one_link_in_ever_smaller_shares() {
    let (guest, pool) = pool(2);
    guest.start_dirty_log().unwrap();
    let round = begin(&pool, PageSet::full(CHUNKS)).await;
    let (mut taken, mut shares) = (Vec::new(), Vec::new());
    for turn in 0.. {
        let share = take(&pool, turn % 2);
        if share.is_empty() {
            break;
        }
        shares.push(share.len());
        taken.extend(share);
    }
    let all: Vec<_> = (0..CHUNKS).map(|chunk| (chunk, u64::MAX)).collect();
    assert_eq!(taken, all);
    assert!(shares.is_sorted_by(|a, b| a >= b) && shares.last() == Some(&1), "{shares:?}");
    let mut dirty = PageSet::empty(CHUNKS);
    guest.collect_dirty(dirty.words_mut()).unwrap();
    assert!(dirty.is_empty(), "the log is re-armed");
    acknowledge(&pool, 1, &taken);
    assert!(round.await.unwrap().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_round_lasts_until_all_is_acknowledged_and_another_link_repeats_what_is_late() {
    let (_guest, pool) = pool(2);
    let mut dirty = PageSet::empty(CHUNKS);
    dirty.words_mut()[5] = 0b11;
    let mut round = begin(&pool, dirty).await;
    assert_eq!(take(&pool, 0), [(5, 0b11)]);
    assert_eq!(take(&pool, 1), [], "it is not late yet");
    assert!(timeout(REPEAT_AFTER, &mut round).await.is_err());
    assert_eq!(take(&pool, 0), [], "this link has it");
    assert_eq!(take(&pool, 1), [(5, 0b11)]);
    advance(10 * REPEAT_AFTER).await;
    assert_eq!([take(&pool, 0), take(&pool, 1)], [[], []], "each link sends it once");
    acknowledge(&pool, 0, &[(5, 0b11)]);
    assert!(timeout(REPEAT_AFTER, &mut round).await.is_err(), "that was of another round");
    acknowledge(&pool, 1, &[(5, 0b11)]);
    assert!(round.await.unwrap().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_chunk_that_was_repeated_keeps_its_log_armed_since_the_first_copy() {
    let (guest, pool) = pool(2);
    guest.start_dirty_log().unwrap();
    let mut dirty = PageSet::empty(CHUNKS);
    dirty.words_mut()[3] = 1;
    let _round = begin(&pool, dirty).await;
    assert_eq!(take(&pool, 0), [(3, 1)]);
    assert!(guest.write(3 * 64, Content::Random, 1));
    advance(2 * REPEAT_AFTER).await;
    assert_eq!(take(&pool, 1), [(3, 1)]);
    let mut again = PageSet::empty(CHUNKS);
    guest.collect_dirty(again.words_mut()).unwrap();
    assert!(again.contains(3, 0), "what was written since the first copy is sent again");
}

#[tokio::test(start_paused = true)]
async fn a_link_that_is_lost_leaves_its_chunks_to_the_others_and_the_last_one_fails_the_round() {
    let (_guest, pool) = pool(2);
    let round = begin(&pool, PageSet::full(2)).await;
    let lost = take(&pool, 0);
    let lost = || Err(StreamSendError::Stream(format!("{lost:?} is lost")));
    pool.finished(lost());
    let rest = take(&pool, 1);
    advance(2 * REPEAT_AFTER).await;
    assert_eq!((rest, take(&pool, 1)), (vec![(1, u64::MAX)], vec![(0, u64::MAX)]));
    pool.finished(lost());
    assert_eq!(round.await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_cannot_be_read_fails_the_round_whatever_other_links_do() {
    let (_guest, pool) = pool(2);
    let round = begin(&pool, PageSet::full(2)).await;
    pool.finished(Err(StreamSendError::Guest(GuestError::new("a page cannot be read"))));
    assert_eq!(round.await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn the_streams_end_once_all_is_acknowledged_and_the_first_one_that_ends_is_enough() {
    let (_guest, pool) = pool(2);
    let theirs = pool.clone();
    let mut ending = tokio::spawn(async move { theirs.end().await.is_ok() });
    assert!(timeout(Duration::from_millis(10), &mut ending).await.is_err());
    assert_eq!(pool.take(0).unwrap(), Share::End(1));
    pool.finished(Ok(()));
    assert!(ending.await.unwrap());
}
