//! `lighter events`: what becomes of the guests of this host, as it happens.
//!
//! Guests are looked at again and again, and what is different is told. Nothing is asked of them
//! that `lighter ls` would not ask, a guest that hangs holds nobody up, and who listens costs them
//! nothing. Starts over and migrations are counted by the guests and so never missed; a pause that
//! is shorter than the time between two looks is.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use migrate::progress::Role;
use migrate::quic::calendar_time;
use migrate::report::Outcome;
use migrate::{MigrationId, Report};
use serde::Serialize;
use uuid::Uuid;

use super::follow::interrupts;
use super::session::{block_on, guest_info};
use crate::api::ApiClient;
use crate::api::migration::MigrationStatus;
use crate::api::types::{GuestInfo, GuestState};
use crate::cli::Output;
use crate::cli::guest::EventsArgs;
use crate::clock::unix_ms;
use crate::exit::Exit;
use crate::names::GuestName;
use crate::output;
use crate::state_dir::{GuestDir, StateDir};
use crate::table::printable;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// How long a guest may take to answer before the others are told of.
const PATIENCE: Duration = Duration::from_secs(2);

/// Something that happened to a guest.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Event {
    /// When it was seen, in milliseconds since 1970.
    time_unix_ms: u64,
    /// The guest's name on this host.
    guest: GuestName,
    /// The guest.
    uuid: Uuid,
    #[serde(flatten)]
    what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum What {
    /// It runs here, started, restored or arrived.
    Started,
    /// It is not here any more.
    Stopped {
        /// The end of the sentence "web-1 ...".
        reason: String,
    },
    /// Its vCPUs stand still.
    Paused,
    /// They run again.
    Resumed,
    /// It started over.
    Reset {
        /// Why.
        reason: Option<String>,
    },
    /// A migration from here or to here has begun.
    MigrationStarted {
        /// Which.
        migration_id: Uuid,
    },
    /// It has come further.
    MigrationPhase {
        /// Which.
        migration_id: Uuid,
        /// How far.
        phase: String,
    },
    /// It is over.
    MigrationEnded {
        /// Which.
        migration_id: Uuid,
        /// Which side of it this host was: `source` or `destination`.
        role: Role,
        /// How it ended.
        outcome: Outcome,
        /// Why it failed, if it did.
        error: Option<String>,
    },
    /// Nobody can tell at the moment which host has the guest.
    InDoubt {
        /// Why, and what to do.
        detail: Option<String>,
    },
}

impl What {
    fn ended(report: &Report, migration_id: Uuid) -> Self {
        Self::MigrationEnded {
            migration_id,
            role: report.role,
            outcome: report.outcome,
            error: report.error.as_ref().map(|error| error.message.clone()),
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started => write!(f, "started"),
            Self::Stopped { reason } => write!(f, "stopped: it {reason}"),
            Self::Paused => write!(f, "paused"),
            Self::Resumed => write!(f, "resumed"),
            Self::Reset { reason: Some(reason) } => write!(f, "reset: {reason}"),
            Self::Reset { reason: None } => write!(f, "reset"),
            Self::MigrationStarted { migration_id } => {
                write!(f, "migration started: {migration_id}")
            }
            Self::MigrationPhase { phase, .. } => write!(f, "migration phase: {phase}"),
            Self::MigrationEnded { role, outcome, error, .. } => {
                let how = match (outcome, role) {
                    (Outcome::Migrated, Role::Source) => "the guest has left",
                    (Outcome::Migrated, Role::Destination) => "the guest has arrived",
                    (Outcome::StayedAtSource, _) => "the guest stayed at its source",
                    (Outcome::InDoubt, _) => "in doubt",
                    (Outcome::Lost, _) => "the guest is lost",
                };
                let error = error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
                write!(f, "migration ended: {how}{error}")
            }
            Self::InDoubt { detail } => {
                write!(f, "in doubt: {}", detail.as_deref().unwrap_or("no reason is known"))
            }
        }
    }
}

/// A guest as it was seen.
#[derive(Debug, Clone)]
struct Sight {
    info: GuestInfo,
    migration: Option<MigrationStatus>,
}

impl Sight {
    /// Asks one guest, which may not answer.
    async fn of(dir: GuestDir) -> Result<Option<Self>> {
        let client = ApiClient::new(&dir.client_socket()).with_patience(PATIENCE);
        let Some(info) = guest_info(dir.name(), &client).await? else { return Ok(None) };
        let migration = match info.migration_id {
            Some(_) => client.get("/v1/guest/migration").await.ok(),
            None => None,
        };
        Ok(Some(Self { info, migration }))
    }

    /// Whether the guest is on this host, and not only on its way.
    fn is_here(&self) -> bool {
        self.info.state != GuestState::Incoming
    }

    fn report(&self) -> Option<&Report> {
        self.migration.as_ref()?.report.as_ref()
    }

    /// How far a migration has come that is not over.
    fn phase(&self) -> Option<String> {
        let migration = self.migration.as_ref()?;
        let progress = migration.progress.as_ref().filter(|_| migration.report.is_none())?;
        Some(progress.phase.to_string())
    }
}

