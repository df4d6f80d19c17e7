//! `lighter stats`: what guests use of the host, sample by sample.
//!
//! A sample asks all guests, and reads the counters of their processes ([`usage`]). Two samples
//! give the rates. [`screen`] draws the table again and again in the same place of a terminal.

mod screen;
mod usage;

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use serde::Serialize;
use tokio::time::sleep;

use self::screen::Screen;
use self::usage::{Counters, Rates, rates};
use super::follow::interrupts;
use super::list::{Listed, Unheard, ask, note_unused};
use super::session::block_on;
use crate::api::types::GuestState;
use crate::cli::Output;
use crate::cli::watch::StatsArgs;
use crate::clock::unix_ms;
use crate::exit::Exit;
use crate::names::GuestName;
use crate::output;
use crate::state_dir::{GuestDir, StateDir};
use crate::table::Table;
use crate::units::format_size;

/// Longest time between the first two samples, so that the first result comes soon.
const FIRST_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Prints samples until the user interrupts, the guests that were named are gone, or the reader of
/// stdout has closed its end; with `--no-stream` one.
///
/// # Errors
/// If a guest that was named does not run here, or this user may not access the guests.
pub(crate) fn run(state: &StateDir, args: &StatsArgs) -> Result<Exit> {
    note_unused(state);
    for name in &args.names {
        state.live_guest(name)?;
    }
    let mut printer = Printer::new(args);
    if args.no_stream {
        block_on(print_samples(state, args, &mut printer))?;
        return Ok(Exit::Done);
    }
    block_on(async {
        let mut interrupts = interrupts()?;
        tokio::select! {
            outcome = print_samples(state, args, &mut printer) => outcome,
            _ = interrupts.recv() => Ok(()),
        }
    })?;
    printer.finish()?;
    Ok(Exit::Done)
}

async fn print_samples(state: &StateDir, args: &StatsArgs, printer: &mut Printer) -> Result<()> {
    let mut before = sample(state, &args.names).await?;
    let mut pause = args.interval.min(FIRST_PAUSE_MAX);
    loop {
        sleep(pause).await;
        let after = sample(state, &args.names).await?;
        let guests: Vec<Usage> = after.iter().map(|seen| Usage::new(&before, seen)).collect();
        let is_over = guests.is_empty() && !args.names.is_empty();
        let is_read = printer.print(guests)?;
        if is_over || args.no_stream || !is_read {
            return Ok(());
        }
        before = after;
        pause = args.interval;
    }
}

/// A guest in one sample.
#[derive(Debug)]
struct Seen {
    listed: Listed,
    counters: Counters,
    at: Instant,
}

/// Asks the guests of these names, or all guests, concurrently.
async fn sample(state: &StateDir, names: &[GuestName]) -> Result<Vec<Seen>> {
    let mut guests = state.live_guests()?;
    guests.retain(|guest| names.is_empty() || names.contains(guest.name()));
    let seen = try_join_all(guests.iter().map(see)).await?;
    Ok(seen.into_iter().flatten().collect())
}

/// Asks one guest; `None` if it has just ended.
async fn see(dir: &GuestDir) -> Result<Option<Seen>> {
    let listed = ask(dir).await?;
    if listed.info().is_none() && !dir.is_live() {
        return Ok(None);
    }
    let nets = listed.info().map(|info| info.nets.as_slice()).unwrap_or_default();
    let counters = Counters::read(listed.pid(), nets);
    Ok(Some(Seen { listed, counters, at: Instant::now() }))
}

/// One sample, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Document {
    /// When the sample was taken, in milliseconds since 1970.
    time_unix_ms: u64,
    guests: Vec<Usage>,
}

/// What a guest uses.
#[derive(Debug, Serialize)]
struct Usage {
    name: GuestName,
    state: State,
    pid: Option<u32>,
    vcpus: Option<u8>,
    /// Guest memory, in bytes.
    memory_bytes: Option<u64>,
    /// Memory that its process occupies on the host, in bytes.
    resident_bytes: Option<u64>,
    #[serde(flatten)]
    rates: Rates,
}

/// The state of a guest, whether or not it answers.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum State {
    Known(GuestState),
    Unknown(Unheard),
}

impl Usage {
    /// Returns what a guest uses now, compared with a sample `before`, in which it need not be.
    fn new(before: &[Seen], now: &Seen) -> Self {
        let (name, info) = (now.listed.name(), now.listed.info());
        let earlier = before.iter().find(|seen| seen.listed.name() == name);
        let rates = earlier.map(|earlier| {
            rates(&earlier.counters, &now.counters, now.at.saturating_duration_since(earlier.at))
        });
        Self {
            name: name.clone(),
            state: info.map_or(State::Unknown(Unheard::NoAnswer), |info| State::Known(info.state)),
            pid: now.listed.pid(),
            vcpus: info.map(|info| info.vcpus),
            memory_bytes: info.map(|info| info.memory_bytes),
            resident_bytes: now.listed.resident_bytes,
            rates: rates.unwrap_or_default(),
        }
    }
}

