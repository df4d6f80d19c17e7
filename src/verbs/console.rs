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
use crate::terminal::{RawTerminal, forward_input};

/// How long one request for output waits.
const WAIT_MS: u64 = 20_000;

/// Most keystrokes, or pieces of a file on stdin, that wait for the guest's process.
const TYPED_MAX: usize = 16;

/// Pause before input for which the guest had no room is sent again.
const TYPE_PAUSE: Duration = Duration::from_millis(20);

/// How long the guest may take, after the user has left, to read what was typed before.
const LEAVE_PATIENCE: Duration = Duration::from_secs(1);

/// How long a live guest may leave all requests unanswered, from the first failure on.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Pause before asking a process again that did not answer.
const PAUSE: Duration = Duration::from_millis(100);

/// Shows a guest's console and types on it, until the guest is gone or the user leaves.
///
/// # Errors
/// If there is no such guest, or its process does not answer.
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
        // Input that the guest does not read is dropped, as on a real serial line. Blocking here
        // would keep Ctrl-] from being read.
        true => drop(keys.try_send(bytes.to_vec())),
        // The receiver is gone only when this process ends.
        false => drop(keys.blocking_send(bytes.to_vec())),
    };
    let left = Arc::new(Notify::new());
    let leave = Arc::clone(&left);
    forward_input(take, move || leave.notify_one())?;
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

/// Prints what the guest writes. Returns true when the guest is gone, or false when the reader of
/// stdout has closed its end.
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
            Err(error) if error.is_gone() || error.is_transient() => {
                if !guest.is_live() {
                    return Ok(true);
                }
                if silent_since.get_or_insert_with(Instant::now).elapsed() > SILENCE_MAX {
                    return Err(error).context("cannot read the console");
                }
                // The process is about to exit, or is too busy to answer.
                sleep(PAUSE).await;
            }
            Err(error) => return Err(error).context("cannot read the console"),
        }
    }
}

/// Types the input from stdin until the user leaves. The end of a file on stdin does not count as
/// leaving.
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

/// Sends all input, to its end.
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

/// Sends as much as the guest has room for, and returns the rest: all of it while the guest is
/// being handed over.
async fn type_some(client: &ApiClient, bytes: Vec<u8>) -> Result<Vec<u8>, AskError> {
    let body = ConsoleInput { input: String::new(), bytes };
    match client.put_json::<ConsoleTaken>("/v1/guest/console", &body).await {
        Ok(taken) => Ok(body.bytes.get(taken.taken_bytes..).unwrap_or_default().to_vec()),
        Err(AskError::Refused(refusal)) if refusal.reason != Reason::Migrating => {
            Err(refusal.into())
        }
        // If the guest is gone, `watch` finds out.
        Err(_) => Ok(body.bytes),
    }
}
