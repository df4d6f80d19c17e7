//! Does the steps of a plan: asks guests' processes, drives ksmd, sizes the host's pools.

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use memopt::ksm::{Budget, Control, Driver, KsmError, Options, Outcome, Window};
use memopt::observe::Sources;
use memopt::plan::{Action, ChunkRange, Step};
use metrics::DensityCounted;
use vmm_core::virtio::balloon::SetBy;

use super::foreign::ForeignGuests;
use super::tally::of_window_end;
use crate::api::ApiClient;
use crate::api::memory::{GuestMemory, MemoryTreatment, TreatedMemory, TreatmentRequest};
use crate::api::types::{BalloonInfo, BalloonRequest};
use crate::names::GuestName;
use crate::state_dir::StateDir;

/// How long a guest's process may take: taking pages apart copies them.
const GUEST_PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at ksmd.
const KSM_TICK: Duration = Duration::from_secs(1);

/// Does what plans say.
#[derive(Debug)]
pub(super) struct Actor {
    state: StateDir,
    sources: Sources,
    /// Where it is put down how ksmd was set before.
    journal: PathBuf,
    foreign: Option<Arc<ForeignGuests>>,
    window: Mutex<Option<KsmWindow>>,
    counted: Arc<DensityCounted>,
}

/// ksmd, driven by a thread.
#[derive(Debug)]
struct KsmWindow {
    /// Dropped or told, it ends the window.
    cancel: Sender<()>,
    /// Says what it did, unless it broke down.
    thread: JoinHandle<Option<Outcome>>,
}

impl Actor {
    /// Acts on this host, on the guests below `state`, and on those that other programs run.
    pub(super) fn new(
        state: StateDir,
        foreign: Option<Arc<ForeignGuests>>,
        counted: Arc<DensityCounted>,
    ) -> Self {
        let (journal, sources) = (state.ksm_journal(), Sources::system());
        Self { state, sources, journal, foreign, window: Mutex::default(), counted }
    }

    /// Puts ksmd back to how it was set before a node was killed that drove it.
    ///
    /// # Errors
    /// It cannot be put back, or somebody else drives it.
    pub(super) fn recover(&self) -> Result<(), KsmError> {
        let (_control, restored) = Control::open(&self.sources, &self.journal)?;
        for set in &restored.restored {
            tracing::warn!("a node ended while it drove ksmd: {set} again, as before");
        }
        Ok(())
    }

    /// Does it.
    ///
    /// # Errors
    /// Why it could not be done, for people.
    pub(super) async fn perform(&self, step: &Step) -> Result<()> {
        match &step.action {
            Action::SetBalloon { to_bytes, .. } => self.set_balloon(step, *to_bytes).await,
            Action::Merge { chunks, .. } => {
                self.treat(step, MemoryTreatment::Merge, Some(chunks)).await
            }
            Action::Unmerge { chunks, .. } => {
                self.treat(step, MemoryTreatment::Unmerge, chunks.as_deref()).await
            }
            Action::MakeHuge { chunks, .. } => self.make_huge(step, chunks).await,
            Action::RemergeTemplate { chunks, .. } => {
                self.treat(step, MemoryTreatment::Share, Some(chunks)).await
            }
            Action::DropZeros { chunks, .. } => {
                self.treat(step, MemoryTreatment::DropZeros, Some(chunks)).await
            }
            Action::DriveKsm { pages_per_s, cpu, cpu_time, window, .. } => {
                let budget = Budget {
                    cpu_share: *cpu,
                    cpu_time: *cpu_time,
                    pages_per_second: *pages_per_s,
                    time: *window,
                };
                tokio::task::block_in_place(|| self.drive_ksm(budget))
            }
            Action::StopKsm { .. } => {
                tokio::task::block_in_place(|| self.end_window());
                Ok(())
            }
            Action::ResizePool { page_bytes, to_pages, .. } => {
                let folder = format!("sys/kernel/mm/hugepages/hugepages-{}kB", page_bytes >> 10);
                let file = self.sources.path(folder).join("nr_hugepages");
                fs::write(&file, to_pages.to_string())
                    .with_context(|| format!("cannot write {}", file.display()))
            }
        }
    }

    /// Whether a window is open.
    pub(super) fn drives_ksm(&self) -> bool {
        self.window().as_ref().is_some_and(|window| !window.thread.is_finished())
    }

