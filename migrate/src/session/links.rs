//! What each of several links has carried, and which are lost.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::progress::LinkProgress;

/// The links of a migration, known by the destination's address on each. Empty if it uses one only.
#[derive(Debug, Default)]
pub(super) struct Links(Mutex<Vec<LinkProgress>>);

impl Links {
    /// The links to these addresses, none of which is lost.
    pub(super) fn new(addresses: &[IpAddr]) -> Self {
        let link = |address: &IpAddr| LinkProgress { address: *address, wire_bytes: 0, lost: None };
        Self(Mutex::new(addresses.iter().map(link).collect()))
    }

    /// Counts bytes of frames that the transport has taken for the link to `address`.
    pub(super) fn count(&self, address: IpAddr, bytes: usize) {
        self.change(address, |link| link.wire_bytes += bytes as u64);
    }

    /// Notes that the link to `address` is lost.
    pub(super) fn lose(&self, address: IpAddr, why: &str) {
        self.change(address, |link| link.lost = Some(why.to_owned()));
    }

    /// Notes that there is a connection to `address` again.
    pub(super) fn regain(&self, address: IpAddr) {
        self.change(address, |link| link.lost = None);
    }

    /// Returns all links.
    pub(super) fn read(&self) -> Vec<LinkProgress> {
        self.lock().clone()
    }

    /// Returns the place of that of these links that has carried most so far: links take what they
    /// have room for. If that does not tell, the first.
    pub(super) fn fastest(&self, addresses: impl Iterator<Item = IpAddr>) -> usize {
        let links = self.lock();
        let carried = |address| {
            let link = links.iter().find(|link| link.address == address);
            link.map_or(0, |link| link.wire_bytes)
        };
        let carried: Vec<_> = addresses.map(carried).collect();
        let most = carried.iter().max();
        carried.iter().position(|bytes| Some(bytes) == most).unwrap_or(0)
    }

    fn change(&self, address: IpAddr, change: impl FnOnce(&mut LinkProgress)) {
        if let Some(link) = self.lock().iter_mut().find(|link| link.address == address) {
            change(link);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<LinkProgress>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_that_has_carried_most_is_the_fastest() {
        let [slow, fast, lost] = [1, 2, 3].map(|last| IpAddr::from([10, 0, 0, last]));
        let links = Links::new(&[slow, fast, lost]);
        assert_eq!(links.fastest([slow, fast].into_iter()), 0, "the first, if that does not tell");
        links.count(slow, 1);
        links.count(fast, 2);
        links.count(lost, 3);
        assert_eq!(links.fastest([slow, fast].into_iter()), 1);
        assert_eq!(Links::default().fastest([slow].into_iter()), 0);
    }
}