fn table(guests: &[Usage]) -> String {
    let titles =
        ["NAME", "CPU %", "RESIDENT / MEMORY", "NET RX/s", "NET TX/s", "DISK RD/s", "DISK WR/s"];
    let mut table = Table::new(&titles);
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), format_size);
    for guest in guests {
        let rates = &guest.rates;
        let cpu = rates.cpu_percent.map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:.1}"));
        table.row([
            guest.name.to_string(),
            cpu,
            format!("{} / {}", size(guest.resident_bytes), size(guest.memory_bytes)),
            size(rates.network_receive_bytes_per_s),
            size(rates.network_transmit_bytes_per_s),
            size(rates.disk_read_bytes_per_s),
            size(rates.disk_write_bytes_per_s),
        ]);
    }
    table.render()
}

/// How samples are printed.
#[derive(Debug)]
enum Printer {
    /// One JSON document, or one table.
    Once(Output),
    /// A JSON document in each line.
    Lines,
    /// A table for each sample, with an empty line between them.
    Tables { is_first: bool },
    /// One table on a terminal, which is updated.
    Screen(Screen),
}

impl Printer {
    fn new(args: &StatsArgs) -> Self {
        match args.json.output() {
            output if args.no_stream => Self::Once(output),
            Output::Json => Self::Lines,
            Output::Text if io::stdout().is_terminal() => Self::Screen(Screen::default()),
            Output::Text => Self::Tables { is_first: true },
        }
    }

    /// Prints a sample; returns false if the reader of stdout has closed its end.
    fn print(&mut self, guests: Vec<Usage>) -> Result<bool> {
        match self {
            Self::Once(Output::Json) => {
                output::print_json(&Document { time_unix_ms: unix_ms(), guests })?;
                Ok(true)
            }
            Self::Once(Output::Text) => output::print(table(&guests)).map(|()| true),
            Self::Lines => {
                let document = Document { time_unix_ms: unix_ms(), guests };
                let line =
                    serde_json::to_string(&document).context("cannot print the result as JSON")?;
                output::write_raw(format!("{line}\n").as_bytes())
            }
            Self::Tables { is_first } => {
                let gap = if std::mem::take(is_first) { "" } else { "\n" };
                output::write_raw(format!("{gap}{}", table(&guests)).as_bytes())
            }
            Self::Screen(screen) => {
                let frame = screen.frame(&table(&guests), screen::size());
                output::write_raw(frame.as_bytes())
            }
        }
    }

    /// Leaves the terminal with the cursor below the table.
    fn finish(&self) -> Result<()> {
        match self {
            // The terminal may have echoed `^C` in this line.
            Self::Screen(_) => output::print("\n"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(name: &str) -> Usage {
        Usage {
            name: name.parse().unwrap(),
            state: State::Known(GuestState::Running),
            pid: Some(17),
            vcpus: Some(2),
            memory_bytes: Some(1023 << 20),
            resident_bytes: Some(1023 << 20),
            rates: Rates {
                cpu_percent: Some(99.96),
                network_receive_bytes_per_s: Some(1023 << 10),
                network_transmit_bytes_per_s: None,
                disk_read_bytes_per_s: Some(0),
                disk_write_bytes_per_s: Some(1023 << 10),
            },
        }
    }

    #[test]
    fn the_table_has_what_is_known_and_fits_80_columns() {
        let silent = Usage {
            state: State::Unknown(Unheard::NoAnswer),
            memory_bytes: None,
            resident_bytes: None,
            rates: Rates::default(),
            ..usage("db")
        };
        let text = table(&[usage("web-front1"), silent]);
        assert_eq!(
            text,
            "NAME        CPU %  RESIDENT / MEMORY    NET RX/s  NET TX/s  DISK RD/s  DISK WR/s\n\
             web-front1  100.0  1023 MiB / 1023 MiB  1023 KiB  -         0 B        1023 KiB\n\
             db          -      - / -                -         -         -          -\n"
        );
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    }

    #[test]
    fn a_guest_that_does_not_answer_has_the_state_of_ls() {
        let silent = Usage { state: State::Unknown(Unheard::NoAnswer), ..usage("db") };
        let shown = serde_json::to_value([usage("web"), silent]).unwrap();
        assert_eq!(
            (&shown[0]["state"], &shown[1]["state"]),
            (&"running".into(), &"no-answer".into())
        );
        assert_eq!(shown[0]["disk_read_bytes_per_s"], 0, "{shown:#}");
        assert_eq!(shown[0]["network_transmit_bytes_per_s"], serde_json::Value::Null, "{shown:#}");
    }
}
