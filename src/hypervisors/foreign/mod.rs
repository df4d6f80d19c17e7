//! Guests of this host that other programs run: found by scanning the host's processes, controlled
//! over their monitor sockets.

mod survey;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::DirBuilder;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use memopt::foreign::{self, DiscoveredGuest, QueryOptions, Reading};
use memopt::hypervisor::{Answer, GuestRef, Hypervisor, Inspected, SurveyRequest, Surveyed, Which};
use memopt::observe::Sources;
use memopt::situation::{Guest, Hindrance, User};
use memopt::step::{Action, ChunkRange};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::task::{JoinSet, spawn_blocking};
use vmm_core::memory::make_huge;

use crate::cli::host::ForeignGuestsArg;
use crate::clock::{unix_ms, uptime};
use crate::file_lock::FileLock;
use crate::survey::CHUNK_BYTES;

/// Timeout for an answer of a monitor.
const PATIENCE: Duration = Duration::from_secs(1);

/// Timeout for a monitor to accept a new balloon size.
const SET_PATIENCE: Duration = Duration::from_secs(5);

/// Interval of balloon statistics, if no other client of the monitor has set one.
const STATISTICS_EVERY: Duration = Duration::from_secs(5);

/// How long the result of a process scan is reused.
const DISCOVERY_AGE_MAX: Duration = Duration::from_secs(10);

/// Held by the one node that handles foreign guests. It is in a folder where other users cannot
/// create it first.
const LOCK_FILE: &str = "foreign-guests.lock";

/// Guests that other programs run on this host.
#[derive(Debug)]
pub(crate) struct ForeignGuests {
    doing: ForeignGuestsArg,
    sources: Sources,
    /// Held as long as this node handles them.
    _lock: FileLock,
    register: Mutex<Register>,
}

/// Known guests by PID, because their names are not trusted.
#[derive(Debug, Default)]
struct Register {
    guests: BTreeMap<u32, Known>,
    at: Option<Duration>,
}

/// A foreign guest and what this node remembers about it.
#[derive(Debug, Clone)]
struct Known {
    found: DiscoveredGuest,
    /// The user that runs it. Kept here because the name lookup may be as slow as a directory
    /// service.
    user: Option<User>,
    /// The RAM that the monitor reported last.
    memory_bytes: u64,
    /// The balloon target that this node set: QEMU reports only a guest's actual size, not its
    /// target.
    asked_bytes: Option<u64>,
}