/// Tells what becomes of guests until the user has heard enough.
///
/// # Errors
/// The state folder cannot be read, or this user may not ask the guests.
pub(crate) fn run(state: &StateDir, args: &EventsArgs) -> Result<Exit> {
    block_on(async {
        let mut interrupts = interrupts()?;
        tokio::select! {
            told = tell_all(state, args) => told,
            _ = interrupts.recv() => Ok(()),
        }
    })?;
    Ok(Exit::Done)
}

/// Tells all, until nobody reads it any more.
async fn tell_all(state: &StateDir, args: &EventsArgs) -> Result<()> {
    let mut known = look(state, args, &BTreeMap::new()).await?;
    loop {
        tokio::time::sleep(PAUSE).await;
        let now = look(state, args, &known).await?;
        for event in changes(state, &known, &now) {
            let line = match args.json.output() {
                Output::Json => serde_json::to_string(&event)?,
                Output::Text => {
                    let at_s = i64::try_from(event.time_unix_ms / 1000).unwrap_or(i64::MAX);
                    let time = calendar_time(at_s);
                    format!("{time}  {}  {}", event.guest, printable(&event.what.to_string()))
                }
            };
            if !output::write_raw(format!("{line}\n").as_bytes())? {
                return Ok(());
            }
        }
        known = now;
    }
}

/// Looks at all guests that are meant. One that does not answer stands as it did.
async fn look(
    state: &StateDir,
    args: &EventsArgs,
    known: &BTreeMap<GuestName, Sight>,
) -> Result<BTreeMap<GuestName, Sight>> {
    let mut guests = state.live_guests()?;
    guests.retain(|dir| args.name.as_ref().is_none_or(|name| name == dir.name()));
    let looks = guests.into_iter().map(|dir| {
        let name = dir.name().clone();
        (name, tokio::spawn(Sight::of(dir)))
    });
    let mut sights = BTreeMap::new();
    for (name, look) in looks.collect::<Vec<_>>() {
        let sight = look.await.context("a look at a guest broke down")??;
        let sight = sight.or_else(|| known.get(&name).cloned());
        sights.extend(sight.map(|sight| (name, sight)));
    }
    Ok(sights)
}

/// What is different.
fn changes(
    state: &StateDir,
    before: &BTreeMap<GuestName, Sight>,
    now: &BTreeMap<GuestName, Sight>,
) -> Vec<Event> {
    let time_unix_ms = unix_ms();
    let mut events = Vec::new();
    let mut tell = |sight: &Sight, what: Vec<What>| {
        let (guest, uuid) = (&sight.info.name, sight.info.uuid);
        events.extend(what.into_iter().map(|what| Event {
            time_unix_ms,
            guest: guest.clone(),
            uuid,
            what,
        }));
    };
    for (name, old) in before {
        // Another process of the same name is another life.
        if now.get(name).is_none_or(|new| new.info.pid != old.info.pid) {
            tell(old, end_of(state, old));
        }
    }
    for (name, new) in now {
        let old = before.get(name).filter(|old| old.info.pid == new.info.pid);
        tell(new, differences(old, new));
    }
    events
}

/// What happened to a guest whose process lives.
fn differences(old: Option<&Sight>, new: &Sight) -> Vec<What> {
    let mut what = Vec::new();
    let (was, is) = (old.map(|old| old.info.state), new.info.state);
    let is_known = |id: Uuid| old.is_some_and(|old| old.info.migration_id == Some(id));
    if let Some(migration_id) = new.info.migration_id {
        if !is_known(migration_id) {
            what.push(What::MigrationStarted { migration_id });
        }
        let old = old.filter(|_| is_known(migration_id));
        match (old.and_then(Sight::phase), new.phase()) {
            (before, Some(phase)) if before.as_ref() != Some(&phase) => {
                what.push(What::MigrationPhase { migration_id, phase });
            }
            _ => {}
        }
        if let Some(report) = new.report()
            // One in doubt is followed by another.
            && old.and_then(Sight::report).map(|old| old.outcome) != Some(report.outcome)
        {
            what.push(What::ended(report, migration_id));
        }
    }
    if new.is_here() && !old.is_some_and(Sight::is_here) {
        what.push(What::Started);
    }
    let restarts = old.map_or(0, |old| old.info.restarts);
    for _ in restarts..new.info.restarts {
        what.push(What::Reset { reason: new.info.last_restart.clone() });
    }
    match (was, is) {
        (Some(GuestState::Running), GuestState::Paused) => what.push(What::Paused),
        (Some(GuestState::Paused), GuestState::Running) => what.push(What::Resumed),
        (was, GuestState::InDoubt) if was != Some(GuestState::InDoubt) => {
            what.push(What::InDoubt { detail: new.info.detail.clone() });
        }
        _ => {}
    }
    what
}

