//! Connections, their messages, and the two nodes, which answer for dead processes.

use std::mem::take;
use std::time::Duration;

use migrate::destination;
use migrate::protocol::codec::{self, CodecError};
use migrate::protocol::{Decision, DestinationMessage, SourceMessage};
use migrate::resolve::{DeadSource, answer_for_dead, judge_for_dead};
use migrate::source;

use crate::faults::{Side, When};
use crate::world::{Conn, End, Happening, World, migration};

/// Limit on the connections that a node makes to the other host, so that tests end; a real node has
/// none.
const NODE_TRIES: u32 = 200;

/// Interval between a node's attempts while nothing gets through.
const NODE_RETRY: Duration = Duration::from_secs(60);

impl World {
    /// Connects `near` to the destination's process if that listens, else to its node.
    pub(crate) fn connect(&mut self, near: End) {
        if self.now < self.outage_until {
            if near == End::Source {
                let detail = "no route".into();
                let lost = source::Event::ConnectionLost { detail };
                self.after(Duration::from_secs(1), Happening::ToSource(lost));
            } else {
                self.after(NODE_RETRY, Happening::Resolver);
            }
            return;
        }
        let listens = self.destination.as_ref().is_some_and(|side| !side.settled);
        let far = if listens { End::Destination } else { End::DestinationNode };
        let id = self.conns.len() as u64;
        self.conns.insert(id, Conn::new(near, far));
        self.note(|| format!("connection {id}: {near:?} to {far:?}"));
        if let (true, Some(destination)) = (listens, &mut self.destination) {
            destination.conn = Some(id);
            self.feed_destination(destination::Event::Connected);
        }
        match near {
            End::Source => {
                let Some(source) = &mut self.source else { return };
                source.conn = Some(id);
                self.feed_source(source::Event::Connected);
            }
            _ => {
                self.resolver_conn = Some(id);
                self.say_as_node(id);
            }
        }
    }

    pub(crate) fn send_from_source(&mut self, message: &SourceMessage) {
        self.send(Side::Source, codec::encode(message).unwrap());
    }

    pub(crate) fn send_from_destination(&mut self, message: &DestinationMessage) {
        self.send(Side::Destination, codec::encode(message).unwrap());
    }

    /// Sends a message over the present connection of a side, unless a fault kills that side first.
    fn send(&mut self, from: Side, message: Vec<u8>) {
        self.faults_at(When::Message(self.messages));
        self.messages += 1;
        let (is_lost, held) = (take(&mut self.lose_message), take(&mut self.hold_message));
        let id = match from {
            Side::Source => self.source.as_ref().and_then(|source| source.conn),
            Side::Destination => self.destination.as_ref().and_then(|side| side.conn),
        };
        let Some(id) = id else { return };
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if is_lost || self.now < self.outage_until {
            return;
        }
        let last = conn.last_arrival.entry(from).or_default();
        let arrives = (self.now + self.scenario.latency + held).max(*last);
        *last = arrives;
        let arrival = match from {
            Side::Source => Happening::FromSource(id, message),
            Side::Destination => Happening::FromDestination(id, message),
        };
        self.at(arrives, arrival);
    }

    /// One side closes its connection: the other side is notified after it has received everything.
    pub(crate) fn close_from(&mut self, side: Side) {
        let (conn, other) = match side {
            Side::Source => (self.source.as_mut().and_then(|s| s.conn.take()), Side::Destination),
            Side::Destination => {
                (self.destination.as_mut().and_then(|d| d.conn.take()), Side::Source)
            }
        };
        if let Some(id) = conn {
            let last = self.conns.get(&id).and_then(|conn| conn.last_arrival.get(&side));
            let arrives = (self.now + self.scenario.latency).max(last.copied().unwrap_or_default());
            self.at(arrives + Duration::from_micros(1), Happening::Lost(id, other));
        }
    }

    /// Breaks all open connections; each side is notified after its own delay.
    pub(crate) fn cut(&mut self, source: Duration, destination: Duration) {
        let open: Vec<u64> =
            self.conns.iter().filter(|(_, conn)| !conn.broken).map(|(id, _)| *id).collect();
        for id in open {
            if let Some(conn) = self.conns.get_mut(&id) {
                conn.broken = true;
            }
            self.after(source, Happening::Lost(id, Side::Source));
            self.after(destination, Happening::Lost(id, Side::Destination));
        }
    }

    /// The destination's node answers for a process that is dead or has no more to say.
    pub(crate) fn ask_destination_node(
        &mut self,
        conn: u64,
        said: &Result<SourceMessage, CodecError>,
    ) {
        let (asked, decision) = match said {
            Ok(SourceMessage::Resolve { migration, decision }) => (migration, *decision),
            // What the source asks a node while nothing is decided.
            Ok(SourceMessage::Continue { migration }) => (migration, Decision::Aborted),
            _ => return,
        };
        assert_eq!(*asked, migration());
        let answer = answer_for_dead(self.destination_disk, decision);
        if let Some(state) = answer.record {
            if self.destination.as_ref().is_some_and(|side| !side.settled) {
                self.violation("a node answered for a process that lives and waits");
            }
            self.destination_disk = Some(state);
        }
        let answer = answer.answer;
        self.note(|| format!("destination's node says {}", answer.name()));
        let bytes = codec::encode(&answer).unwrap();
        self.after(self.scenario.latency, Happening::FromDestination(conn, bytes));
    }

    /// The source's node connects because of a dead process's record.
    pub(crate) fn dial_as_node(&mut self) {
        let open = self.source_disk.and_then(|state| state.decision()).is_some();
        if self.source.is_none() && open && self.resolver_conn.is_none() {
            self.resolver_tries += u32::from(self.now >= self.outage_until);
            if self.resolver_tries <= NODE_TRIES {
                self.connect(End::SourceNode);
            }
        }
    }

    fn say_as_node(&mut self, conn: u64) {
        let Some(decision) = self.source_disk.and_then(|state| state.decision()) else { return };
        self.note(|| format!("source's node says Resolve {decision:?}"));
        let message = SourceMessage::Resolve { migration: migration(), decision };
        let bytes = codec::encode(&message).unwrap();
        self.after(self.scenario.latency, Happening::FromSource(conn, bytes));
        // In any case the node asks again later, unless the migration is settled by then.
        self.after(Duration::from_secs(15), Happening::Lost(conn, Side::Source));
    }

    pub(crate) fn answer_to_source_node(
        &mut self,
        conn: u64,
        said: &Result<DestinationMessage, CodecError>,
    ) {
        let (Some(state), Ok(answer)) = (self.source_disk, said) else { return };
        match judge_for_dead(state, answer) {
            DeadSource::Settled(state) => {
                self.source_disk = Some(state);
                self.resolver_conn = None;
                self.after(self.scenario.latency, Happening::Lost(conn, Side::Destination));
            }
            DeadSource::InDoubt => {
                self.facts.node_in_doubt = true;
                self.resolver_tries = NODE_TRIES;
            }
            DeadSource::NoAnswer => {}
        }
    }
}
