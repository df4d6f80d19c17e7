//! Limits connections so that peers that do not finish their handshake cannot keep out a peer from
//! another address.
//!
//! A peer takes a place and keeps it until the place is dropped. If all are taken, a new peer takes
//! the place of an unproven one, that is, one that has not completed its handshake. First choice is
//! one that has not proved that it receives at its address: that address may be forged. If there is
//! none, it takes a place from the network (an IPv4 address, the first 64 bits of an IPv6 address)
//! with the most unproven peers, if those are more than its own network has; otherwise, within its
//! own network, from the address with the most, if those are more than its own address has;
//! otherwise from its own address. In each case, the peer that came first loses its place.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// A limited number of places for peers.
#[derive(Debug)]
pub(crate) struct Places {
    all: usize,
    taken: Mutex<Taken>,
}

/// The places that are taken, in the order in which they were taken.
#[derive(Debug, Default)]
struct Taken {
    next: u64,
    peers: BTreeMap<u64, Peer>,
}

#[derive(Debug)]
struct Peer {
    address: IpAddr,
    /// Whether the peer has proved that it receives at this address (RFC 9000 §8.1).
    is_validated: bool,
    /// Signals that the place is lost; none once the peer has completed its handshake, after which
    /// it cannot lose its place.
    unproven: Option<oneshot::Sender<()>>,
}

/// A place, which is freed when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    number: u64,
    lost: oneshot::Receiver<()>,
}

impl Places {
    /// Creates `all` places.
    pub(crate) fn new(all: usize) -> Arc<Self> {
        Arc::new(Self { all, taken: Mutex::default() })
    }

    /// Returns whether more than half of the places are taken.
    pub(crate) fn are_scarce(&self) -> bool {
        self.taken().peers.len() * 2 > self.all
    }

    /// Gives a place to a peer at `address`, which may be proved (`is_validated`) to be its own;
    /// none if all places are taken by peers that have completed their handshake.
    pub(crate) fn take(self: &Arc<Self>, address: IpAddr, is_validated: bool) -> Option<Place> {
        let address = address.to_canonical();
        let mut taken = self.taken();
        if taken.peers.len() >= self.all {
            let victim = taken.first_to_go(address)?;
            let peer = taken.peers.remove(&victim)?;
            // Nothing receives this if the peer's task has ended.
            peer.unproven.map(|lost| lost.send(()));
        }
        let (unproven, lost) = oneshot::channel();
        let number = taken.next;
        taken.next += 1;
        taken.peers.insert(number, Peer { address, is_validated, unproven: Some(unproven) });
        Some(Place { places: Arc::clone(self), number, lost })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Returns the unproven peer that a new one from `address` replaces.
    fn first_to_go(&self, address: IpAddr) -> Option<u64> {
        let own = network(address);
        let first = |is_meant: &dyn Fn(&Peer) -> bool| {
            self.unproven().find(|(_, peer)| is_meant(peer)).map(|(number, _)| number)
        };
        first(&|peer| !peer.is_validated)
            .or_else(|| self.first_of_the_most(network, own, |_| true))
            .or_else(|| self.first_of_the_most(|it| it, address, |it| network(it) == own))
            .or_else(|| first(&|peer| peer.address == address))
    }

    fn unproven(&self) -> impl Iterator<Item = (u64, &Peer)> {
        let peers = self.peers.iter().map(|(number, peer)| (*number, peer));
        peers.filter(|(_, peer)| peer.unproven.is_some())
    }

    /// Groups the unproven peers in `scope` by `group`, and returns the first peer of the largest
    /// group, if that is larger than the group `own`; of equal groups, the one whose first peer
    /// came first.
    fn first_of_the_most(
        &self,
        group: impl Fn(IpAddr) -> IpAddr,
        own: IpAddr,
        scope: impl Fn(IpAddr) -> bool,
    ) -> Option<u64> {
        let mut groups: BTreeMap<IpAddr, (usize, u64)> = BTreeMap::new();
        for (number, peer) in self.unproven().filter(|(_, peer)| scope(peer.address)) {
            groups.entry(group(peer.address)).or_insert((0, number)).0 += 1;
        }
        let own = groups.get(&own).map_or(0, |(count, _)| *count);
        let more = groups.values().filter(|(count, _)| *count > own);
        more.max_by_key(|(count, first)| (*count, Reverse(*first))).map(|(_, first)| *first)
    }
}

impl Place {
    /// Makes the place permanent, as its peer has proved its identity.
    pub(crate) fn keep(&mut self) {
        if let Some(peer) = self.places.taken().peers.get_mut(&self.number) {
            peer.unproven = None;
        }
    }

