//! Calls to the guest that leaves: on the worker's thread, but for the flushes of its disks.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;

use super::super::control::Control;
use super::{Driver, Input};
use crate::failpoint::Passage;
use crate::guest::{GuestError, RunState, SourceGuest};
use crate::source::{Event, Probe};

impl Driver {
    /// Runs a call to the guest on the worker; what it returns is told to the machine.
    pub(super) fn with_guest(&self, call: impl FnOnce(&dyn SourceGuest) -> Event + Send + 'static) {
        let (guest, tell) = (self.guest.clone(), self.tell.clone());
        self.worker.run(move || {
            let _ = tell.send(Input::Event(call(&*guest)));
        });
    }

    pub(super) fn probe(&self) {
        let round_trip = self.line.control().map_or(Duration::ZERO, Control::round_trip);
        self.with_guest(move |guest| {
            let was = run_state(guest);
            match dry_run(guest, was) {
                Ok(probe) => Event::Probed(Probe { round_trip, ..probe }),
                Err(error) => Event::PauseFailed { was, error },
            }
        });
    }

    /// Flushes the disks beside the round that begins, unless the flush of an earlier one is still
    /// under way: little is then left to be flushed when the guest stands. A failure is told by
    /// that last flush.
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

    /// Flushes the disks of the guest that stands. The worker's thread is left to the call that
    /// lets the guest go on, which must not wait for a disk.
    pub(super) fn flush_disks(&mut self) {
        let (guest, tell) = (self.guest.clone(), self.tell.clone());
        let failpoints = self.line.failpoints().clone();
        self.beside(move || {
            if failpoints.reach("source.guest", "flush") == Passage::Hold {
                return;
            }
            let event = match guest.flush() {
                Ok(()) => Event::Flushed,
                Err(error) => Event::GuestFailed(error),
            };
            let _ = tell.send(Input::Event(event));
        });
    }

    /// Runs `call` on a thread of its own. The end of the session waits for it, but not for ever.
    fn beside(&mut self, call: impl FnOnce() + Send + 'static) {
        let thread = spawn_blocking(call);
        self.tasks.spawn(async move {
            // A panic there has been reported by the panic handler already.
            let _ = thread.await;
        });
    }

    pub(super) fn pause(&self) {
        self.limiter.lift();
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
                tracing::warn!(%error, "the dirty log goes on");
            }
        });
    }
}

fn run_state(guest: &dyn SourceGuest) -> RunState {
    if guest.is_running() { RunState::Running } else { RunState::Paused }
}

/// Pauses, saves, and lets the guest go on as it did. Its disks are flushed before that, while it
/// runs.
fn dry_run(guest: &dyn SourceGuest, was: RunState) -> Result<Probe, GuestError> {
    // The first one has all that has piled up.
    guest.flush()?;
    let began = Instant::now();
    guest.flush()?;
    let flush = began.elapsed();
    let began = Instant::now();
    let saved = guest.pause().and_then(|()| guest.save_state());
    let pause_and_save = began.elapsed();
    let stood = match was {
        RunState::Running => guest.resume().map(|()| began.elapsed())?,
        RunState::Paused => Duration::ZERO,
    };
    saved.map(|_| Probe { pause_and_save, stood, flush, ..Probe::default() })
}
