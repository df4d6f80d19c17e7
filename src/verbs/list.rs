//! `lighter ls`: the guests of this host.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::Serialize;

use super::off::OffGuest;
use super::session::block_on;
use crate::api::ApiClient;
use crate::api::client::guest_info;
use crate::api::types::{GuestInfo, GuestState};
use crate::cli::Output;
use crate::cli::guest::ListArgs;
use crate::ended::{EndRecord, Ended};
use crate::exit::Exit;
use crate::host_certificate::note_expiry;
use crate::names::GuestName;
use crate::output;
use crate::state_dir::{Access, GuestDir, StateDir};
use crate::table::Table;
use crate::units::{format_size, format_uptime};

/// How long a guest may take to answer. One that takes longer is listed without an answer, so that
/// the others need not wait.
const PATIENCE: Duration = Duration::from_secs(2);

/// One guest of this host, as `ls` and `show` print it.
#[derive(Debug, Serialize)]
pub(crate) struct Listed {
    /// The guest's answer, or its name if it does not answer.
    #[serde(flatten)]
    pub(crate) guest: Reply,
    /// Memory that its process occupies on the host, in bytes.
    pub(crate) resident_bytes: Option<u64>,
    /// Age of its process, in seconds.
    pub(crate) uptime_s: Option<u64>,
}

/// The result of asking a guest.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Reply {
    /// The guest answered.
    Answer(Box<GuestInfo>),
    /// The guest did not answer.
    Silence {
        /// Name of the guest.
        name: GuestName,
        /// Always `no-answer`.
        state: Unheard,
        /// PID of its process, if its folder contains it.
        pid: Option<u32>,
    },
}

/// The state of a guest that does not answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Unheard {
    /// The process gave no answer in time.
    NoAnswer,
}

impl Listed {
    /// Returns the guest's name.
    pub(crate) fn name(&self) -> &GuestName {
        match &self.guest {
            Reply::Answer(info) => &info.name,
            Reply::Silence { name, .. } => name,
        }
    }

    /// Returns the PID of its process, if the guest or its folder gives it.
    pub(crate) fn pid(&self) -> Option<u32> {
        match &self.guest {
            Reply::Answer(info) => Some(info.pid),
            Reply::Silence { pid, .. } => *pid,
        }
    }

    /// Returns the guest's answer, if there is one.
    pub(crate) fn info(&self) -> Option<&GuestInfo> {
        match &self.guest {
            Reply::Answer(info) => Some(info),
            Reply::Silence { .. } => None,
        }
    }
}

/// A guest in a listing.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Entry<'a> {
    /// The guest has a process.
    Live(&'a Listed),
    /// The guest has no process, and is defined.
    Off(&'a OffGuest),
    /// The guest has ended, and is not defined.
    Past(PastGuest<'a>),
}

/// A guest that has ended.
#[derive(Debug, Serialize)]
pub(crate) struct PastGuest<'a> {
    #[serde(flatten)]
    end: End<'a>,
    state: GuestState,
}

/// How a guest has ended.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum End<'a> {
    /// The record says how.
    Known(&'a Ended),
    /// The record cannot be read.
    Unknown {
        name: &'a GuestName,
        /// What is wrong with it.
        fault: &'a str,
    },
}

impl<'a> From<&'a EndRecord> for PastGuest<'a> {
    fn from(record: &'a EndRecord) -> Self {
        let end = match &record.end {
            Ok(ended) => End::Known(ended),
            Err(fault) => End::Unknown { name: &record.name, fault: fault.as_str() },
        };
        Self { end, state: GuestState::Ended }
    }
}

/// Lists the guests of this host.
///
/// # Errors
/// If the state folder cannot be read, or this user may not access the guests.
pub(crate) fn run(state: &StateDir, args: &ListArgs) -> Result<Exit> {
    note_unused(state);
    let guests = block_on(ask_all(state.live_guests()?))?;
    note_expiry(state);
    let (off, past) = if args.all { resting(state, &guests)? } else { Default::default() };
    match args.json.output() {
        Output::Json => {
            let live = guests.iter().map(Entry::Live);
            let off = off.iter().map(Entry::Off);
            let past = past.iter().map(|record| Entry::Past(record.into()));
            output::print_json(&live.chain(off).chain(past).collect::<Vec<_>>())?;
        }
        Output::Text => {
            let of_off = off.iter().filter_map(|guest| Some((&guest.name, guest.end()?)));
            let of_past = past.iter().map(|record| (&record.name, record.end.as_ref()));
            let ends: Vec<_> = of_off.chain(of_past).collect();
            output::print(table(&guests, &off, output::columns()))?;
            if !ends.is_empty() {
                output::print(format_args!("\n{}", past_table(ends, output::columns())))?;
            }
        }
    }
    Ok(Exit::Done)
}