    /// Returns when another peer has taken the place.
    pub(crate) async fn lost(&mut self) {
        if (&mut self.lost).await.is_err() {
            // The place is permanent.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken().peers.remove(&self.number);
    }
}

/// Returns the smallest network that an attacker controls completely: an IPv4 address, an IPv6 /64.
fn network(address: IpAddr) -> IpAddr {
    match address {
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

    impl Places {
        /// Takes a place for a peer that receives at `address`.
        fn of(self: &Arc<Self>, address: &str) -> Option<Place> {
            self.take(at(address), true)
        }
    }

    async fn is_lost(place: &mut Place) -> bool {
        timeout(Duration::from_millis(1), place.lost()).await.is_ok()
    }

    #[tokio::test]
    async fn the_address_with_most_unproven_peers_loses_the_first_to_others_alone() {
        let places = Places::new(4);
        let mut flood: Vec<Place> = (0..3).map(|_| places.of("192.0.2.66").unwrap()).collect();
        let mut early = places.of("192.0.2.1").unwrap();
        flood.push(places.of("192.0.2.66").unwrap());
        assert!(is_lost(&mut flood[0]).await && !is_lost(&mut early).await, "one of its own");
        let mut late = places.of("192.0.2.2").unwrap();
        assert!(is_lost(&mut flood[1]).await && !is_lost(&mut flood[2]).await);
        assert!(!is_lost(&mut early).await && !is_lost(&mut late).await);
        // Dropping a place that was lost frees nothing.
        flood.remove(0);
        let _more = places.of("192.0.2.66").unwrap();
        assert!(is_lost(&mut flood[1]).await, "all are taken still");
    }

    #[tokio::test]
    async fn a_proven_peer_keeps_its_place() {
        let places = Places::new(2);
        let mut both = [(); 2].map(|()| places.of("192.0.2.1").unwrap());
        both.iter_mut().for_each(Place::keep);
        assert!(places.of("192.0.2.2").is_none());
        for place in &mut both {
            assert!(!is_lost(place).await);
        }
    }

    #[test]
    fn a_network_of_ipv6_is_one() {
        assert_eq!(network(at("2001:db8:1:2:3:4:5:6")), at("2001:db8:1:2::"));
        let places = Places::new(3);
        let _flood = [":1", ":2"].map(|it| places.of(&format!("2001:db8:{it}")).unwrap());
        let early = places.of("2001:db8:0:1::1").unwrap();
        let _late = places.of("2001:db8:0:2::1").expect("a place of the larger network");
        assert!(places.are_scarce() && places.taken().peers.contains_key(&early.number));
    }

    #[test]
    fn an_address_of_ipv4_is_one_however_it_is_written() {
        let places = Places::new(2);
        let _flood = ["192.0.2.1", "::ffff:192.0.2.1"].map(|it| places.of(it).unwrap());
        let own = places.taken().first_to_go(at("192.0.2.1"));
        assert_eq!(own, Some(0));
        assert!(places.of("::ffff:192.0.2.2").is_some());
    }

    /// Forty handshakes with a host's address as their source, and as many from an address of the
    /// attacker.
    #[tokio::test]
    async fn a_forged_address_does_not_shut_out_its_real_host() {
        let places = Places::new(64);
        let mut forged: Vec<Place> =
            (0..33).map(|_| places.take(at("192.0.2.1"), false).unwrap()).collect();
        let _own: Vec<Place> = (0..31).map(|_| places.of("192.0.2.66").unwrap()).collect();
        let mut host = places.of("192.0.2.1").expect("a place for the host");
        assert!(is_lost(&mut forged[0]).await && !is_lost(&mut host).await);
        let _more: Vec<Place> = (0..32).map(|_| places.of("192.0.2.66").unwrap()).collect();
        assert!(!is_lost(&mut host).await);
    }

    #[tokio::test]
    async fn an_address_that_floods_leaves_its_own_host_time_for_its_handshake() {
        let places = Places::new(8);
        let _flood: Vec<Place> = (0..8).map(|_| places.of("192.0.2.1").unwrap()).collect();
        let mut host = places.of("192.0.2.1").expect("a place");
        let _more: Vec<Place> = (0..7).map(|_| places.of("192.0.2.1").unwrap()).collect();
        assert!(!is_lost(&mut host).await, "seven came before it");
    }

    #[tokio::test]
    async fn one_address_keeps_no_other_of_its_network_out() {
        for all in 1..=32 {
            let places = Places::new(all);
            let mut flood: Vec<Place> =
                (0..all).map(|_| places.of("2001:db8::66").unwrap()).collect();
            let mut host = places.of("2001:db8::1").expect("a place for another address");
            assert!(is_lost(&mut flood[0]).await, "the first of the flood, of {all}");
            // If there is only one place, the next peer takes it.
            if all > 1 {
                let _more = places.of("2001:db8::66").expect("one of its own");
                assert!(!is_lost(&mut host).await, "of {all}");
            }
        }
    }

    /// An attack that remains possible: many addresses in the hosts' own network.
    #[tokio::test]
    async fn among_many_addresses_with_one_place_each_the_first_goes() {
        let places = Places::new(4);
        let mut flood: Vec<Place> =
            (1..=4).map(|it| places.of(&format!("2001:db8::{it}")).unwrap()).collect();
        let mut host = places.of("2001:db8::aaaa").unwrap();
        assert!(is_lost(&mut flood[0]).await);
        for it in 5..=7 {
            flood.push(places.of(&format!("2001:db8::{it}")).unwrap());
            assert!(!is_lost(&mut host).await, "{it}");
        }
        let _next = places.of("2001:db8::8").unwrap();
        assert!(is_lost(&mut host).await);
    }
}
