//! Several links at once.

use super::*;
use crate::protocol::FEATURE_LINKS;

/// Returns what a source that wants several links does about a destination with these features.
fn greeted(features: Features) -> (Bench, Vec<Action>) {
    let mut bench = Bench::new();
    bench.source.config.has_links = true;
    bench.feed(Event::Connected);
    bench.feed(Event::Recorded);
    let actions = bench.hear(DestinationMessage::Welcome { version: Version(1), features });
    (bench, actions)
}

#[test]
fn a_destination_that_knows_links_gets_the_guest() {
    let (_, actions) = greeted(Features::SUPPORTED);
    let is_prepare = |action: &Action| matches!(action, Action::Send(SourceMessage::Prepare(_)));
    assert!(actions.last().is_some_and(is_prepare), "{actions:?}");
}

#[test]
fn an_older_destination_is_told_that_it_gets_no_guest_and_why() {
    let (_, actions) = greeted(Features::SUPPORTED.without(FEATURE_LINKS));
    let complaint = actions.iter().find_map(|action| match action {
        Action::Send(SourceMessage::Abort(complaint)) => Some(complaint.text.to_string()),
        _ => None,
    });
    let text = complaint.unwrap_or_else(|| panic!("{actions:?}"));
    assert!(text.contains("several links") && text.contains("--via"), "{text}");
    let prepares = |action: &Action| matches!(action, Action::Send(SourceMessage::Prepare(_)));
    assert!(!actions.iter().any(prepares), "{actions:?}");
}

#[test]
fn a_connection_that_is_lost_names_what_goes_on_without_it() {
    for (has_links, expected) in [
        (
            false,
            "timed out (with --via and several addresses, it goes on over those that are left)",
        ),
        (true, "timed out"),
    ] {
        let mut bench = Bench::copying();
        bench.source.config.has_links = has_links;
        bench.feed(lost());
        let actions = bench.feed(Event::Recorded);
        let error = report(&actions).error.clone().unwrap();
        let text = format!("migration failed during precopy: connection lost: {expected}");
        assert_eq!(error.message, text);
    }
}
