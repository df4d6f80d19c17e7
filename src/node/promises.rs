//! Memory that is promised to arriving guests and that they do not occupy yet.
//!
//! `MemAvailable` shrinks only as pages arrive, so without promises two guests admitted in
//! succession could both be promised the same memory. Promises end with the node. The next one
//! restores them ([`Promises::restore`]) for the guests that it finds arriving.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use migrate::MigrationId;
use uuid::Uuid;

use super::admission::{GuestRequest, HostView, Occupant, Refusal, decide};
use crate::names::GuestName;

/// A promise to one guest.
#[derive(Debug, Clone)]
struct Promise {
    migration: MigrationId,
    uuid: Uuid,
    memory_bytes: u64,
    /// The process that receives the guest; absent until it has been started.
    pid: Option<u32>,
}

/// A guest with a promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expected {
    /// Name of the guest.
    pub(crate) name: GuestName,
    /// The migration that brings the guest.
    pub(crate) migration: MigrationId,
    /// Its process; absent until it has been started.
    pub(crate) pid: Option<u32>,
}

/// The current promises.
#[derive(Debug, Default)]
pub(crate) struct Promises {
    standing: Mutex<BTreeMap<GuestName, Promise>>,
}

impl Promises {
    /// Decides over `request` and, if it admits the guest with `migration`, promises its memory
    /// atomically. `host` reads the state of the host without promises; it is called while no other
    /// promise can be made.
    ///
    /// # Errors
    /// If the guest is not admitted.
    pub(crate) fn admit(
        &self,
        request: &GuestRequest,
        migration: MigrationId,
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
        let (uuid, memory_bytes) = (request.uuid, request.ordinary_bytes());
        let promise = Promise { migration, uuid, memory_bytes, pid: None };
        standing.insert(request.name.clone(), promise);
        Ok(())
    }

    /// Restores the promise of an earlier node to a guest that process `pid` is receiving.
    pub(crate) fn restore(&self, guest: &GuestRequest, migration: MigrationId, pid: u32) {
        let (uuid, memory_bytes) = (guest.uuid, guest.ordinary_bytes());
        let promise = Promise { migration, uuid, memory_bytes, pid: Some(pid) };
        self.lock().insert(guest.name.clone(), promise);
    }

    /// Sets the promise's process: what `pid` occupies counts towards the promise from now on.
    pub(crate) fn assign(&self, name: &GuestName, pid: u32) {
        if let Some(promise) = self.lock().get_mut(name) {
            promise.pid = Some(pid);
        }
    }

    /// Ends a promise, because the guest has arrived with `migration` or will not arrive. A promise
    /// for another migration of that name stays.
    pub(crate) fn release(&self, name: &GuestName, migration: MigrationId) {
        let mut standing = self.lock();
        if standing.get(name).is_some_and(|promise| promise.migration == migration) {
            standing.remove(name);
        }
    }

    /// Whether the guest with this UUID has a promise, under any name.
    pub(crate) fn expects(&self, guest: Uuid) -> bool {
        self.lock().values().any(|promise| promise.uuid == guest)
    }

    /// Returns how many guests have a promise.
    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    /// Returns the guests with a promise.
    pub(crate) fn expected(&self) -> Vec<Expected> {
        let standing = self.lock();
        let expected = standing.iter().map(|(name, promise)| Expected {
            name: name.clone(),
            migration: promise.migration,
            pid: promise.pid,
        });
        expected.collect()
    }

    /// Returns the memory that is promised and not occupied yet, in bytes.
    pub(crate) fn outstanding_bytes(&self) -> u64 {
        outstanding(&self.lock())
    }

    /// Ignores poisoning: every change is one call, so a panicked thread leaves a consistent map.
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
            takes: crate::node::admission::Takes::OrdinaryMemory,
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
    fn memory_promised_to_one_guest_is_not_given_to_another() {
        let promises = Promises::default();
        let first = MigrationId::random();
        promises.admit(&request("a", 1), first, host).unwrap();
        let refusal = promises.admit(&request("b", 2), MigrationId::random(), host).unwrap_err();
        assert!(
            matches!(refusal, Refusal::Memory { promised_bytes, .. } if promised_bytes == 2 * GIB),
            "{refusal}"
        );

        promises.release(&"a".parse().unwrap(), first);
        promises.admit(&request("b", 2), MigrationId::random(), host).unwrap();
    }

    #[test]
    fn the_end_of_an_earlier_migration_does_not_take_the_promise_of_a_later_one() {
        let promises = Promises::default();
        let (name, earlier, later) =
            ("a".parse().unwrap(), MigrationId::random(), MigrationId::random());
        promises.admit(&request("a", 1), earlier, host).unwrap();
        promises.release(&name, earlier);
        promises.admit(&request("a", 1), later, host).unwrap();
        promises.release(&name, earlier);
        assert_eq!(promises.expected(), [Expected { name, migration: later, pid: None }]);
    }

    #[test]
    fn a_restored_promise_counts() {
        let promises = Promises::default();
        promises.restore(&request("a", 1), MigrationId::random(), std::process::id());
        assert!(promises.outstanding_bytes() > GIB);
        let refusal = promises.admit(&request("b", 2), MigrationId::random(), host).unwrap_err();
        assert!(matches!(refusal, Refusal::Memory { .. }), "{refusal}");
    }

    #[test]
    fn a_promised_name_and_identity_are_taken() {
        let promises = Promises::default();
        let admit = |name, id| promises.admit(&request(name, id), MigrationId::random(), host);
        admit("a", 1).unwrap();
        assert!(matches!(admit("a", 2), Err(Refusal::NameTaken { .. })));
        assert!(matches!(admit("b", 1), Err(Refusal::UuidTaken { .. })));
        assert!(promises.expects(Uuid::from_u128(1)));
        assert!(!promises.expects(Uuid::from_u128(2)));
    }

    #[test]
    fn what_the_process_occupies_is_no_longer_outstanding() {
        let promises = Promises::default();
        promises.admit(&request("a", 1), MigrationId::random(), host).unwrap();
        promises.assign(&"a".parse().unwrap(), std::process::id());
        let outstanding = promises.outstanding_bytes();
        assert!(outstanding < 2 * GIB && outstanding > 0, "{outstanding}");
    }

    #[test]
    fn a_refused_guest_is_promised_nothing() {
        let promises = Promises::default();
        let wide = GuestRequest { vcpus: 9, ..request("a", 1) };
        promises.admit(&wide, MigrationId::random(), host).unwrap_err();
        assert_eq!(promises.count(), 0);
    }
}
