//! Calls to the departing guest: on the worker's thread, except for flushes of its disks.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;

use super::super::control::Control;
use super::{Driver, Input};
use crate::failpoint::Passage;
use crate::guest::{GuestError, RunState, SourceGuest, Throttle};
use crate::source::{Event, Probe};

impl Driver {
    /// Runs a call to the guest on the worker, and reports the event it returns to the state
    /// machine.
    pub(super) fn with_guest(&self, call: impl FnOnce(&dyn SourceGuest) -> Event + Send + 'static) {
        let (guest, input_sender) = (self.guest.clone(), self.input_sender.clone());
        self.worker.run(move || {
            let _ = input_sender.send(Input::Event(call(&*guest)));
        });
    }

    /// Makes a dry run of the pause. Not on the worker's thread while the disks are flushed: calls
    /// that undo the migration must not wait for a disk.
    pub(super) fn probe(&mut self) {
        // Without a connection, as it was before.
        self.round_trip = self.line.control().map_or(self.round_trip, Control::round_trip);
        let round_trip = self.round_trip;
        let (guest, input_sender) = (self.guest.clone(), self.input_sender.clone());
        let (worker, is_called_off) = (self.worker.clone(), Arc::clone(&self.is_called_off));
        self.beside(move || {
            let flushed = flush_twice(&*guest);
            worker.run(move || {
                // The guest is no longer this migration's: its user may have paused it.
                if is_called_off.load(Ordering::Acquire) {
                    return;
                }
                let was = run_state(&*guest);
                let event = match flushed.and_then(|flush| dry_run(&*guest, was, flush)) {
                    Ok(probe) => Event::Probed(Probe { round_trip, ..probe }),
                    Err(error) => Event::PauseFailed { was, error },
                };
                let _ = input_sender.send(Input::Event(event));
            });
        });
    }

    /// Keeps a dry run that waits for a disk from touching the guest once the disk answers.
    pub(super) fn call_off(&self) {
        self.is_called_off.store(true, Ordering::Release);
    }

    /// Flushes the disks while the round is sent, unless an earlier flush is still under way:
    /// little is then left to flush during the pause. A failure is reported by the flush during the
    /// pause.
    pub(super) fn flush(&mut self) {
        let (guest, flushing) = (self.guest.clone(), self.flushing.clone());
        if flushing.swap(true, Ordering::AcqRel) {
            return;
        }
        self.beside(move || {
            if let Err(error) = guest.flush() {
                tracing::warn!(%error, "the disks are not flushed before the guest stands");
            }
            flushing.store(false, Ordering::Release);
        });
    }

    /// Flushes the disks of the paused guest. Not on the worker's thread, which must stay free for
    /// the call that resumes the guest: that must not wait for a disk.
    pub(super) fn flush_disks(&mut self, attempt: u32) {
        let (guest, input_sender) = (self.guest.clone(), self.input_sender.clone());
        let failpoints = self.line.failpoints().clone();
        self.beside(move || {
            if failpoints.reach("source.guest", "flush") == Passage::Hold {
                return;
            }
            let event = match guest.flush() {
                Ok(()) => Event::Flushed { attempt },
                Err(error) => Event::GuestFailed(error),
            };
            let _ = input_sender.send(Input::Event(event));
        });
    }

    /// Runs `call` on a separate thread. The end of the session waits for it, but not indefinitely.
    fn beside(&mut self, call: impl FnOnce() + Send + 'static) {
        let thread = spawn_blocking(call);
        self.tasks.spawn(async move {
            // A panic there has already been reported by the panic handler.
            let _ = thread.await;
        });
    }

    pub(super) fn throttle(&self, throttle: Throttle) {
        let (guest, input_sender) = (self.guest.clone(), self.input_sender.clone());
        self.worker.run(move || match guest.throttle(throttle) {
            Ok(throttled) => {
                let _ = input_sender.send(Input::Event(Event::Throttled(throttled)));
            }
            Err(error) => tracing::warn!(%error, "the guest is not slowed down"),
        });
    }

    pub(super) fn pause(&self) {
        self.with_guest(|guest| {
            let was = run_state(guest);
            match guest.pause() {
                Ok(()) => Event::Paused { was },
                Err(error) => Event::PauseFailed { was, error },
            }
        });
    }

    pub(super) fn save_state(&self) {
        self.with_guest(|guest| match guest.save_state() {
            Ok(state) => Event::StateSaved { state },
            Err(error) => Event::GuestFailed(error),
        });
    }

    pub(super) fn release(&self) {
        let guest = self.guest.clone();
        self.worker.run(move || {
            if let Err(error) = guest.release() {
                tracing::error!(%error, "the destination cannot have all of the guest");
            }
        });
    }

    pub(super) fn resume(&self) {
        self.with_guest(|guest| Event::Resumed(guest.resume()));
    }

    pub(super) fn stop_dirty_log(&self) {
        let guest = self.guest.clone();
        self.worker.run(move || {
            if let Err(error) = guest.stop_dirty_log() {
                tracing::warn!(%error, "the dirty log stays on");
            }
        });
    }
}

/// Returns whether the guest runs.
pub(in crate::session) fn run_state(guest: &dyn SourceGuest) -> RunState {
    if guest.is_running() { RunState::Running } else { RunState::Paused }
}

/// Flushes the disks of the guest before a dry run; returns the time of a flush during the pause.
pub(in crate::session) fn flush_twice(guest: &dyn SourceGuest) -> Result<Duration, GuestError> {
    // The first flush writes everything that has accumulated.
    guest.flush()?;
    let began = Instant::now();
    guest.flush()?;
    Ok(began.elapsed())
}

/// Pauses the guest, saves its state, and resumes it if it ran. Its disks have been flushed before
/// that, while it ran: see [`flush_twice`].
pub(in crate::session) fn dry_run(
    guest: &dyn SourceGuest,
    was: RunState,
    flush: Duration,
) -> Result<Probe, GuestError> {
    let began = Instant::now();
    let saved = guest.pause().and_then(|()| guest.save_state());
    let pause_and_save = began.elapsed();
    let stood = match was {
        RunState::Running => guest.resume().map(|()| began.elapsed())?,
        RunState::Paused => Duration::ZERO,
    };
    saved.map(|_| Probe { pause_and_save, stood, flush, ..Probe::default() })
}
