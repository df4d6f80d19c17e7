//! Room for peers that come, so that those who do not prove themselves keep nobody else out.
//!
//! Who comes takes a place, and keeps it until it is dropped. When all are taken, the network (an address of IPv4, the first 64 bits of one
//! of IPv6) with the most peers that have not proved who they are loses the one that came first, but not to a peer of its own.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Places for peers.
#[derive(Debug)]
pub(crate) struct Places {
    all: usize,
    taken: Mutex<Taken>,
}

/// Those that are taken, in the order in which they were.
#[derive(Debug, Default)]
struct Taken {
    next: u64,
    peers: BTreeMap<u64, Peer>,
}

#[derive(Debug)]
struct Peer {
    network: IpAddr,
    /// Tells that the place is lost, as long as it can be.
    unproven: Option<oneshot::Sender<()>>,
}

/// A place, which is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    number: u64,
    lost: oneshot::Receiver<()>,
}

impl Places {
    /// So many.
    pub(crate) fn new(all: usize) -> Arc<Self> {
        Arc::new(Self { all, taken: Mutex::default() })
    }

    /// Whether half of them are taken.
    pub(crate) fn are_scarce(&self) -> bool {
        self.taken().peers.len() * 2 > self.all
    }

    /// Gives a peer at `address` a place, if there is one, or one can be made.
    pub(crate) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let network = network(address);
        let mut taken = self.taken();
        if taken.peers.len() >= self.all {
            let victim = taken.first_of_the_most(network)?;
            let peer = taken.peers.remove(&victim)?;
            // Whose task has ended does not hear it.
            peer.unproven.map(|lost| lost.send(()));
        }
        let (unproven, lost) = oneshot::channel();
        let number = taken.next;
        taken.next += 1;
        taken.peers.insert(number, Peer { network, unproven: Some(unproven) });
        Some(Place { places: Arc::clone(self), number, lost })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// The first unproven peer of the network with the most, if that is not `own`.
    fn first_of_the_most(&self, own: IpAddr) -> Option<u64> {
        let mut networks: BTreeMap<IpAddr, (usize, u64)> = BTreeMap::new();
        for (number, peer) in self.peers.iter().filter(|(_, peer)| peer.unproven.is_some()) {
            networks.entry(peer.network).or_insert((0, *number)).0 += 1;
        }
        let (network, (_, first)) = networks.iter().max_by_key(|(_, (count, _))| *count)?;
        (*network != own).then_some(*first)
    }
}

impl Place {
    /// Its peer has proved who it is: nobody takes the place away any more.
    pub(crate) fn keep(&mut self) {
        if let Some(peer) = self.places.taken().peers.get_mut(&self.number) {
            peer.unproven = None;
        }
    }

    /// Returns when another peer has the place.
    pub(crate) async fn lost(&mut self) {
        if (&mut self.lost).await.is_err() {
            // It is kept.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken().peers.remove(&self.number);
    }
}

/// What one who attacks has at least the whole of.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn at(address: &str) -> IpAddr {
        address.parse().unwrap()
    }

    async fn is_lost(place: &mut Place) -> bool {
        timeout(Duration::from_millis(1), place.lost()).await.is_ok()
    }

    #[tokio::test]
    async fn who_holds_most_without_proof_loses_the_first_to_others_alone() {
        let places = Places::new(4);
        let mut flood: Vec<Place> =
            (0..3).map(|_| places.take(at("192.0.2.66")).unwrap()).collect();
        let mut early = places.take(at("192.0.2.1")).unwrap();
        assert!(places.take(at("192.0.2.66")).is_none(), "it has enough");
        let mut late = places.take(at("192.0.2.2")).unwrap();
        assert!(is_lost(&mut flood[0]).await && !is_lost(&mut flood[1]).await);
        assert!(!is_lost(&mut early).await && !is_lost(&mut late).await);
        // What is lost frees nothing when it goes.
        flood.remove(0);
        assert!(places.take(at("192.0.2.66")).is_none());
        drop(early);
        flood.push(places.take(at("192.0.2.66")).unwrap());
    }

    #[tokio::test]
    async fn who_has_proved_himself_keeps_his_place() {
        let places = Places::new(2);
        let mut both = [(); 2].map(|()| places.take(at("192.0.2.1")).unwrap());
        both.iter_mut().for_each(Place::keep);
        assert!(places.take(at("192.0.2.2")).is_none());
        for place in &mut both {
            assert!(!is_lost(place).await);
        }
    }

    #[test]
    fn a_network_of_ipv6_is_one() {
        assert_eq!(network(at("2001:db8:1:2:3:4:5:6")), at("2001:db8:1:2::"));
        assert_eq!(network(at("::ffff:192.0.2.1")), at("192.0.2.1"));
        let places = Places::new(2);
        let _flood = ["2001:db8::1", "2001:db8::2"].map(|it| places.take(at(it)).unwrap());
        assert!(places.take(at("2001:db8::3")).is_none());
        assert!(places.are_scarce() && places.take(at("2001:db8:0:1::1")).is_some());
    }
}
