//! `lighter pause`, `resume`, `shutdown`, `reboot`, `reset` and `destroy`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::session::{END_PATIENCE, block_on, for_each, guest_client, is_gone_within};
use crate::api::types::{GuestInfo, RebootRequest, ResumeRequest, StateAnswer};
use crate::api::{ApiClient, AskError};
use crate::cli::guest::{NamesArgs, RebootArgs, ResumeArgs, ShutdownArgs};
use crate::ended::How;
use crate::exit::Exit;
use crate::names::GuestName;
use crate::output;
use crate::state_dir::{GuestDir, GuestIdentity, ProcessHandle, Settled, StateDir};
use crate::units::format_duration;

/// How long a guest's process may take to accept the request to exit.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// Pause between two requests to a guest that is waited for.
const QUESTION_PAUSE: Duration = Duration::from_millis(100);

/// Stops guests' vCPUs.
///
/// # Errors
/// If there is no such guest, or it is being migrated.
pub(crate) fn pause(state: &StateDir, args: &NamesArgs) -> Result<Exit> {
    for_each(&args.names, |name| order(state, name, "pause").map(|()| "is paused".to_owned()))
}

/// Resumes paused guests.
///
/// # Errors
/// Like [`pause`].
pub(crate) fn resume(state: &StateDir, args: &ResumeArgs) -> Result<Exit> {
    let request = ResumeRequest { unsafe_disks: args.unsafe_disks };
    for_each(&args.names, |name| {
        let client = guest_client(state, name)?;
        let asked =
            async { Ok(client.put_json::<StateAnswer>("/v1/guest/resume", &request).await?) };
        block_on(asked).with_context(|| format!("cannot resume {name}"))?;
        Ok("is resumed".to_owned())
    })
}

/// Resets guests.
///
/// # Errors
/// If there is no such guest, or it does not run.
pub(crate) fn reset(state: &StateDir, args: &NamesArgs) -> Result<Exit> {
    for_each(&args.names, |name| order(state, name, "reset").map(|()| "is reset".to_owned()))
}

/// Ends guests, and waits until their processes have exited. A process that does not answer or does
/// not exit is killed.
///
/// # Errors
/// Like [`pause`], or if a process cannot be killed.
pub(crate) fn destroy(state: &StateDir, args: &NamesArgs) -> Result<Exit> {
    for_each(&args.names, |name| end(state, name).map(|()| "is destroyed".to_owned()))
}

fn end(state: &StateDir, name: &GuestName) -> Result<()> {
    let client = guest_client(state, name)?.with_patience(ANSWER_PATIENCE);
    let guest = state.guest(name);
    let (process, identity) = (ProcessHandle::of(&guest), guest.read_identity());
    block_on(async {
        let known = process.as_ref().ok();
        let fault = match ask_to_end(&client, &guest).await {
            Ok(()) if is_gone_within(&guest, known, END_PATIENCE).await => {
                if let Ok(life) = &identity {
                    expect_record(state, &guest, life);
                }
                return Ok(());
            }
            Ok(()) => {
                format!("its process is still there {END_PATIENCE:?} after the request to end")
            }
            Err(error) if error.is_unanswered() => error.to_string(),
            Err(error) => return Err(error).with_context(|| format!("cannot end {name}")),
        };
        let cannot = || format!("cannot end {name}: {fault}");
        let process = process.with_context(cannot)?;
        // Recorded before the process is killed, so that its death is not taken for a failure.
        if let Ok(identity) = &identity {
            let reason = "was ended on request; its process did not end, and was killed";
            if let Err(error) = guest.record_end(identity, How::Destroyed, reason) {
                output::note(format_args!("{name}: its end is not recorded: {error:#}"));
            }
        }
        if let Err(error) = process.kill() {
            state.ended().forget(name);
            return Err(error).with_context(cannot);
        }
        let pid = process.id();
        output::note(format_args!("{name} does not end ({fault}): killed process {pid}"));
        if !is_gone_within(&guest, Some(&process), END_PATIENCE).await {
            bail!("process {pid} of {name} was killed, and is still there after {END_PATIENCE:?}");
        }
        Ok(())
    })
}

/// Warns if no process has recorded how the guest of the process `life` ended, which is gone.
fn expect_record(state: &StateDir, guest: &GuestDir, life: &GuestIdentity) {
    // Otherwise a later guest has the name, whose start has removed the record.
    let is_gone = guest.settle() != Settled::Live;
    let ended = state.ended().read(guest.name());
    if is_gone && !ended.is_some_and(|ended| ended.is_of(life.uuid, life.started_unix_ms)) {
        let (name, place) = (guest.name(), state.ended().place(guest.name()));
        output::note(format_args!(
            "{name}: its end is not recorded: its process could not write in {}; check that its disk is not full",
            place.display()
        ));
    }
}