/// Tells the user that no guest has ever run in `state`: it may be the wrong folder.
pub(super) fn note_unused(state: &StateDir) {
    if matches!(state.root().try_exists(), Ok(false)) {
        output::note(format_args!(
            "{} does not exist: no guest has run there",
            state.root().display()
        ));
    }
}

/// Returns the guests without a process: those that are defined, and of the others those with a
/// record of how they ended.
fn resting(state: &StateDir, live: &[Listed]) -> Result<(Vec<OffGuest>, Vec<EndRecord>)> {
    let is_off = |name: &GuestName| live.iter().all(|guest| guest.name() != name);
    let mut past = state.ended().list();
    past.retain(|record| is_off(&record.name));
    let defined = match state.definitions().list() {
        Err(error) if state.access() == Access::ReadOnly => {
            output::note(format_args!("guests that are off are left out: {error:#}"));
            Vec::new()
        }
        listed => listed?,
    };
    let off = defined.into_iter().filter(|it| is_off(&it.name)).map(|definition| {
        let record = past.iter().position(|record| record.name == definition.name);
        OffGuest::new(definition, record.map(|index| past.remove(index)))
    });
    Ok((off.collect(), past))
}

/// Asks guests, all concurrently; the answers are in the guests' order.
async fn ask_all(guests: Vec<GuestDir>) -> Result<Vec<Listed>> {
    let tasks = guests.into_iter().map(|dir| tokio::spawn(async move { ask(&dir).await }));
    let tasks: Vec<_> = tasks.collect();
    let mut listed = Vec::with_capacity(tasks.len());
    for task in tasks {
        listed.push(task.await.context("cannot query a guest, by a bug in lighter; report it")??);
    }
    Ok(listed)
}

/// Asks one guest.
///
/// # Errors
/// If this user may not access the guest.
pub(crate) async fn ask(dir: &GuestDir) -> Result<Listed> {
    let client = ApiClient::new(&dir.client_socket()).with_patience(PATIENCE);
    let info = guest_info(dir.name(), &client).await?;
    let identity = || dir.read_identity().ok();
    let pid = info.as_ref().map(|info| info.pid).or_else(|| Some(identity()?.pid));
    let started =
        info.as_ref().map(|info| UNIX_EPOCH + Duration::from_millis(info.started_unix_ms));
    let silence = Reply::Silence { name: dir.name().clone(), state: Unheard::NoAnswer, pid };
    Ok(Listed {
        guest: info.map_or(silence, |info| Reply::Answer(Box::new(info))),
        resident_bytes: pid.and_then(|pid| memopt::observe::resident_bytes(pid).ok()),
        uptime_s: started
            .and_then(|at| SystemTime::now().duration_since(at).ok())
            .map(|age| age.as_secs()),
    })
}

/// Columns that a narrow terminal does without, the least important first.
const EXPENDABLE: [&str; 5] = ["PID", "VCPUS", "UPTIME", "RESIDENT", "MEMORY"];

fn table(guests: &[Listed], off: &[OffGuest], screen: Option<usize>) -> String {
    let mut table = Table::new(&["NAME", "STATE", "MEMORY", "RESIDENT", "VCPUS", "PID", "UPTIME"]);
    let size = |bytes: Option<u64>| bytes.map_or_else(none, format_size);
    for guest in guests {
        let of = |get: fn(&GuestInfo) -> String| guest.info().map_or_else(none, get);
        table.row([
            guest.name().to_string(),
            guest.info().map_or("no answer", |info| info.state.as_str()).to_owned(),
            size(guest.info().map(|info| info.memory_bytes)),
            size(guest.resident_bytes),
            of(|info| info.vcpus.to_string()),
            guest.pid().map_or_else(none, |pid| pid.to_string()),
            guest.uptime_s.map_or_else(none, |age| format_uptime(Duration::from_secs(age))),
        ]);
    }
    for guest in off {
        table.row([
            guest.name.to_string(),
            guest.state().to_owned(),
            size(guest.memory_bytes),
            none(),
            guest.vcpus.map_or_else(none, |count| count.to_string()),
            none(),
            none(),
        ]);
    }
    table.render_within(screen, &EXPENDABLE)
}

/// Returns the cell for a missing value.
fn none() -> String {
    "-".to_owned()
}

