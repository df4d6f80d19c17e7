//! Processes that are not guests of this host, but whose memory the kernel may merge with that of
//! guests.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::error::ServiceError;
use crate::observe::{ObserveError, Sources, mergeable_processes, named_process};
use crate::situation::{Guest, Situation};

/// How long the result of a scan is used.
const KEPT: Duration = Duration::from_secs(300);

/// Time limit for inspecting one process. A process that waits for a hung device can hold its
/// memory map forever.
const PATIENCE: Duration = Duration::from_secs(5);

/// Time limit for inspecting all processes: before Linux 6.15, this walks their page tables.
const ALL_PATIENCE: Duration = Duration::from_secs(60);

/// Scans the host's processes from time to time, and keeps the result.
#[derive(Debug)]
pub(super) struct OtherProcesses {
    sources: Sources,
    patience: Duration,
    found: Mutex<Option<LastScan>>,
    /// The scan in progress, which may have been started for another run.
    search: tokio::sync::Mutex<Option<Search>>,
}

/// The result of a scan, and the uptime when it was made.
#[derive(Debug, Clone)]
struct LastScan {
    at: Duration,
    processes: Processes,
}

/// PID and description of each process.
type Processes = Vec<(u32, String)>;

fn failed(error: impl Into<String>) -> ServiceError {
    ServiceError::Inspect(error.into())
}

/// A scan in its own thread, which blocks in the kernel while a process cannot be inspected.
#[derive(Debug)]
struct Search {
    /// PID of the process being inspected.
    now_at: Arc<AtomicU32>,
    answer: oneshot::Receiver<Result<Processes, ObserveError>>,
}

impl OtherProcesses {
    /// Creates the scanner of the host whose files are below `sources`.
    pub(super) fn new(sources: Sources) -> Self {
        let (found, search) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { sources, patience: PATIENCE, found, search }
    }

    /// Returns a description of each mergeable process that does not belong to a mergeable guest in
    /// `situation`. Scans the processes unless this was done in the last five minutes.
    ///
    /// # Errors
    /// If the list of processes cannot be read.
    pub(super) async fn lately(&self, situation: &Situation) -> Result<Vec<String>, ServiceError> {
        let is_fresh = |found: &LastScan| situation.uptime.saturating_sub(found.at) < KEPT;
        match self.found().filter(is_fresh) {
            Some(found) => Ok(named(&found.processes, &situation.guests)),
            None => self.now(situation).await,
        }
    }

    /// Like [`Self::lately`], but always scans.
    ///
    /// # Errors
    /// See [`Self::lately`].
    pub(super) async fn now(&self, situation: &Situation) -> Result<Vec<String>, ServiceError> {
        let processes = self.inspect(&situation.guests).await?;
        let text = named(&processes, &situation.guests);
        self.keep(Some(LastScan { at: situation.uptime, processes }));
        Ok(text)
    }

    /// Like [`Self::lately`], but from the last scan, whatever its age; empty if there was none.
    pub(super) fn last(&self, situation: &Situation) -> Vec<String> {
        self.found().map_or_else(Vec::new, |found| named(&found.processes, &situation.guests))
    }

    /// Discards the last result, so that [`Self::lately`] scans again.
    pub(super) fn forget(&self) {
        self.keep(None);
    }

    async fn inspect(&self, guests: &[Guest]) -> Result<Processes, ServiceError> {
        let mut search = self.search.lock().await;
        // Wait for an earlier scan, but do not use its result: it may have missed a process.
        if let Some(before) = &mut *search
            && self.ended(before).await.is_none()
        {
            return Ok(self.stuck(before));
        }
        *search = None;
        let running = search.insert(self.begin(guests)?);
        match self.ended(running).await {
            None => Ok(self.stuck(running)),
            Some(found) => {
                *search = None;
                found
            }
        }
    }

    /// Returns the result of a scan, or `None` if one process, or all of them together, take too
    /// long.
    async fn ended(&self, search: &mut Search) -> Option<Result<Processes, ServiceError>> {
        let begun = Instant::now();
        loop {
            let at = search.now_at.load(Ordering::Relaxed);
            if let Ok(found) = timeout(self.patience, &mut search.answer).await {
                let panicked = |_| {
                    failed(
                        "the thread that inspects the host's processes panicked, a bug in lighter: report it with the log of the node",
                    )
                };
                let found = found.map_err(panicked);
                return Some(
                    found.and_then(|found| found.map_err(|error| failed(error.to_string()))),
                );
            }
            let is_stuck = at == search.now_at.load(Ordering::Relaxed);
            if is_stuck || begun.elapsed() > ALL_PATIENCE {
                return None;
            }
        }
    }

