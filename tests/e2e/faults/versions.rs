//! Two releases that have no protocol version in common.

use super::scene::GUEST;
use support::checks::one_intact_copy;
use support::{Guest, GuestPlan, Migration, NodePlan, Pair};

/// The environment of a release that speaks only a version unknown to this one.
fn another_age() -> Vec<(String, String)> {
    vec![("LIGHTER_PROTOCOL_VERSIONS".to_owned(), "7".to_owned())]
}

/// Asserts that the message names the versions of both sides and the remedy, and that the guest
/// continues on the source.
fn are_refused(pair: &Pair, guest: &GuestPlan) {
    Guest::start(&pair.a, guest);
    let words =
        ["no protocol version in common", "protocol 7", "protocol 1", "upgrade the older one"];
    Migration::run(&pair.a, GUEST, &pair.b).stayed(&words);
    one_intact_copy(&pair.hosts(), GUEST, &pair.a);
}

#[test]
fn a_source_of_an_incompatible_version_is_refused_and_both_versions_are_named() {
    are_refused(&Pair::new(), &GuestPlan { environment: another_age(), ..GuestPlan::default() });
}

#[test]
fn a_destination_of_an_incompatible_version_refuses_and_both_versions_are_named() {
    let node = NodePlan { environment: another_age(), ..NodePlan::default() };
    are_refused(&Pair::with_nodes(&NodePlan::default(), &node), &GuestPlan::default());
}
