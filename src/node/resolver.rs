//! Settles migrations whose source process died: finds their records and sends the decision to the
//! destination until it answers.
//!
//! The record decides. If a commit is on disk, it is sent again. If none is, the guest died here
//! with its process, and the destination must discard its copy. `migrate::resolve` decides what an
//! answer means. Records of destinations whose process died need no other host: their copy had not
//! run, or died after it had. They are closed as well, so that a source that asks gets that answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use migrate::protocol::{Decision, DestinationMessage};
use migrate::record::{DestinationState, Record, RecordKey, RecordStore, Side, SourceState};
use migrate::resolve::{DeadSource, answer_for_dead, judge_for_dead};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use crate::clock::unix_ms;

/// First pause between two attempts to reach a destination; doubled each time.
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// Longest pause between two attempts.
const RETRY_LONGEST: Duration = Duration::from_secs(60);

/// Sends a decision to a destination.
pub(crate) trait DecisionClient {
    /// Sends `decision` about the migration of `record` to its destination, and returns the answer.
    ///
    /// # Errors
    /// If there is no answer; the text says why, for the log.
    fn deliver(
        &self,
        record: &Record,
        decision: Decision,
    ) -> impl Future<Output = Result<DestinationMessage, String>> + Send;
}

/// The result of an attempt to settle one orphan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settlement {
    /// The migration is settled, and the record says so.
    Settled,
    /// No host can decide: left to the operator.
    InDoubt,
    /// To be retried.
    Waiting,
}

/// When each orphan is due for the next attempt.
#[derive(Debug, Default)]
struct Schedule {
    due: BTreeMap<RecordKey, (Instant, Duration)>,
}

impl Schedule {
    /// Whether this orphan is due; if so, schedules its next attempt.
    fn take(&mut self, orphan: RecordKey, now: Instant) -> bool {
        let (at, wait) = self.due.entry(orphan).or_insert((now, RETRY_FIRST));
        if now < *at {
            return false;
        }
        *at = now + *wait;
        *wait = (*wait * 2).min(RETRY_LONGEST);
        true
    }

    /// Forgets all orphans that are not among `open`: they are settled.
    fn keep(&mut self, open: &[Record]) {
        let open: BTreeSet<RecordKey> = open.iter().map(Record::key).collect();
        self.due.retain(|orphan, _| open.contains(orphan));
    }
}

/// Returns the source records among `records` that are not settled and whose process is dead.
pub(crate) fn orphans(records: &[Record], is_dead: impl Fn(&Record) -> bool) -> Vec<&Record> {
    let open = |record: &&Record| decision(record).is_some() && is_dead(record);
    records.iter().filter(open).collect()
}

/// Returns the destination records among `records` whose process died before its guest ran, each
/// with its new state.
pub(crate) fn dead_copies(
    records: &[Record],
    is_dead: impl Fn(&Record) -> bool,
) -> Vec<(&Record, DestinationState)> {
    let become_of = |record: &Record| match &record.side {
        Side::Destination { state, .. } => answer_for_dead(Some(*state), Decision::Commit).record,
        Side::Source { .. } => None,
    };
    records
        .iter()
        .filter_map(|record| {
            become_of(record).filter(|_| is_dead(record)).map(|state| (record, state))
        })
        .collect()
}

fn decision(record: &Record) -> Option<Decision> {
    match &record.side {
        Side::Source { state, .. } => state.decision(),
        Side::Destination { .. } => None,
    }
}

/// Settles orphans independently: a slow destination does not delay the others.
#[derive(Debug)]
pub(crate) struct Resolver<C> {
    records: RecordStore,
    client: Arc<C>,
    schedule: Schedule,
    tries: JoinSet<()>,
    /// Attempts that may still run.
    under_way: BTreeMap<RecordKey, AbortHandle>,
}

impl<C: DecisionClient + Send + Sync + 'static> Resolver<C> {
    /// Creates a resolver of orphans among `records`.
    pub(crate) fn new(records: RecordStore, client: C) -> Self {
        let (schedule, tries, under_way) = Default::default();
        Self { records, client: Arc::new(client), schedule, tries, under_way }
    }

    /// Starts an attempt for each of `orphans` that is due and not being tried. `orphans` must be
    /// complete: the retry times of all others are forgotten.
    pub(crate) fn tend(&mut self, orphans: &[Record]) {
        while let Some(tried) = self.tries.try_join_next() {
            if let Err(error) = tried {
                tracing::error!(%error, "settling a migration failed by a bug in lighter; report it; it is retried");
            }
        }
        self.under_way.retain(|_, task| !task.is_finished());
        self.schedule.keep(orphans);
        let now = Instant::now();
        for record in orphans {
            let orphan = record.key();
            if self.under_way.contains_key(&orphan) || !self.schedule.take(orphan.clone(), now) {
                continue;
            }
            let (records, record, client) =
                (self.records.clone(), record.clone(), Arc::clone(&self.client));
            let task = async move {
                settle_one(&records, &record, &*client).await;
            };
            self.under_way.insert(orphan, self.tries.spawn(task));
        }
    }
}

