//! Lighter's own guests, controlled over their API.

mod survey;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use memopt::hypervisor::{Answer, GuestRef, Hypervisor, Inspected, SurveyRequest, Surveyed, Which};
use memopt::situation::{Backing, Balloon, Guest, Hindrance, Statistics, Vmm};
use memopt::step::{Action, ChunkRange};
use tokio::task::JoinSet;
use vmm_core::memory::check_write_protection;
use vmm_core::virtio::balloon::SetBy;

use crate::api::memory::{
    BalloonLevel, GuestMemory, MemoryTreatment, TreatedMemory, TreatmentRequest,
};
use crate::api::types::{BackingInfo, BalloonInfo, BalloonRequest, BalloonStatistics, GuestState};
use crate::api::{ApiClient, AskError};
use crate::names::GuestName;
use crate::state_dir::{GuestDir, StateDir};

/// Timeout for a guest's process to report its memory.
const INSPECT_PATIENCE: Duration = Duration::from_secs(1);

/// Timeout for a guest's process to do a step: splitting merged pages copies them.
const ACT_PATIENCE: Duration = Duration::from_secs(30);

/// Timeout for a guest's process to answer a request of a survey.
const SURVEY_PATIENCE: Duration = Duration::from_secs(10);

/// The guests below a state folder.
#[derive(Debug)]
pub(crate) struct OwnGuests {
    state: StateDir,
    /// Why guests' processes lack write protection here, as far as this process can tell.
    withheld: Option<String>,
}

impl OwnGuests {
    /// The guests below `state`.
    pub(crate) fn new(state: StateDir) -> Self {
        let withheld = check_write_protection().err().map(|error| error.to_string());
        Self { state, withheld }
    }

    async fn inspect(&self, names: Option<&BTreeSet<String>>) -> Result<Inspected> {
        let mut live = self.state.live_guests()?;
        let all = live.iter().map(|guest| guest.name().to_string()).collect();
        if let Some(names) = names {
            live.retain(|guest| names.contains(guest.name().as_str()));
        }
        let mut asked: JoinSet<Option<Guest>> = live.into_iter().map(ask).collect();
        let mut guests = Vec::with_capacity(asked.len());
        while let Some(answer) = asked.join_next().await {
            guests
                .extend(answer.context("cannot inspect a guest, by a bug in lighter; report it")?);
        }
        Ok(Inspected { guests, names: all, missing: self.withheld.iter().cloned().collect() })
    }

    /// Returns the folder of `guest`; `None` if it is gone or another guest has its name by now.
    fn find(&self, guest: &GuestRef) -> Option<GuestDir> {
        let dir = self.state.guest(&guest.name.parse().ok()?);
        let is_it = |pid| dir.read_identity().is_ok_and(|identity| identity.pid == pid);
        (dir.is_live() && guest.pid.is_none_or(is_it)).then_some(dir)
    }

    fn client(&self, guest: &GuestRef, patience: Duration) -> Result<ApiClient> {
        let found = self.find(guest).with_context(|| {
            format!("guest {guest} is gone, or was restarted since the plan was made")
        })?;
        Ok(ApiClient::new(&found.socket()).with_patience(patience))
    }

    async fn act(&self, guest: &GuestRef, action: &Action) -> Result<()> {
        let client = self.client(guest, ACT_PATIENCE)?;
        let (treatment, chunks) = match action {
            Action::SetBalloon { to_bytes, .. } => return set_balloon(&client, *to_bytes).await,
            Action::Merge { chunks, .. } => (MemoryTreatment::Merge, Some(chunks)),
            Action::Unmerge { chunks, .. } => (MemoryTreatment::Unmerge, chunks.as_ref()),
            Action::MakeHuge { chunks, .. } => (MemoryTreatment::Collapse, Some(chunks)),
            Action::RemergeTemplate { chunks, .. } => (MemoryTreatment::Share, Some(chunks)),
            Action::DropZeros { chunks, .. } => (MemoryTreatment::DropZeros, Some(chunks)),
            Action::DriveKsm { .. } | Action::StopKsm { .. } | Action::ResizePool { .. } => {
                bail!("that is done to the host, not to a guest")
            }
        };
        treat(&client, treatment, chunks.map(Vec::as_slice)).await
    }
}

