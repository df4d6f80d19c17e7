//! `lighter events`: what happens to the guests of this host, as their processes tell it.

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

/// Tells what happens to guests until the user has heard enough.
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