/// Makes one attempt for an orphan.
async fn settle_one(
    records: &RecordStore,
    record: &Record,
    client: &impl DecisionClient,
) -> Settlement {
    let (migration, guest) = (record.migration, record.guest.as_str());
    let (Side::Source { state, destination, .. }, Some(decision)) =
        (&record.side, decision(record))
    else {
        return Settlement::Settled;
    };
    let answer = match client.deliver(record, decision).await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::warn!(
                %migration, guest, destination, ?decision,
                "the source process is dead and the destination cannot be told yet: {error}"
            );
            return Settlement::Waiting;
        }
    };
    match judge_for_dead(*state, &answer) {
        DeadSource::Settled(next) => close(records, record, next, destination),
        DeadSource::InDoubt => {
            tracing::error!(
                %migration, guest, destination,
                answer = answer.name(),
                "the source process died after its commit, and the destination does not say that it runs the guest: check there"
            );
            Settlement::InDoubt
        }
        DeadSource::NoAnswer => {
            let answer = answer.name();
            tracing::warn!(%migration, guest, destination, answer, "the destination gave no answer that settles the migration");
            Settlement::Waiting
        }
    }
}

fn close(
    records: &RecordStore,
    record: &Record,
    next: SourceState,
    destination: &str,
) -> Settlement {
    let (migration, guest) = (record.migration, record.guest.as_str());
    let mut closed = record.clone();
    if let Side::Source { state, .. } = &mut closed.side {
        *state = next;
    }
    closed.updated_unix_ms = unix_ms().max(record.updated_unix_ms);
    let written = records.reopen(record).and_then(|mut file| file.write(&closed));
    if let Err(error) = written {
        tracing::error!(%migration, guest, "the migration is settled, but its record cannot be written: {error}");
        return Settlement::Waiting;
    }
    match next {
        SourceState::Done => {
            tracing::info!(%migration, guest, destination, "settled for a source process that is gone: the guest was handed over");
        }
        SourceState::Aborted
        | SourceState::Undecided
        | SourceState::Committed
        | SourceState::Serving => {
            tracing::info!(%migration, guest, destination, "settled for a source process that died: the copy on the destination is gone");
        }
    }
    Settlement::Settled
}

#[cfg(test)]
mod tests {
    use migrate::MigrationId;
    use migrate::progress::Role;
    use migrate::protocol::Takeover;
    use tokio::sync::mpsc;

    use super::super::liveness::tests::{destination_record, source_record};
    use super::*;

    /// Always gives the same answer.
    struct Parrot(Result<DestinationMessage, String>);

    impl DecisionClient for Parrot {
        async fn deliver(&self, _: &Record, _: Decision) -> Result<DestinationMessage, String> {
            self.0.clone()
        }
    }

    /// Creates a store with one record in it.
    fn store(record: &Record) -> (tempfile::TempDir, RecordStore) {
        let folder = tempfile::tempdir().unwrap();
        let store = RecordStore::open(folder.path()).unwrap();
        store.create(record).unwrap();
        (folder, store)
    }

    fn state_on_disk(store: &RecordStore, record: &Record) -> SourceState {
        match store.read(record.migration, Role::Source, |_| true).unwrap().unwrap().side {
            Side::Source { state, .. } => state,
            Side::Destination { .. } => panic!("the other side's record"),
        }
    }

    async fn try_one(
        state: SourceState,
        answer: Result<DestinationMessage, String>,
    ) -> (Settlement, SourceState) {
        let record = source_record(state, 77);
        let (_folder, store) = store(&record);
        let settlement = settle_one(&store, &record, &Parrot(answer)).await;
        (settlement, state_on_disk(&store, &record))
    }

    #[test]
    fn only_open_records_of_dead_sources_are_orphans() {
        let records = [
            source_record(SourceState::Undecided, 1),
            source_record(SourceState::Committed, 2),
            source_record(SourceState::Done, 3),
            source_record(SourceState::Aborted, 4),
            destination_record(DestinationState::Ready, 5),
            source_record(SourceState::Committed, 6),
        ];
        let pids: Vec<u32> =
            orphans(&records, |record| record.pid != 6).iter().map(|record| record.pid).collect();
        assert_eq!(pids, [1, 2]);
    }