/// Formats how guests ended, or what is wrong with the records of that.
fn past_table(
    mut ends: Vec<(&GuestName, Result<&Ended, &String>)>,
    screen: Option<usize>,
) -> String {
    ends.sort_by_key(|(name, _)| *name);
    let mut table = Table::new(&["NAME", "ENDED", "HOW"]);
    for (name, end) in ends {
        let (ago, how) = match end {
            Ok(ended) => (ended.ago(), &ended.reason),
            Err(fault) => (none(), fault),
        };
        table.row([name.to_string(), ago, how.clone()]);
    }
    table.render_within(screen, &[])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::routing::get;
    use axum::{Json, Router};
    use tokio::sync::Barrier;

    use super::*;
    use crate::api::server::{Audience, Server};
    use crate::definitions::Definitions;
    use crate::ended::How;
    use crate::golden;

    #[tokio::test]
    async fn guests_are_asked_in_parallel() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path()).unwrap();
        let all_are_asked = Arc::new(Barrier::new(3));
        let (mut guests, mut servers) = (Vec::new(), Vec::new());
        for name in ["a", "b", "c"] {
            let name: GuestName = name.parse().unwrap();
            let (dir, asked) = (state.guest(&name), Arc::clone(&all_are_asked));
            std::fs::create_dir_all(dir.path()).unwrap();
            let answer = async move || {
                asked.wait().await;
                Json(GuestInfo::example(name.as_str()))
            };
            let router = Router::new().route("/v1/guest", get(answer));
            servers.push(Server::start(&dir.socket(), router, Audience::Owner).unwrap());
            guests.push(dir);
        }

        let listed = ask_all(guests).await.unwrap();

        let names: Vec<&str> = listed.iter().map(|guest| guest.name().as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert!(listed.iter().all(|guest| guest.info().is_some()), "{listed:#?}");
    }

    #[test]
    fn guests_that_do_not_answer_or_do_not_run_are_listed_as_such() {
        let name: GuestName = "web".parse().unwrap();
        let info = GuestInfo { pid: 17, state: GuestState::InDoubt, ..GuestInfo::example("web") };
        let healthy = Listed {
            guest: Reply::Answer(Box::new(info)),
            resident_bytes: Some(300 << 20),
            uptime_s: Some(61),
        };
        let guest = Reply::Silence { name, state: Unheard::NoAnswer, pid: Some(18) };
        let silent = Listed { guest, resident_bytes: None, uptime_s: None };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("db.toml");
        std::fs::write(&file, "name = \"db\"\nmemory = \"1G\"\ncpus = 2").unwrap();
        let definition = Definitions::in_folder(folder.path().to_owned()).list().unwrap().remove(0);
        let off = OffGuest::new(definition, None);
        assert_eq!(
            table(&[healthy, silent], &[off], None),
            "NAME  STATE      MEMORY   RESIDENT  VCPUS  PID  UPTIME\n\
             web   in doubt   512 MiB  300 MiB   2      17   1m 01s\n\
             web   no answer  -        -         -      18   -\n\
             db    shut off   1 GiB    -         2      -    -\n"
        );
    }
    #[test]
    fn the_list_of_guests_fits_a_narrow_terminal() {
        let guest = |name: &str, state, age| Listed {
            guest: Reply::Answer(Box::new(GuestInfo {
                pid: 1_204_331,
                state,
                memory_bytes: 8 << 30,
                vcpus: 4,
                ..GuestInfo::example(name)
            })),
            resident_bytes: Some(3_300_000_000),
            uptime_s: Some(age),
        };
        let silent = Reply::Silence {
            name: "web-1".parse().unwrap(),
            state: Unheard::NoAnswer,
            pid: Some(1_204_507),
        };
        let guests = [
            guest("billing-database-primary-eu-west", GuestState::Running, 1_040_400),
            guest("build-7", GuestState::Migrating, 245),
            Listed { guest: silent, resident_bytes: None, uptime_s: None },
        ];
        let ended = Ended {
            name: "cache-2".parse().unwrap(),
            uuid: uuid::Uuid::nil(),
            began_unix_ms: 0,
            ended_unix_ms: crate::clock::unix_ms().saturating_sub(7_500_000),
            how: How::Moved,
            reason: "moved to host-b.example.org:4950".to_owned(),
            console_bytes: 0,
        };
        let screen = Some(golden::COLUMNS);
        let past = past_table(vec![(&ended.name, Ok(&ended))], screen);
        let text = format!("{}\n{past}", table(&guests, &[], screen));
        golden::matches("ls.txt", &text);
    }
}