    /// What the window did that was open and has ended by itself; told once.
    pub(super) fn take_outcome(&self) -> Option<Outcome> {
        let ended = self.window().take_if(|window| window.thread.is_finished())?;
        ended.thread.join().ok().flatten()
    }

    /// Ends the window that is open, if one is; ksmd is as it was before then.
    pub(super) fn end_window(&self) {
        let Some(KsmWindow { cancel, thread }) = self.window().take() else { return };
        // A window that has ended hears nothing any more.
        let _ = cancel.send(());
        if thread.join().is_err() {
            tracing::error!("the thread that drives ksmd broke down");
        }
    }

    async fn set_balloon(&self, step: &Step, target_bytes: u64) -> Result<()> {
        if let Some((foreign, pid)) = self.foreign(step) {
            return foreign.set_balloon(pid, target_bytes).await;
        }
        let client = self.guest(step)?;
        let before = client.get::<GuestMemory>("/v1/guest/memory").await;
        let keeps_it = |before: GuestMemory| before.balloon.is_none_or(|it| it.set_by.is_some());
        // Older processes reject `set_by`, so it is omitted.
        let set_by = before.map_or(true, keeps_it).then_some(SetBy::Optimizer);
        let request = BalloonRequest { target_bytes, set_by };
        let _level: BalloonInfo = client.put_json("/v1/guest/balloon", &request).await?;
        Ok(())
    }

    async fn make_huge(&self, step: &Step, chunks: &[ChunkRange]) -> Result<()> {
        match self.foreign(step) {
            Some((foreign, pid)) => tokio::task::block_in_place(|| foreign.make_huge(pid, chunks)),
            None => self.treat(step, MemoryTreatment::Collapse, Some(chunks)).await,
        }
    }

    async fn treat(
        &self,
        step: &Step,
        treatment: MemoryTreatment,
        chunks: Option<&[ChunkRange]>,
    ) -> Result<()> {
        let chunks = chunks.map(|chunks| chunks.iter().map(|it| (it.first, it.count)).collect());
        let request = TreatmentRequest { treatment, chunks };
        let client = self.guest(step)?;
        let treated: TreatedMemory = client.put_json("/v1/guest/memory", &request).await?;
        match treated.error {
            Some(error) => bail!("{} of the chunks: {error}", treated.chunks),
            None => Ok(()),
        }
    }

    /// The process that `step` is done to, if another program runs that guest.
    fn foreign(&self, step: &Step) -> Option<(&ForeignGuests, u32)> {
        let (foreign, pid) = (self.foreign.as_deref()?, step.pid?);
        foreign.has(pid, step.action.guest()?).then_some((foreign, pid))
    }

    /// The guest of ours that `step` is done to: not another one that has its name by now.
    fn guest(&self, step: &Step) -> Result<ApiClient> {
        let name: GuestName =
            step.action.guest().unwrap_or_default().parse().context("no name of a guest")?;
        let dir = self.state.live_guest(&name)?;
        let pid = dir.read_identity()?.pid;
        if let Some(planned) = step.pid.filter(|planned| *planned != pid) {
            bail!("the guest was restarted since the plan was made (PID {planned}, now {pid})");
        }
        Ok(ApiClient::new(&dir.socket()).with_patience(GUEST_PATIENCE))
    }

    fn drive_ksm(&self, budget: Budget) -> Result<()> {
        self.end_window();
        let (control, _restored) = Control::open(&self.sources, &self.journal)?;
        let mut driver = Driver::new(&self.sources, control, Window::new(budget, Options::GUESTS));
        let (cancel, cancelled) = channel();
        let counted = Arc::clone(&self.counted);
        let drive = move || {
            let outcome = driver.run(KSM_TICK, &cancelled);
            match &outcome {
                Ok(outcome) => tell_of(outcome),
                Err(error) => tracing::warn!(%error, "ksmd cannot be driven any more"),
            }
            let outcome = outcome.ok();
            counted.windows.inc(&(of_window_end(outcome.map(|outcome| outcome.end)),));
            outcome
        };
        let thread = std::thread::Builder::new().name("ksm".to_owned()).spawn(drive);
        let thread = thread.context("cannot start a thread")?;
        *self.window() = Some(KsmWindow { cancel, thread });
        Ok(())
    }

    fn window(&self) -> MutexGuard<'_, Option<KsmWindow>> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell_of(outcome: &Outcome) {
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