    #[test]
    fn a_copy_that_died_before_it_ran_is_discarded() {
        let records = [
            destination_record(DestinationState::Loading, 1),
            destination_record(DestinationState::Ready, 2),
            destination_record(DestinationState::Running, 3),
            destination_record(DestinationState::Ready, 4),
        ];
        let dead = dead_copies(&records, |record| record.pid != 4);
        let found: Vec<_> = dead.iter().map(|(record, state)| (record.pid, *state)).collect();
        assert_eq!(found, [(1, DestinationState::Discarded), (2, DestinationState::Discarded)]);
    }

    #[tokio::test]
    async fn a_commit_is_settled_by_a_report_that_the_guest_runs() {
        let running = Ok(DestinationMessage::Running(Takeover::default()));
        assert_eq!(
            try_one(SourceState::Committed, running).await,
            (Settlement::Settled, SourceState::Done)
        );
    }

    #[tokio::test]
    async fn without_a_commit_it_is_settled_by_a_report_that_the_copy_is_gone() {
        let gone = Ok(DestinationMessage::Discarded);
        assert_eq!(
            try_one(SourceState::Undecided, gone).await,
            (Settlement::Settled, SourceState::Aborted)
        );
    }

    #[tokio::test]
    async fn an_unreachable_destination_leaves_the_record_as_it_is() {
        let silence = Err("no answer".to_owned());
        assert_eq!(
            try_one(SourceState::Committed, silence).await,
            (Settlement::Waiting, SourceState::Committed)
        );
    }

    #[tokio::test]
    async fn a_committed_migration_that_the_destination_does_not_know_stays_in_doubt() {
        let unknown = Ok(DestinationMessage::Unknown);
        assert_eq!(
            try_one(SourceState::Committed, unknown).await,
            (Settlement::InDoubt, SourceState::Committed)
        );
    }

    /// Never returns for one migration; for others it answers that the copy is gone.
    struct Half {
        hung: MigrationId,
        asked: mpsc::UnboundedSender<MigrationId>,
    }

    impl DecisionClient for Half {
        async fn deliver(
            &self,
            record: &Record,
            _: Decision,
        ) -> Result<DestinationMessage, String> {
            self.asked.send(record.migration).unwrap();
            if record.migration == self.hung {
                std::future::pending::<()>().await;
            }
            Ok(DestinationMessage::Discarded)
        }
    }

    #[tokio::test]
    async fn a_destination_that_hangs_keeps_no_other_waiting() {
        let (hung, new) =
            (source_record(SourceState::Undecided, 1), source_record(SourceState::Undecided, 2));
        let (_folder, store) = store(&hung);
        store.create(&new).unwrap();
        let (asked, mut heard) = mpsc::unbounded_channel();
        let mut resolver = Resolver::new(store.clone(), Half { hung: hung.migration, asked });

        resolver.tend(std::slice::from_ref(&hung));
        assert_eq!(heard.recv().await, Some(hung.migration));
        resolver.tend(&[hung.clone(), new.clone()]);
        resolver.tries.join_next().await.unwrap().unwrap();

        assert_eq!(state_on_disk(&store, &new), SourceState::Aborted);
        assert_eq!(state_on_disk(&store, &hung), SourceState::Undecided);
        resolver.schedule = Schedule::default();
        resolver.tend(&[hung]);
        drop(resolver);
        assert_eq!((heard.recv().await, heard.recv().await), (Some(new.migration), None));
    }

    #[tokio::test]
    async fn another_guests_record_with_the_same_id_blocks_no_attempt() {
        let web = source_record(SourceState::Undecided, 1);
        let forged = Record { guest: "h".to_owned(), started_unix_ms: u64::MAX, ..web.clone() };
        let (_folder, store) = store(&web);
        store.create(&forged).unwrap();
        let (asked, _heard) = mpsc::unbounded_channel();
        let hung = MigrationId::random();
        let mut resolver = Resolver::new(store.clone(), Half { hung, asked });
        resolver.tend(&[forged.clone(), web.clone()]);
        while let Some(tried) = resolver.tries.join_next().await {
            tried.unwrap();
        }
        for record in [forged, web] {
            let read = store.read(record.migration, Role::Source, |it| it.guest == record.guest);
            let Side::Source { state, .. } = read.unwrap().unwrap().side else { panic!() };
            assert_eq!(state, SourceState::Aborted, "{}", record.guest);
        }
    }

    #[test]
    fn tries_become_rarer_up_to_once_a_minute() {
        let mut schedule = Schedule::default();
        let orphan = source_record(SourceState::Committed, 1).key();
        let begin = Instant::now();
        let mut tries = Vec::new();
        for second in 0..300 {
            if schedule.take(orphan.clone(), begin + Duration::from_secs(second)) {
                tries.push(second);
            }
        }
        assert_eq!(tries, [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]);
    }
}
