//! `lighter console`: a guest's serial console on this terminal.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::Notify;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::{sleep, timeout};

use super::session::{block_on, guest_client};
use crate::api::types::{ConsoleInput, ConsoleRead, ConsoleTaken};
use crate::api::{ApiClient, AskError, Reason};
use crate::cli::guest::ConsoleArgs;
use crate::exit::Exit;
use crate::output;
use crate::state_dir::{GuestDir, StateDir};
use crate::terminal::{RawTerminal, pump_input};

/// How long one question for output waits.
const WAIT_MS: u64 = 20_000;

/// Key strokes, or pieces of a file that is typed, that wait for the guest's process.
const TYPED_MAX: usize = 16;

/// Before typing again what the guest had no room for.
const TYPE_PAUSE: Duration = Duration::from_millis(20);

/// How long the guest may take to read what was typed before the user left.
const LEAVE_PATIENCE: Duration = Duration::from_secs(1);

/// How long a guest that is there may leave all questions unanswered, from the first on that
/// failed.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Before asking a process again that did not answer.
const PAUSE: Duration = Duration::from_millis(100);

/// Watches a guest's console and types on it, until the guest is gone or the user leaves.
///
/// # Errors
/// There is no such guest, or it cannot be asked.
pub(crate) fn run(state: &StateDir, args: &ConsoleArgs) -> Result<Exit> {
    let client = guest_client(state, &args.name)?;
    let guest = state.guest(&args.name);
    let raw = RawTerminal::enter()?;
    if raw.is_some() {
        output::note(format_args!("{}: Ctrl-] leaves the console", args.name));
    }
    let (keys, typed) = channel(TYPED_MAX);
    let is_keyboard = raw.is_some();
    let take = move |bytes: &[u8]| match is_keyboard {
        // What the guest does not read is lost, as on a real line: Ctrl-] must be heard behind it.
        true => drop(keys.try_send(bytes.to_vec())),
        // Nobody listens any more when this process ends.
        false => drop(keys.blocking_send(bytes.to_vec())),
    };
    let left = Arc::new(Notify::new());
    let leave = Arc::clone(&left);
    pump_input(take, move || leave.notify_one())?;
    let is_gone = block_on(async {
        tokio::select! {
            watched = watch(&client, &guest) => watched,
            typed = type_until(&left, &client, typed) => typed.map(|()| false),
        }
    });
    drop(raw);
    if is_gone? {
        let how = state.ended().read(&args.name).map(|ended| ended.reason);
        output::note(format_args!("{} {}", args.name, how.as_deref().unwrap_or("is gone")));
    }
    Ok(Exit::Done)
}

/// Prints what the guest writes. Returns when the guest is gone, with true, or nobody reads this
/// any more.
async fn watch(client: &ApiClient, guest: &GuestDir) -> Result<bool> {
    let mut from = 0;
    let mut is_first = true;
    let mut silent_since = None;
    loop {
        let read = ConsoleRead { from, wait_ms: if is_first { 0 } else { WAIT_MS } };
        match client.read_console(&read).await {
            Ok(excerpt) => {
                if excerpt.from > from && !is_first {
                    let lost = excerpt.from - from;
                    output::note(format_args!("\r\n{lost} bytes were written too fast for this"));
                }
                silent_since = None;
                from = excerpt.next();
                is_first = false;
                if !output::write_raw(&excerpt.bytes)? {
                    return Ok(false);
                }
            }
            Err(error) if error.is_gone() || error.is_passing() => {
                if !guest.is_live() {
                    return Ok(true);
                }
                if silent_since.get_or_insert_with(Instant::now).elapsed() > SILENCE_MAX {
                    return Err(error).context("cannot read the console");
                }
                // It is about to end, or has no time for us at the moment.
                sleep(PAUSE).await;
            }
            Err(error) => return Err(error).context("cannot read the console"),
        }
    }
}

/// Types what stdin says, until the user leaves. The end of a file that is typed is no leave.
async fn type_until(left: &Notify, client: &ApiClient, typed: Receiver<Vec<u8>>) -> Result<()> {
    let mut typing = pin!(type_along(client, typed));
    tokio::select! {
        typed = &mut typing => {
            typed.context("cannot type on the console")?;
            left.notified().await;
        }
        () = left.notified() => drop(timeout(LEAVE_PATIENCE, typing).await),
    }
    Ok(())
}

/// Types what comes, to its end.
async fn type_along(client: &ApiClient, mut typed: Receiver<Vec<u8>>) -> Result<(), AskError> {
    while let Some(mut rest) = typed.recv().await {
        while !rest.is_empty() {
            rest = type_some(client, rest).await?;
            if !rest.is_empty() {
                sleep(TYPE_PAUSE).await;
            }
        }
    }
    Ok(())
}

/// Types as much as the guest has room for, and returns the rest: all of it while the guest is
/// being handed over.
async fn type_some(client: &ApiClient, bytes: Vec<u8>) -> Result<Vec<u8>, AskError> {
    let body = ConsoleInput { input: String::new(), bytes };
    match client.put_json::<ConsoleTaken>("/v1/guest/console", &body).await {
        Ok(taken) => Ok(body.bytes.get(taken.taken_bytes..).unwrap_or_default().to_vec()),
        Err(AskError::Refused(refusal)) if refusal.reason != Reason::Migrating => {
            Err(refusal.into())
        }
        // Whether it is gone, the watching finds out.
        Err(_) => Ok(body.bytes),
    }
}
