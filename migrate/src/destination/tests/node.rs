//! The port of the node of the source's host.

use std::num::NonZeroU16;

use super::*;
use crate::protocol::FEATURE_LZ4;

fn node() -> SourceMessage {
    SourceMessage::Node { port: NonZeroU16::new(4950).unwrap() }
}

#[test]
fn the_address_of_the_sources_node_is_recorded() {
    let mut bench = Bench::new();
    bench.hear(hello(Offer::ours()));
    assert_eq!(bench.hear(node()), []);
    bench.hear(prepare(guest("web-1"), 1));
    assert_eq!(bench.destination.source_node_port(), NonZeroU16::new(4950));
}

#[test]
fn an_older_source_does_not_send_its_address() {
    let mut bench = Bench::new();
    bench.hear(hello(Offer { features: FEATURE_LZ4, ..Offer::ours() }));
    let actions = bench.hear(prepare(guest("web-1"), 1));
    assert!(matches!(&actions[..], [Action::Check(_)]), "{actions:?}");
    assert_eq!(bench.destination.source_node_port(), None);
}

#[test]
fn the_address_is_sent_once_and_only_if_agreed_on() {
    for (features, times) in [(FEATURE_LZ4, 1), (Features::SUPPORTED, 2)] {
        let mut bench = Bench::new();
        bench.hear(hello(Offer { features, ..Offer::ours() }));
        let actions = (0..times).flat_map(|_| bench.hear(node())).collect::<Vec<_>>();
        assert_eq!(complaint(&actions), Reason::Protocol, "{features:?}");
    }
}

#[test]
fn a_destination_that_has_given_up_ignores_the_address() {
    let mut bench = Bench::new();
    bench.hear(hello(Offer::ours()));
    bench.feed(Event::Cancel { by: "its user".into() });
    let actions = bench.hear(node());
    assert!(!format!("{actions:?}").contains("Protocol"), "{actions:?}");
}