impl Hypervisor for OwnGuests {
    fn inspect<'a>(&'a self, which: Which<'a>) -> Answer<'a, Inspected> {
        Box::pin(async move { Ok(self.inspect(which.names).await?) })
    }

    fn has(&self, guest: &GuestRef) -> bool {
        self.find(guest).is_some()
    }

    fn act<'a>(&'a self, guest: &'a GuestRef, action: &'a Action) -> Answer<'a, ()> {
        Box::pin(async move { Ok(self.act(guest, action).await?) })
    }

    fn survey<'a>(&'a self, guest: &'a Guest, request: SurveyRequest) -> Answer<'a, Surveyed> {
        Box::pin(async move {
            let client = self.client(&guest.into(), SURVEY_PATIENCE)?;
            Ok(survey::survey(client, guest, request).await?)
        })
    }
}

async fn set_balloon(client: &ApiClient, target_bytes: u64) -> Result<()> {
    let before = client.get::<GuestMemory>("/v1/guest/memory").await;
    let keeps_it = |before: GuestMemory| before.balloon.is_none_or(|it| it.set_by.is_some());
    // Older processes reject `set_by`, so it is omitted.
    let set_by = before.map_or(true, keeps_it).then_some(SetBy::Optimizer);
    let request = BalloonRequest { target_bytes, set_by };
    let _level: BalloonInfo = client.put_json("/v1/guest/balloon", &request).await?;
    Ok(())
}

async fn treat(
    client: &ApiClient,
    treatment: MemoryTreatment,
    chunks: Option<&[ChunkRange]>,
) -> Result<()> {
    let chunks = chunks.map(|chunks| chunks.iter().map(|it| (it.first, it.count)).collect());
    let request = TreatmentRequest { treatment, chunks };
    let treated: TreatedMemory = client.put_json("/v1/guest/memory", &request).await?;
    match treated.error {
        Some(error) => bail!("{} of the chunks: {error}", treated.chunks),
        None => Ok(()),
    }
}

/// Inspects one guest; `None` if it ended meanwhile.
async fn ask(dir: GuestDir) -> Option<Guest> {
    let client = ApiClient::new(&dir.socket()).with_patience(INSPECT_PATIENCE);
    let answer = client.get::<GuestMemory>("/v1/guest/memory").await;
    match answer {
        Ok(memory) => Some(guest(memory)),
        Err(error) if error.is_gone() => None,
        Err(error) => {
            tracing::debug!(guest = %dir.name(), %error, "a guest does not answer");
            // It has no memory of its own yet, or does not answer: either way it must not be
            // touched.
            let refused = matches!(error, AskError::Refused(_));
            let hindrance = if refused { Hindrance::Migrating } else { Hindrance::Unreachable };
            let pid = dir.read_identity().ok()?.pid;
            Some(Guest { hindrance: Some(hindrance), ..unknown(dir.name(), pid) })
        }
    }
}

fn unknown(name: &GuestName, pid: u32) -> Guest {
    Guest::unknown(name.to_string(), Vmm::Lighter, pid)
}

fn guest(memory: GuestMemory) -> Guest {
    Guest {
        memory_bytes: memory.memory_bytes,
        backing: backing(&memory.backing),
        balloon: memory.balloon.map(balloon),
        is_mergeable: memory.backing.mergeable,
        is_preallocated: memory.backing.prealloc,
        hindrance: hindrance(&memory),
        merge_domain: memory.backing.merge_domain,
        merged_instead: memory.backing.merged_instead,
        labels: memory.labels,
        since_boot: memory.since_boot_ms.map(Duration::from_millis),
        ..unknown(&memory.name, memory.pid)
    }
}

