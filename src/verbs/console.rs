//! `lighter console`: a guest's serial console on this terminal.

use std::ops::ControlFlow;
use std::pin::pin;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::Notify;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{sleep, timeout};

use super::console_output;
use super::power::ask_to_end;
use super::session::{block_on, guest_client, how_it_ended};
use crate::api::types::{ConsoleInput, ConsoleTaken, GuestInfo, GuestKind};
use crate::api::{ApiClient, AskError, Reason};
use crate::cli::guest::ConsoleArgs;
use crate::exit::{Exit, ExitWith};
use crate::names::GuestName;
use crate::output;
use crate::signals::{EndSignal, EndSignals};
use crate::state_dir::{GuestDir, StateDir};
use crate::terminal::{Keys, RawTerminal, forward_input, until_leave_key};

/// Most keystrokes, or pieces of a file on stdin, that wait for the guest's process.
const TYPED_MAX: usize = 16;

/// Pause before input for which the guest had no room is sent again.
const TYPE_PAUSE: Duration = Duration::from_millis(20);

/// How long the guest may take, after the user has left, to read what was typed before.
const LEAVE_PATIENCE: Duration = Duration::from_secs(1);

/// What keys do on the console of a guest that reads them.
const KEYS: &str = "keys go to the guest, also Ctrl-C; Ctrl-] leaves it running";

/// Time within which a second Ctrl-C ends the guest.
const TWICE_WITHIN: Duration = Duration::from_secs(5);

/// Shows a guest's console and types on it, until the guest is gone or the user leaves.
///
/// # Errors
/// If there is no such guest, or its process does not answer.
pub(crate) fn run(state: &StateDir, args: &ConsoleArgs) -> Result<Exit> {
    let view = View::new(state, &args.name, guest_client(state, &args.name)?);
    let raw = RawTerminal::enter(Keys::All)?;
    if raw.is_some() {
        output::note(format_args!("{}: {KEYS}", args.name));
    }
    let end = block_on(view.until_end(raw.is_some()))?;
    drop(raw);
    if end == End::Gone {
        output::note(how_it_ended(state, &args.name));
    }
    Ok(Exit::Done)
}

/// Shows the console of a guest that was just started in `process`, a child of this process, until
/// the guest ends or the user leaves it running. Returns how the guest's process ended.
///
/// # Errors
/// If the process does not answer, or has failed; the error says how the guest ended.
pub(crate) fn attach(state: &StateDir, name: &GuestName, mut process: Child) -> Result<Exit> {
    let view = View::new(state, name, ApiClient::new(&state.guest(name).socket()));
    let info = block_on(async { Ok(view.client.get::<GuestInfo>("/v1/guest").await.ok()) })?;
    let reads_keys = info.is_none_or(|info| info.kind != GuestKind::Workload);
    let raw = RawTerminal::enter(if reads_keys { Keys::All } else { Keys::AllButSignals })?;
    output::note(match reads_keys {
        true => format!("{name}: {KEYS}"),
        false => format!(
            "{name} runs the built-in workload; Ctrl-C twice ends it, Ctrl-] leaves it running"
        ),
    });
    let end = block_on(view.until_end_or_twice_interrupted(raw.is_some()))?;
    drop(raw);
    if end == End::Left {
        output::note(format_args!(
            "{name} keeps running; `lighter console {name}` shows its console, `lighter destroy {name}` ends it"
        ));
        return Ok(Exit::Done);
    }
    let exit = Exit::of(process.wait().context("cannot wait for the guest's process")?);
    // If the process was killed, this records that.
    view.guest.settle();
    let message = how_it_ended(state, name);
    if exit != Exit::Done {
        return Err(ExitWith { exit, message }.into());
    }
    output::note(message);
    Ok(Exit::Done)
}

/// Why a console is not shown any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The guest is gone.
    Gone,
    /// The user has left, or the reader of stdout has closed its end.
    Left,
}

/// A guest's console on this terminal.
struct View<'a> {
    state: &'a StateDir,
    name: &'a GuestName,
    guest: GuestDir,
    client: ApiClient,
}

impl<'a> View<'a> {
    fn new(state: &'a StateDir, name: &'a GuestName, client: ApiClient) -> Self {
        Self { state, name, guest: state.guest(name), client }
    }

    /// Shows the console until its end. `is_keyboard` says whether a user types.
    async fn until_end(&self, is_keyboard: bool) -> Result<End> {
        let (keys, typed) = channel(TYPED_MAX);
        let left = Arc::new(Notify::new());
        forward_keys(is_keyboard, keys, Arc::clone(&left))?;
        tokio::select! {
            end = self.watch() => end,
            typed = type_until(&left, &self.client, typed) => typed.map(|()| End::Left),
        }
    }

    /// Shows the console until its end. A user who presses Ctrl-C twice ends the guest; other
    /// signals leave it running.
    async fn until_end_or_twice_interrupted(&self, is_keyboard: bool) -> Result<End> {
        let mut signals = EndSignals::listen()?;
        let mut end = pin!(self.until_end(is_keyboard));
        let mut interrupted: Option<Instant> = None;
        loop {
            let signal = tokio::select! {
                end = &mut end => return end,
                signal = signals.next() => signal,
            };
            if signal != EndSignal::Interrupt {
                return Ok(End::Left);
            }
            if interrupted.is_some_and(|at| at.elapsed() < TWICE_WITHIN) {
                let asked = ask_to_end(&self.client, &self.guest).await;
                asked.with_context(|| format!("cannot end {}", self.name))?;
            } else {
                interrupted = Some(Instant::now());
                output::note(format_args!(
                    "\r\nCtrl-C again ends {}, and what it has not written to a disk is lost; Ctrl-] leaves it running",
                    self.name
                ));
            }
        }
    }

    /// Prints what the guest writes.
    async fn watch(&self) -> Result<End> {
        let note_lost = |bytes| {
            output::note(format_args!("\r\n{bytes} bytes were written too fast for this"));
        };
        let guest = (&self.guest, &self.client);
        let follow = console_output::follow(self.state, guest, None, output::write_raw, note_lost);
        let is_gone = follow.await?;
        Ok(if is_gone { End::Gone } else { End::Left })
    }
}

/// Passes stdin on to `keys`; notifies `left` when the user presses Ctrl-].
fn forward_keys(is_keyboard: bool, keys: Sender<Vec<u8>>, left: Arc<Notify>) -> Result<()> {
    let leave = Arc::clone(&left);
    let take = move |bytes: &[u8]| {
        let (typed, leaves) = until_leave_key(bytes);
        match is_keyboard {
            // Input that the guest does not read is dropped, as on a real serial line. Blocking
            // here would keep Ctrl-] from being read.
            true => drop(keys.try_send(typed.to_vec())),
            // The receiver is gone only when this process ends.
            false => drop(keys.blocking_send(typed.to_vec())),
        }
        if leaves {
            leave.notify_one();
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    };
    // A file on stdin ends; a terminal that ends is gone, even if this process ignores SIGHUP.
    forward_input(take, move || {
        if is_keyboard {
            left.notify_one();
        }
    })
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