/// What happened to a guest whose process is gone: how its migration went is in the record, and how
/// it ended in its file.
fn end_of(state: &StateDir, old: &Sight) -> Vec<What> {
    let mut what = Vec::new();
    if let Some((MigrationId(id), report)) = last_migration(state, old) {
        let is_known = old.info.migration_id == Some(id);
        if !is_known {
            what.push(What::MigrationStarted { migration_id: id });
        }
        if !is_known || old.report().is_none() {
            what.push(What::ended(&report, id));
        }
    }
    let ended = state.ended().read(&old.info.name).filter(|ended| ended.uuid == old.info.uuid);
    let reason = ended.map_or_else(|| "process died unexpectedly".to_owned(), |ended| ended.reason);
    what.push(What::Stopped { reason });
    what
}

/// The last migration of a guest's process that is over.
fn last_migration(state: &StateDir, old: &Sight) -> Option<(MigrationId, Report)> {
    let (records, _damaged) = state.records().ok()?.list().ok()?;
    let its = records
        .into_iter()
        .filter(|record| record.pid == old.info.pid && record.guest == old.info.name.as_str());
    let last = its.max_by_key(|record| record.started_unix_ms)?;
    Some((last.migration, last.report?))
}

#[cfg(test)]
mod tests {
    use migrate::Progress;

    use super::super::summary::tests::report;
    use super::*;
    use crate::ended::{Ended, How};

    fn sight(state: GuestState) -> Sight {
        Sight { info: GuestInfo { state, ..GuestInfo::example("web") }, migration: None }
    }

    fn migrating(id: u128, report: Option<Report>) -> Sight {
        let mut sight = sight(GuestState::Migrating);
        sight.info.migration_id = Some(Uuid::from_u128(id));
        let progress = Progress::new(MigrationId(Uuid::from_u128(id)), Role::Source);
        sight.migration = Some(MigrationStatus { progress: Some(progress), report });
        sight
    }

    /// The names of what happened, as in JSON.
    fn names(what: &[What]) -> Vec<String> {
        let name = |what| serde_json::to_value(what).unwrap()["event"].as_str().unwrap().to_owned();
        what.iter().map(name).collect()
    }

    #[test]
    fn a_guest_that_comes_pauses_and_goes_on_is_told_of() {
        let (running, paused) = (sight(GuestState::Running), sight(GuestState::Paused));
        assert_eq!(differences(None, &running), [What::Started]);
        assert_eq!(differences(Some(&running), &running), []);
        assert_eq!(differences(Some(&running), &paused), [What::Paused]);
        assert_eq!(differences(Some(&paused), &running), [What::Resumed]);
        let incoming = sight(GuestState::Incoming);
        assert_eq!(differences(None, &incoming), []);
        assert_eq!(differences(Some(&incoming), &running), [What::Started]);
    }

    #[test]
    fn no_start_over_is_missed() {
        let before = sight(GuestState::Running);
        let mut after = before.clone();
        after.info.restarts = 2;
        assert_eq!(names(&differences(Some(&before), &after)), ["reset", "reset"]);
    }

    #[test]
    fn a_migration_is_told_from_its_start_to_its_end_also_when_it_was_quick() {
        let running = sight(GuestState::Running);
        let (begun, stayed) = (migrating(1, None), report(Outcome::StayedAtSource, None));
        let started = differences(Some(&running), &begun);
        assert_eq!(names(&started), ["migration-started", "migration-phase"]);
        assert_eq!(differences(Some(&begun), &begun), []);
        let over = migrating(1, Some(stayed.clone()));
        assert_eq!(names(&differences(Some(&begun), &over)), ["migration-ended"]);
        let next = migrating(2, Some(stayed));
        assert_eq!(
            names(&differences(Some(&over), &next)),
            ["migration-started", "migration-ended"]
        );

        let mut doubt = begun.clone();
        doubt.info.state = GuestState::InDoubt;
        assert_eq!(names(&differences(Some(&begun), &doubt)), ["in-doubt"]);
        assert_eq!(differences(Some(&doubt), &doubt), []);
    }

    #[test]
    fn a_guest_that_is_gone_is_told_of_with_its_own_end_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path()).unwrap();
        state.create().unwrap();
        let gone = sight(GuestState::Running);
        let mut ended = Ended {
            name: gone.info.name.clone(),
            uuid: Uuid::from_u128(7),
            began_unix_ms: 0,
            ended_unix_ms: 0,
            how: How::PoweredOff,
            reason: "powered off".to_owned(),
        };
        state.ended().create_place(&ended.name).unwrap();
        state.ended().write(&ended).unwrap();
        let stopped = |reason: &str| [What::Stopped { reason: reason.to_owned() }];
        assert_eq!(end_of(&state, &gone), stopped("process died unexpectedly"));
        ended.uuid = gone.info.uuid;
        state.ended().write(&ended).unwrap();
        assert_eq!(end_of(&state, &gone), stopped("powered off"));

        let known = BTreeMap::from([(gone.info.name.clone(), gone.clone())]);
        let mut other = gone;
        other.info.pid += 1;
        let now = BTreeMap::from([(other.info.name.clone(), other)]);
        let told: Vec<What> =
            changes(&state, &known, &now).into_iter().map(|event| event.what).collect();
        assert_eq!(names(&told), ["stopped", "started"], "another life under the same name");
    }
}