fn hindrance(memory: &GuestMemory) -> Option<Hindrance> {
    match memory.state {
        GuestState::Running if memory.is_being_saved => Some(Hindrance::Saving),
        GuestState::Running if memory.backing.pinned => Some(Hindrance::Pinned),
        GuestState::Running => None,
        GuestState::Paused => Some(Hindrance::Paused),
        GuestState::Incoming | GuestState::Migrating | GuestState::InDoubt => {
            Some(Hindrance::Migrating)
        }
        GuestState::Ended => Some(Hindrance::Unreachable),
    }
}

fn backing(backing: &BackingInfo) -> Backing {
    match backing.huge_pages().pool_page_bytes() {
        Some(_) => Backing::HugePool,
        None if backing.from_template => Backing::Template,
        None => Backing::Anonymous,
    }
}

fn balloon(level: BalloonLevel) -> Balloon {
    Balloon {
        has_driver: level.has_driver,
        target_bytes: level.target_bytes,
        is_set_by_steps: level.set_by.map(|by| by == SetBy::Optimizer),
        actual_bytes: level.actual_bytes,
        reports_free_pages: level.reporting,
        reported_bytes_total: level.reported_bytes_total,
        statistics: level.statistics.map(statistics),
    }
}

fn statistics(given: BalloonStatistics) -> Statistics {
    let values = given.values;
    Statistics {
        age: Duration::from_millis(given.age_ms),
        total_bytes: values.total_bytes,
        free_bytes: values.free_bytes,
        available_bytes: values.available_bytes,
        caches_bytes: values.cache_bytes,
        swap_in_bytes: values.swap_in_bytes,
        swap_out_bytes: values.swap_out_bytes,
        major_faults: values.major_faults,
        oom_kills: values.oom_kills,
        allocation_stalls: values.allocation_stalls,
        direct_reclaim_bytes: values.direct_reclaim_bytes,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

    use super::*;

    /// Makes userfaultfd fail in this thread, as on a host that does not permit it.
    fn forbid_userfaultfd() {
        let rules = [(libc::SYS_userfaultfd, Vec::new())].into();
        let (refuse, arch) = (SeccompAction::Errno(libc::EPERM as u32), std::env::consts::ARCH);
        let arch = arch.try_into().expect("an architecture");
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch);
        let program: BpfProgram = filter.and_then(TryInto::try_into).expect("a filter");
        seccompiler::apply_filter(&program).expect("filters");
    }

    #[test]
    fn a_guest_with_a_device_of_its_host_has_a_hindrance_whatever_its_merge_domain() {
        let hindrance_of = |pinned| {
            let merge_domain = Some("red".to_owned());
            let memory = GuestMemory {
                name: "web-1".parse().expect("a name"),
                pid: 1,
                state: GuestState::Running,
                is_being_saved: false,
                memory_bytes: 1 << 30,
                backing: BackingInfo { merge_domain, pinned, ..BackingInfo::default() },
                labels: BTreeMap::new(),
                since_boot_ms: None,
                balloon: None,
            };
            guest(memory).hindrance
        };
        assert_eq!([true, false].map(hindrance_of), [Some(Hindrance::Pinned), None]);
    }

    #[test]
    fn facilities_withheld_from_guests_are_named() {
        let missing = || {
            let (_folder, state) = StateDir::temporary();
            OwnGuests::new(state).withheld.unwrap_or_default()
        };
        let there = missing();
        assert!(!there.contains("userfaultfd"), "this test needs Linux 6.7: {there}");
        let refused = std::thread::spawn(move || {
            forbid_userfaultfd();
            missing()
        });
        let refused = refused.join().expect("an answer");
        let named = "which needs Linux 6.7 (userfaultfd: Operation not permitted";
        assert!(refused.contains(named), "{refused}");
    }
}