impl ForeignGuests {
    /// Takes over the guests that other programs run on this host; `None` if another node of this
    /// user has them.
    ///
    /// # Errors
    /// If the user has no runtime directory, or the lock cannot be created there.
    pub(crate) fn claim(doing: ForeignGuestsArg) -> Result<Option<Self>> {
        let root = nix::unistd::geteuid().is_root().then(|| PathBuf::from("/run"));
        let folder = root.or_else(|| std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from));
        Self::claim_in(&folder.context("XDG_RUNTIME_DIR is not set")?.join("lighter"), doing)
    }

    fn claim_in(folder: &Path, doing: ForeignGuestsArg) -> Result<Option<Self>> {
        let path = folder.join(LOCK_FILE);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        let lock = made
            .and_then(|()| FileLock::try_acquire(&path))
            .with_context(|| format!("cannot make {}", path.display()))?;
        let sources = Sources::system();
        Ok(lock.map(|lock| Self { doing, sources, _lock: lock, register: Mutex::default() }))
    }

    /// Returns all foreign guests, with names distinct from `own`, and the errors of those that
    /// could not be inspected.
    async fn query(&self, own: &BTreeSet<String>) -> (Vec<Guest>, Vec<String>) {
        let found = self.found(own);
        let acts = self.doing == ForeignGuestsArg::Act;
        let mut queries: JoinSet<(Known, Result<Reading, foreign::ForeignError>)> = found
            .into_iter()
            .map(|known| async move {
                let unix_seconds = unix_ms() / 1000;
                // Enabling statistics changes the guest's settings, so a node that only watches
                // does not.
                let statistics_every = acts.then_some(STATISTICS_EVERY);
                let asking = QueryOptions { patience: PATIENCE, statistics_every, unix_seconds };
                let query = foreign::query(&known.found, &asking).await;
                (known, query)
            })
            .collect();
        let (mut guests, mut complaints) = (Vec::new(), Vec::new());
        while let Some(done) = queries.join_next().await {
            let Ok((Known { found, user, .. }, query)) = done else { continue };
            if let Err(error) = &query {
                complaints.push(format!("{}: {error}", found.name));
            }
            let mut guest = Guest { user, ..guest(&found, query.ok()) };
            if let Some(known) = self.register().guests.get_mut(&found.pid) {
                known.memory_bytes = guest.memory_bytes;
                if let (Some(balloon), Some(asked)) = (&mut guest.balloon, known.asked_bytes) {
                    balloon.target_bytes = asked;
                }
            }
            if !acts {
                guest.hindrance = Some(Hindrance::Watched);
            }
            guests.push(guest);
        }
        complaints.sort();
        (guests, complaints)
    }

    async fn act(&self, guest: &GuestRef, action: &Action) -> Result<()> {
        let pid = guest.pid.context("the plan does not tell its process")?;
        match action {
            Action::SetBalloon { to_bytes, .. } => self.set_balloon(pid, *to_bytes).await,
            Action::MakeHuge { chunks, .. } => self.make_huge(pid, chunks).await,
            _ => bail!("another program runs {guest}, and alone can do that"),
        }
    }

    /// Sets the balloon so that the guest keeps `keep_bytes` of its memory.
    ///
    /// # Errors
    /// If this node only watches, or the guest is gone, cannot be reached, or has no balloon.
    async fn set_balloon(&self, pid: u32, keep_bytes: u64) -> Result<()> {
        let known = self.known(pid)?;
        let memory_bytes = known.memory_bytes;
        foreign::set_balloon(&self.sources, &known.found, memory_bytes, keep_bytes, SET_PATIENCE)
            .await?;
        if let Some(known) = self.register().guests.get_mut(&pid) {
            known.asked_bytes = Some(keep_bytes);
        }
        Ok(())
    }

    /// Collapses chunks of a guest into huge pages; their numbers are those of a survey.
    ///
    /// # Errors
    /// If this node only watches, the guest is gone, or no chunk could be collapsed.
    async fn make_huge(&self, pid: u32, chunks: &[ChunkRange]) -> Result<()> {
        let number =
            i32::try_from(pid).ok().and_then(Pid::from_raw).context("no number of a process")?;
        let process = pidfd_open(number, PidfdFlags::empty()).context("its process is gone")?;
        // Checked only now: had the PID been reused before `pidfd_open`, this check would fail. If
        // it is reused later, the pidfd still refers to the process that was checked.
        let _known = self.known(pid)?;
        let numbers = chunks.iter().flat_map(|range| range.first..range.first + range.count);
        let starts: Vec<u64> = numbers.map(|number| u64::from(number) * CHUNK_BYTES).collect();
        Ok(spawn_blocking(move || make_huge(process.as_fd(), starts.into_iter())).await??)
    }

    /// Returns a guest that is about to be changed.
    ///
    /// # Errors
    /// If this node only watches, or the guest is gone.
    fn known(&self, pid: u32) -> Result<Known> {
        ensure!(
            self.doing == ForeignGuestsArg::Act,
            "guests of other programs are only watched: start the node with --foreign-guests act"
        );
        let known = self.register().guests.get(&pid).cloned();
        known.filter(|known| known.found.is_there(&self.sources)).context("it is gone")
    }

    /// Returns the guests among the host's processes, with names distinct from `own`. Scans the
    /// processes again when the last scan is too old.
    fn found(&self, own: &BTreeSet<String>) -> Vec<Known> {
        let now = uptime();
        let mut register = self.register();
        let is_old = register.at.is_none_or(|at| now.saturating_sub(at) >= DISCOVERY_AGE_MAX);
        if is_old {
            match foreign::discover(&self.sources) {
                Ok(discovery) => {
                    register.at = Some(now);
                    register.renew(discovery.guests);
                }
                Err(error) => tracing::warn!(%error, "cannot look for guests among the processes"),
            }
        }
        let mut all: Vec<Known> = register.guests.values().cloned().collect();
        drop(register);
        let mut found: Vec<DiscoveredGuest> = all.iter().map(|known| known.found.clone()).collect();
        foreign::make_names_unique(own, &mut found);
        all.iter_mut().zip(found).for_each(|(known, found)| known.found = found);
        all
    }

    fn register(&self) -> MutexGuard<'_, Register> {
        self.register.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hypervisor for ForeignGuests {
    fn inspect<'a>(&'a self, which: Which<'a>) -> Answer<'a, Inspected> {
        Box::pin(async move {
            let (mut guests, missing) = self.query(which.taken).await;
            let names = guests.iter().map(|guest| guest.name.clone()).collect();
            if let Some(wanted) = which.names {
                guests.retain(|guest| wanted.contains(&guest.name));
            }
            Ok(Inspected { guests, names, missing })
        })
    }

    fn has(&self, guest: &GuestRef) -> bool {
        let register = self.register();
        let known = guest.pid.and_then(|pid| register.guests.get(&pid));
        known.is_some_and(|known| known.found.is_called(&guest.name))
    }

    fn act<'a>(&'a self, guest: &'a GuestRef, action: &'a Action) -> Answer<'a, ()> {
        Box::pin(async move { Ok(self.act(guest, action).await?) })
    }

    fn survey<'a>(&'a self, guest: &'a Guest, request: SurveyRequest) -> Answer<'a, Surveyed> {
        Box::pin(async move { Ok(survey::survey(guest.pid, request).await?) })
    }
}