    /// Returns the process that `search` waits for, because it may be mergeable.
    fn stuck(&self, search: &Search) -> Processes {
        let pid = search.now_at.load(Ordering::Relaxed);
        let process = named_process(&self.sources, pid);
        vec![(pid, format!("{process}, whose memory cannot be inspected in time,"))]
    }

    fn begin(&self, guests: &[Guest]) -> Result<Search, ServiceError> {
        let known: Vec<u32> = mergeable(guests).collect();
        let (sender, answer) = oneshot::channel();
        let now_at = Arc::new(AtomicU32::new(0));
        let (sources, at) = (self.sources.clone(), Arc::clone(&now_at));
        let inspect = move || {
            let now_at = |pid| at.store(pid, Ordering::Relaxed);
            // The caller may no longer wait for the scan.
            let _ = sender.send(mergeable_processes(&sources, &known, now_at));
        };
        let thread = std::thread::Builder::new().name("inspect".to_owned()).spawn(inspect);
        thread.map_err(|error| failed(format!("cannot start a thread: {error}")))?;
        Ok(Search { now_at, answer })
    }

    fn found(&self) -> Option<LastScan> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep(&self, found: Option<LastScan>) {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
    }
}

/// Returns the PIDs of guests known to be mergeable, which plans already take into account.
fn mergeable(guests: &[Guest]) -> impl Iterator<Item = u32> {
    guests.iter().filter(|guest| guest.is_mergeable).map(|guest| guest.pid)
}

/// Returns the descriptions of those `processes` that do not belong to a guest known to be
/// mergeable. A guest that does not report whether it is mergeable is included.
fn named(processes: &[(u32, String)], guests: &[Guest]) -> Vec<String> {
    let is_known = |pid: u32| mergeable(guests).any(|known| known == pid);
    let strange = processes.iter().filter(|(pid, _)| !is_known(*pid));
    let text = strange.map(|(pid, process)| match guests.iter().find(|it| it.pid == *pid) {
        Some(guest) => format!("guest {}, which does not tell its merge domain,", guest.name),
        None => process.clone(),
    });
    text.collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::situation::Vmm;

    fn guest(name: &str, pid: u32, is_mergeable: bool) -> Guest {
        Guest { is_mergeable, ..Guest::unknown(name.to_owned(), Vmm::Lighter, pid) }
    }

    fn process(folder: &Path, pid: u32) -> std::path::PathBuf {
        let path = folder.join(format!("proc/{pid}"));
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("comm"), "bank\n").unwrap();
        path
    }

    #[test]
    fn a_guest_with_an_unreported_domain_is_named() {
        let processes = [7, 8, 9].map(|pid| (pid, format!("process {pid} (it)")));
        let guests = [guest("told", 8, true), guest("silent", 9, false)];
        let silent = "guest silent, which does not tell its merge domain,";
        assert_eq!(named(&processes, &guests), ["process 7 (it)", silent]);
    }

    #[tokio::test]
    async fn a_process_that_cannot_be_inspected_in_time_is_named_and_waited_for_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = process(folder.path(), 7);
        // Opening a pipe for reading blocks until another process opens it for writing.
        let pipe = path.join("ksm_stat");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        let (sources, patience) = (Sources::at(folder.path()), Duration::from_millis(500));
        let others = OtherProcesses { patience, ..OtherProcesses::new(sources) };
        let stuck = "process 7 (bank), whose memory cannot be inspected in time,".to_owned();
        // The thread may start late on a busy machine.
        while others.inspect(&[]).await.unwrap()[0].0 != 7 {}
        for _ in 0..2 {
            assert_eq!(others.inspect(&[]).await.unwrap(), [(7, stuck.clone())]);
        }
        let mut waiting = std::fs::OpenOptions::new().write(true).open(&pipe).unwrap();
        let text = "ksm_rmap_items 0\nksm_mergeable: no\n";
        std::fs::remove_file(&pipe).unwrap();
        std::fs::write(&pipe, text).unwrap();
        std::io::Write::write_all(&mut waiting, text.as_bytes()).unwrap();
        drop(waiting);
        // The scan that blocked has ended, and its result is not used.
        let others = OtherProcesses { patience: PATIENCE, ..others };
        assert_eq!(others.inspect(&[]).await.unwrap(), []);
    }
}
