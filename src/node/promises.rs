//! Memory that has been promised to guests on their way here and is not theirs yet.
//!
//! `MemAvailable` shrinks only as pages arrive, so without this two guests admitted one after the other could both be told
//! that there is room for them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::admission::{GuestRequest, HostView, Occupant, Refusal, decide};
use crate::names::GuestName;

/// One promise.
#[derive(Debug, Clone)]
struct Promise {
    uuid: Uuid,
    memory_bytes: u64,
    /// The process that received it; absent until it has been started.
    pid: Option<u32>,
}

/// The promises that stand.
#[derive(Debug, Default)]
pub(crate) struct Promises {
    standing: Mutex<BTreeMap<GuestName, Promise>>,
}

impl Promises {
    /// Decides over `request` and, when it may come, promises it its memory in the same breath. `host` gives the view of the
    /// host without promises, and is asked while nobody else can promise.
    ///
    /// # Errors
    /// The refusal.
    pub(crate) fn admit(
        &self,
        request: &GuestRequest,
        host: impl FnOnce() -> HostView,
    ) -> Result<(), Refusal> {
        let mut standing = self.lock();
        let mut view = host();
        view.promised_bytes = outstanding(&standing);
        let promised = standing
            .iter()
            .map(|(name, promise)| Occupant { name: name.clone(), uuid: Some(promise.uuid) });
        view.occupants.extend(promised);
        decide(request, &view)?;
        let promise = Promise { uuid: request.uuid, memory_bytes: request.memory_bytes, pid: None };
        standing.insert(request.name.clone(), promise);
        Ok(())
    }

    /// From now on what process `pid` occupies counts towards the promise.
    pub(crate) fn assign(&self, name: &GuestName, pid: u32) {
        if let Some(promise) = self.lock().get_mut(name) {
            promise.pid = Some(pid);
        }
    }

    /// The guest has arrived, or will not.
    pub(crate) fn release(&self, name: &GuestName) {
        self.lock().remove(name);
    }

    /// The guests with a promise.
    pub(crate) fn names(&self) -> Vec<GuestName> {
        self.lock().keys().cloned().collect()
    }

    /// What is promised and not occupied yet, in bytes.
    pub(crate) fn outstanding_bytes(&self) -> u64 {
        outstanding(&self.lock())
    }

    /// A thread that died in here leaves a consistent map: every change is one call.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<GuestName, Promise>> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn outstanding(standing: &BTreeMap<GuestName, Promise>) -> u64 {
    standing.values().fold(0, |sum: u64, promise| {
        let occupied =
            promise.pid.and_then(|pid| memopt::observe::resident_bytes(pid).ok()).unwrap_or(0);
        sum.saturating_add(promise.memory_bytes.saturating_sub(occupied))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::GIB;

    fn request(name: &str, id: u128) -> GuestRequest {
        GuestRequest {
            name: name.parse().unwrap(),
            uuid: Uuid::from_u128(id),
            memory_bytes: 2 * GIB,
            vcpus: 1,
        }
    }

    fn host() -> HostView {
        HostView {
            occupants: Vec::new(),
            available_bytes: 3 * GIB,
            reserved_bytes: 0,
            promised_bytes: 0,
            kvm_fault: None,
            vcpus_max: 8,
        }
    }

    #[test]
    fn the_second_guest_does_not_get_what_the_first_was_promised() {
        let promises = Promises::default();
        promises.admit(&request("a", 1), host).unwrap();
        let refusal = promises.admit(&request("b", 2), host).unwrap_err();
        assert!(
            matches!(refusal, Refusal::Memory { promised_bytes, .. } if promised_bytes == 2 * GIB),
            "{refusal}"
        );

        promises.release(&"a".parse().unwrap());
        promises.admit(&request("b", 2), host).unwrap();
    }

    #[test]
    fn a_promised_name_and_identity_are_taken() {
        let promises = Promises::default();
        promises.admit(&request("a", 1), host).unwrap();
        assert!(matches!(promises.admit(&request("a", 2), host), Err(Refusal::NameTaken { .. })));
        assert!(matches!(promises.admit(&request("b", 1), host), Err(Refusal::UuidTaken { .. })));
    }

    #[test]
    fn what_the_process_occupies_is_no_longer_outstanding() {
        let promises = Promises::default();
        promises.admit(&request("a", 1), host).unwrap();
        promises.assign(&"a".parse().unwrap(), std::process::id());
        let outstanding = promises.outstanding_bytes();
        assert!(outstanding < 2 * GIB && outstanding > 0, "{outstanding}");
    }

    #[test]
    fn a_refused_guest_is_promised_nothing() {
        let promises = Promises::default();
        let _ = promises.admit(&GuestRequest { vcpus: 9, ..request("a", 1) }, host);
        assert!(promises.names().is_empty());
    }
}
