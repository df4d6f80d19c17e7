//! The port of the node of the source's host.

use std::num::NonZeroU16;

use super::*;
use crate::protocol::FEATURE_NODE;

/// Returns the ports that a source sends for its host's node, if the destination has all features
/// but `missing`.
fn said_without(node_port: Option<NonZeroU16>, missing: Features) -> Vec<NonZeroU16> {
    let mut bench = Bench::new();
    bench.source.config.node_port = node_port;
    bench.feed(Event::Connected);
    bench.feed(Event::Recorded);
    let features = Features::SUPPORTED.without(missing);
    let actions = bench.hear(DestinationMessage::Welcome { version: Version(1), features });
    let is_prepare = |action: &Action| matches!(action, Action::Send(SourceMessage::Prepare(_)));
    assert!(actions.last().is_some_and(is_prepare), "{actions:?}");
    let port = |action: &Action| match action {
        Action::Send(SourceMessage::Node { port }) => Some(*port),
        _ => None,
    };
    actions.iter().filter_map(port).collect()
}

#[test]
fn the_nodes_address_is_sent_before_the_guest() {
    let port = NonZeroU16::new(4950).unwrap();
    assert_eq!(said_without(Some(port), Features::default()), [port]);
}

#[test]
fn no_address_is_sent_without_a_running_node() {
    assert_eq!(said_without(None, Features::default()), []);
}

#[test]
fn an_older_destination_is_not_sent_the_address() {
    assert_eq!(said_without(NonZeroU16::new(4950), FEATURE_NODE), []);
}
