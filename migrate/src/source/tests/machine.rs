//! Guests that not every release can run.

use super::*;
use crate::protocol::FEATURE_PCI;

/// Returns what the source does when a destination without `missing` greets a guest that needs a
/// PCI bus.
fn greeted_without(missing: Features) -> Vec<Action> {
    let mut bench = Bench::new();
    bench.source.config.guest.has_pci = true;
    bench.feed(Event::Connected);
    bench.feed(Event::Recorded);
    let features = Features::SUPPORTED.without(missing);
    bench.hear(DestinationMessage::Welcome { version: Version(1), features })
}

fn is_prepare(action: &Action) -> bool {
    matches!(action, Action::Send(SourceMessage::Prepare(_)))
}

#[test]
fn a_destination_that_knows_the_machine_gets_the_guest() {
    assert!(greeted_without(Features::default()).iter().any(is_prepare));
}

#[test]
fn an_older_destination_gets_no_description_of_the_guest() {
    let actions = greeted_without(FEATURE_PCI);
    assert!(!actions.iter().any(is_prepare), "{actions:?}");
    let said = format!("{actions:?}");
    assert!(said.contains("runs no guests with a PCI bus: upgrade it"), "{said}");
}