impl Register {
    /// Replaces the guests by `found`, and keeps the state of those that were there before.
    fn renew(&mut self, found: Vec<DiscoveredGuest>) {
        let mut before = std::mem::take(&mut self.guests);
        for found in found {
            let is_it = |known: &Known| {
                let was = &known.found;
                (&was.name, was.uid, was.started) == (&found.name, found.uid, found.started)
            };
            let known = before.remove(&found.pid).filter(is_it);
            let known = known.unwrap_or_else(|| Known::new(found.clone()));
            self.guests.insert(found.pid, Known { found, ..known });
        }
    }
}

impl Known {
    fn new(found: DiscoveredGuest) -> Self {
        let (user, memory_bytes) = (found.uid.map(user), found.memory_bytes);
        Self { found, user, memory_bytes, asked_bytes: None }
    }
}

fn user(uid: u32) -> User {
    let known = nix::unistd::User::from_uid(uid.into()).ok().flatten();
    User { uid, name: known.map(|user| user.name) }
}

/// Builds the guest from the process scan and the monitor's answer, if there is one.
fn guest(found: &DiscoveredGuest, query: Option<Reading>) -> Guest {
    let mut guest = Guest {
        memory_bytes: found.memory_bytes,
        backing: found.backing,
        is_mergeable: found.is_mergeable,
        // Without an answer the guest may be doing anything, so it must not be touched.
        hindrance: Some(if found.is_incoming {
            Hindrance::Migrating
        } else {
            Hindrance::Unreachable
        }),
        since_boot: found.since_boot(uptime()),
        ..Guest::unknown(found.name.clone(), found.vmm, found.pid)
    };
    if let Some(query) = query {
        guest.memory_bytes = query.memory_bytes;
        guest.backing = query.backing;
        guest.is_mergeable = query.is_mergeable;
        guest.balloon = query.balloon;
        guest.hindrance = query.hindrance;
    }
    guest
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use memopt::foreign::Monitor;
    use memopt::situation::{Backing, Vmm};

    use super::*;

    /// A QEMU guest whose process is this one, on a host whose node does `doing` with it; its
    /// monitor, which has received no request yet; and their folder. Its recorded start time is the
    /// host's boot (0), which differs from that of this process.
    fn scene(
        doing: ForeignGuestsArg,
    ) -> (tempfile::TempDir, UnixListener, ForeignGuests, DiscoveredGuest) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("qmp");
        let monitor = UnixListener::bind(&socket).unwrap();
        monitor.set_nonblocking(true).unwrap();
        let found = DiscoveredGuest {
            pid: std::process::id(),
            started: 0,
            name: "web-1".to_owned(),
            vmm: Vmm::Qemu,
            uid: None,
            memory_bytes: 1 << 30,
            backing: Backing::Anonymous,
            is_mergeable: false,
            has_passthrough: false,
            is_incoming: false,
            monitor: Monitor::Qmp(socket),
        };
        let guests = ForeignGuests::claim_in(folder.path(), doing).unwrap().unwrap();
        guests.register().renew(vec![found.clone()]);
        (folder, monitor, guests, found)
    }

    fn called(name: &str, pid: u32) -> GuestRef {
        GuestRef { name: name.to_owned(), pid: Some(pid) }
    }

    /// Asserts that nothing is done to the guest, for the reason `why`, and that its monitor gets
    /// no request.
    async fn is_left_alone(guests: &ForeignGuests, pid: u32, monitor: &UnixListener, why: &str) {
        let chunks = [ChunkRange { first: 0, count: 1 }];
        let refusals =
            [guests.set_balloon(pid, 1 << 29).await, guests.make_huge(pid, &chunks).await];
        for refused in refusals {
            let error = format!("{:#}", refused.unwrap_err());
            assert!(error.contains(why), "{error}");
        }
        assert!(monitor.accept().is_err(), "its monitor is not asked");
    }

    #[tokio::test]
    async fn watched_guests_are_never_changed() {
        let (_folder, monitor, guests, found) = scene(ForeignGuestsArg::Watch);
        let pid = found.pid;
        assert!(guests.has(&called("web-1", pid)) && !guests.has(&called("web-1", pid + 1)));
        is_left_alone(&guests, pid, &monitor, "only watched").await;
    }

    #[tokio::test]
    async fn a_guest_whose_pid_was_reused_is_not_touched() {
        let (_folder, monitor, guests, found) = scene(ForeignGuestsArg::Act);
        let pid = found.pid;
        guests.register().guests.get_mut(&pid).unwrap().asked_bytes = Some(1 << 29);
        for (name, pid, is_it) in [
            ("web-1", pid, true),
            (&format!("web-1@{pid}"), pid, true),
            ("web-2", pid, false),
            ("web-1", pid + 1, false),
        ] {
            assert_eq!(guests.has(&called(name, pid)), is_it, "{name} {pid}");
        }
        is_left_alone(&guests, pid, &monitor, "gone").await;

        guests.register().renew(vec![DiscoveredGuest { started: 7, ..found }]);
        assert_eq!(guests.register().guests[&pid].asked_bytes, None, "that was another guest");
    }

    #[test]
    fn one_node_manages_foreign_guests_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("lighter");
        let first = ForeignGuests::claim_in(&folder, ForeignGuestsArg::Watch).unwrap();
        assert!(
            first.is_some()
                && ForeignGuests::claim_in(&folder, ForeignGuestsArg::Watch).unwrap().is_none()
        );
        drop(first);
        assert!(ForeignGuests::claim_in(&folder, ForeignGuestsArg::Watch).unwrap().is_some());
        let error =
            ForeignGuests::claim_in(&folder.join(LOCK_FILE), ForeignGuestsArg::Act).unwrap_err();
        assert!(format!("{error:#}").contains("cannot make"), "{error:#}");
    }
}
