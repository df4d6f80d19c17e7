//! `lighter events`: follows the events of this host's guests, as their processes report them.

use anyhow::Result;
use migrate::quic::calendar_time;

use super::follow::interrupts;
use super::session::block_on;
use crate::api::events::Event;
use crate::cli::Output;
use crate::cli::guest::EventsArgs;
use crate::events;
use crate::exit::Exit;
use crate::output;
use crate::state_dir::StateDir;
use crate::table::printable;

/// Prints events until the user interrupts.
///
/// # Errors
/// If the state folder cannot be read, or this user may not access the guests.
pub(crate) fn run(state: &StateDir, args: &EventsArgs) -> Result<Exit> {
    if let Some(name) = args.name.as_ref().filter(|name| !state.guest(name).is_live()) {
        let last = state.ended().read(name);
        let how = last.map(|ended| format!(" (the last one {})", ended.reason)).unwrap_or_default();
        output::note(format!("no guest {name} runs here{how}: waiting for one"));
    }
    block_on(async {
        let mut interrupts = interrupts()?;
        tokio::select! {
            outcome = print_all(state, args) => outcome,
            _ = interrupts.recv() => Ok(()),
        }
    })?;
    Ok(Exit::Done)
}

/// Prints all events, until the reader of stdout closes its end.
async fn print_all(state: &StateDir, args: &EventsArgs) -> Result<()> {
    let mut events = events::follow(state, args.name.as_ref());
    while let Some(event) = events.recv().await {
        let line = line(&event?, args.json.output())?;
        if !output::write_raw(format!("{line}\n").as_bytes())? {
            break;
        }
    }
    Ok(())
}

fn line(event: &Event, output: Output) -> Result<String> {
    Ok(match output {
        Output::Json => serde_json::to_string(event)?,
        Output::Text => {
            let at_s = i64::try_from(event.time_unix_ms / 1000).unwrap_or(i64::MAX);
            let (time, what) = (calendar_time(at_s), event.what.to_string());
            format!("{time}  {}  {}", event.guest, printable(&what))
        }
    })
}