/// Asks a guest's process to exit, and retries while it does not answer. A process that is gone has
/// exited.
pub(super) async fn ask_to_end(client: &ApiClient, guest: &GuestDir) -> Result<(), AskError> {
    let begun = Instant::now();
    loop {
        match client.put::<StateAnswer>("/v1/guest/stop").await {
            Err(error) if error.is_unanswered() && !guest.is_live() => return Ok(()),
            Err(error) if error.is_unanswered() && begun.elapsed() < ANSWER_PATIENCE => {
                tokio::time::sleep(QUESTION_PAUSE).await;
            }
            answer => return answer.map(drop),
        }
    }
}

/// Presses the power button of each guest, and waits until it is off.
///
/// # Errors
/// Like [`pause`], or if a guest ignores its button, or does not shut down in time.
pub(crate) fn shutdown(state: &StateDir, args: &ShutdownArgs) -> Result<Exit> {
    if !args.all {
        return for_each(&args.names, |name| press(state, name)?.await_end(state, args.timeout));
    }
    let names: Vec<_> = state.live_guests()?.iter().map(|it| it.name().clone()).collect();
    let all: Vec<_> = names.iter().map(|name| press(state, name)).collect();
    let (mut pressed, deadline) = (all.into_iter(), Instant::now() + args.timeout);
    for_each(&names, |_| {
        let pressed = pressed.next().context("one for each name")??;
        pressed.await_end(state, deadline.saturating_duration_since(Instant::now()))
    })
}

/// A guest whose power button was pressed.
struct Pressed {
    guest: GuestDir,
    process: Option<ProcessHandle>,
}

/// Presses a guest's power button.
fn press(state: &StateDir, name: &GuestName) -> Result<Pressed> {
    let client = guest_client(state, name)?;
    let guest = state.guest(name);
    let process = ProcessHandle::of(&guest).ok();
    block_on(put(&client, "shutdown")).with_context(|| format!("cannot shut {name} down"))?;
    Ok(Pressed { guest, process })
}

impl Pressed {
    /// Waits until the guest is off; returns how it ended.
    fn await_end(self, state: &StateDir, timeout: Duration) -> Result<String> {
        let name = self.guest.name();
        let is_gone =
            async { Ok(is_gone_within(&self.guest, self.process.as_ref(), timeout).await) };
        if !block_on(is_gone)? {
            bail!(
                "{name} runs on {} after its power button was pressed: it takes longer (see --timeout) or ignores the button; \
                 `lighter destroy {name}` ends it",
                format_duration(timeout)
            );
        }
        Ok(state.ended().read(name).map_or_else(|| "has ended".to_owned(), |ended| ended.reason))
    }
}

/// Presses the power button of each guest, and waits until it has shut down and boots again.
///
/// # Errors
/// Like [`shutdown`], or if a guest ended and did not boot again.
pub(crate) fn reboot(state: &StateDir, args: &RebootArgs) -> Result<Exit> {
    for_each(&args.names, |name| {
        boot_again(state, name, args.timeout).map(|()| "is rebooted".to_owned())
    })
}

fn boot_again(state: &StateDir, name: &GuestName, timeout: Duration) -> Result<()> {
    let client = guest_client(state, name)?;
    let guest = state.guest(name);
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    let restarted = block_on(async {
        let before: GuestInfo = client.get("/v1/guest").await?;
        client
            .put_json::<StateAnswer>("/v1/guest/reboot", &RebootRequest { timeout_ms })
            .await
            .with_context(|| format!("cannot reboot {name}"))?;
        let restarts = restarts_beyond(&client, &guest, before.restarts);
        Ok(tokio::time::timeout(timeout, restarts).await)
    })?;
    match restarted {
        Ok(true) => Ok(()),
        Ok(false) => {
            let how = state.ended().read(name).map(|ended| ended.reason);
            bail!("{name} {} and did not boot again", how.as_deref().unwrap_or("ended"))
        }
        Err(_) => bail!(
            "{name} runs on {} after its power button was pressed, and will not be booted again if it switches itself off later; \
             `lighter reset {name}` boots it again now",
            format_duration(timeout)
        ),
    }
}

/// Waits until the guest has restarted more than `before` times; returns false if it is gone
/// instead.
async fn restarts_beyond(client: &ApiClient, guest: &GuestDir, before: u64) -> bool {
    loop {
        match client.get::<GuestInfo>("/v1/guest").await {
            Ok(info) if info.restarts > before => return true,
            Ok(_) => {}
            Err(_) if guest.is_live() => {}
            Err(_) => return false,
        }
        tokio::time::sleep(QUESTION_PAUSE).await;
    }
}

fn order(state: &StateDir, name: &GuestName, what: &str) -> Result<()> {
    let client = guest_client(state, name)?;
    block_on(put(&client, what)).with_context(|| format!("cannot {what} {name}"))?;
    Ok(())
}

async fn put(client: &ApiClient, what: &str) -> Result<StateAnswer> {
    Ok(client.put(&format!("/v1/guest/{what}")).await?)
}
