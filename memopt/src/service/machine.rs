//! The host that this process runs on: `/proc`, `/sys`, and a thread that drives ksmd.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::events::{Event, Observer};
use super::view::{Costs, Host, Observed};
use crate::hypervisor::Failure;
use crate::ksm::{Budget, Control, Driver, KsmError, Options, Outcome, Window};
use crate::observe::{self, Meter, ObserveError, Sources};
use crate::situation::{Guest, Hindrance};

/// Time that exact measurements may take in one inspection. At least one process is measured.
const METER_BUDGET: Duration = Duration::from_millis(10);

/// Pause between two samples of ksmd's counters.
const KSM_TICK: Duration = Duration::from_secs(1);

/// The host that this process runs on.
#[derive(Debug)]
pub struct Machine {
    sources: Sources,
    meter: Meter,
    /// The file that keeps the original settings of ksmd.
    journal: PathBuf,
    window: Option<KsmWindow>,
    observer: Arc<dyn Observer>,
}

/// ksmd, driven by a thread.
#[derive(Debug)]
struct KsmWindow {
    /// Sending a message or dropping this ends the window.
    cancel: Sender<()>,
    /// Returns the outcome of the window, unless driving failed.
    thread: JoinHandle<Option<Outcome>>,
}

impl Machine {
    /// Creates the host whose files are below `sources`. `journal` keeps the original settings of
    /// ksmd, and `observer` is notified when a window ends.
    #[must_use]
    pub const fn new(sources: Sources, journal: PathBuf, observer: Arc<dyn Observer>) -> Self {
        Self { sources, meter: Meter::new(METER_BUDGET), journal, window: None, observer }
    }
}

impl Host for Machine {
    fn observe(
        &mut self,
        guests: &mut [Guest],
        costs: &Costs<'_>,
        uptime: Duration,
    ) -> Result<Observed, ObserveError> {
        let pids: Vec<u32> = guests.iter().map(|guest| guest.pid).collect();
        let costs = match costs {
            Costs::Estimated => self.meter.estimates(&self.sources, &pids, uptime),
            Costs::Measured(is_meant) => {
                for guest in guests.iter().filter(|guest| is_meant(guest)) {
                    // A process that cannot be measured is reported below with the others.
                    let _measured = self.meter.exact(&self.sources, guest.pid, uptime);
                }
                self.meter.round(&self.sources, &pids, uptime)
            }
        };
        for (guest, cost) in guests.iter_mut().zip(costs) {
            match cost {
                Ok(metered) => guest.cost = metered.cost,
                Err(error) => {
                    tracing::debug!(guest = guest.name, %error, "cannot tell what a guest costs");
                    guest.hindrance = Some(Hindrance::Unreachable);
                }
            }
        }
        let (host, missing) = observe::host(&self.sources)?;
        Ok(Observed { host, missing: missing.iter().map(ToString::to_string).collect() })
    }

    fn recover(&mut self) -> Result<(), KsmError> {
        self.end_window();
        let (_control, restored) = Control::open(&self.sources, &self.journal)?;
        for set in &restored.restored {
            tracing::warn!("a node ended while it drove ksmd: {set} again, as before");
        }
        Ok(())
    }

    fn drive_ksm(&mut self, budget: Budget) -> Result<(), Failure> {
        self.end_window();
        let (control, _restored) = Control::open(&self.sources, &self.journal)?;
        let mut driver = Driver::new(&self.sources, control, Window::new(budget, Options::GUESTS));
        let (cancel, cancelled) = channel();
        let observer = Arc::clone(&self.observer);
        let drive = move || {
            let outcome = driver.run(KSM_TICK, &cancelled);
            match &outcome {
                Ok(outcome) => log_outcome(outcome),
                Err(error) => tracing::warn!(%error, "ksmd cannot be driven any more"),
            }
            let outcome = outcome.ok();
            observer.notice(&Event::WindowEnded(outcome.map(|outcome| outcome.end)));
            outcome
        };
        let thread = std::thread::Builder::new().name("ksm".to_owned()).spawn(drive);
        let thread = thread.map_err(|error| format!("cannot start a thread: {error}"))?;
        self.window = Some(KsmWindow { cancel, thread });
        Ok(())
    }

    fn drives_ksm(&self) -> bool {
        self.window.as_ref().is_some_and(|window| !window.thread.is_finished())
    }

    fn take_outcome(&mut self) -> Option<Outcome> {
        let ended = self.window.take_if(|window| window.thread.is_finished())?;
        ended.thread.join().ok().flatten()
    }

    fn end_window(&mut self) {
        let Some(KsmWindow { cancel, thread }) = self.window.take() else { return };
        // The thread of a window that has ended no longer receives.
        let _ = cancel.send(());
        if thread.join().is_err() {
            tracing::error!(
                "the thread that drives ksmd panicked, a bug in lighter: report it with the panic's message in this log"
            );
        }
    }

    fn resize_pool(&mut self, page_bytes: u64, pages: u64) -> Result<(), Failure> {
        let folder = format!("sys/kernel/mm/hugepages/hugepages-{}kB", page_bytes >> 10);
        let file = self.sources.path(folder).join("nr_hugepages");
        let refused = |error| format!("cannot write {}: {error}", file.display());
        Ok(fs::write(&file, pages.to_string()).map_err(refused)?)
    }
}

fn log_outcome(outcome: &Outcome) {
    tracing::info!(
        end = ?outcome.end,
        seconds = outcome.elapsed.as_secs_f64(),
        cpu_seconds = outcome.cpu.map(|cpu| cpu.as_secs_f64()),
        pages_scanned = outcome.pages_scanned,
        full_scans = outcome.full_scans,
        gain_bytes = outcome.gain_bytes,
        "the window of ksmd is over"
    );
}
