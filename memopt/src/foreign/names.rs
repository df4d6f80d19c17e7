//! Unique names for guests that other VMMs run, whatever their command lines claim.
//!
//! A user of the host who starts a process under the name of another guest must not pass for that
//! guest. So a guest has the name that it claims only while no other guest of the host has or
//! claims it; otherwise the pid, which comes from the kernel, is appended.

use std::collections::{BTreeMap, BTreeSet};

use super::DiscoveredGuest;
use crate::observe::{Sources, started_of};

/// Makes the names of `found` unique, among each other and against the guests named in `own`. A
/// name that is taken or claimed twice gets `@PID` appended, for each guest that claims it. So does
/// a name that already looks like that.
pub fn make_names_unique(own: &BTreeSet<String>, found: &mut [DiscoveredGuest]) {
    let mut claims = BTreeMap::<String, usize>::new();
    for guest in &*found {
        *claims.entry(guest.name.clone()).or_default() += 1;
    }
    for guest in found {
        let is_shared = claims.get(&guest.name).is_some_and(|count| *count > 1);
        if is_shared || own.contains(&guest.name) || is_numbered(&guest.name) {
            guest.name = guest.numbered();
        }
    }
}

impl DiscoveredGuest {
    /// Returns whether [`make_names_unique`] may have given the guest this name.
    pub fn is_called(&self, name: &str) -> bool {
        name == self.name || name == self.numbered()
    }

    /// Returns whether the guest's process still exists.
    pub fn is_there(&self, sources: &Sources) -> bool {
        started_of(sources, self.pid).is_ok_and(|started| started == self.started)
    }

    fn numbered(&self) -> String {
        format!("{}@{}", self.name, self.pid)
    }
}

fn is_numbered(name: &str) -> bool {
    name.rsplit_once('@').is_some_and(|(_, number)| number.bytes().all(|it| it.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::fixture::found;
    use crate::situation::{Guest, Vmm};

    fn named(own: &[&str], claims: &[(u32, &str)]) -> Vec<String> {
        let own = own.iter().map(|name| (*name).to_owned()).collect();
        let mut guests: Vec<_> = claims.iter().map(|(pid, name)| found(*pid, name)).collect();
        make_names_unique(&own, &mut guests);
        guests.into_iter().map(|guest| guest.name).collect()
    }

    #[test]
    fn a_name_is_kept_unless_another_guest_has_or_claims_it() {
        assert_eq!(named(&["db"], &[(7, "web"), (8, "qemu-8")]), ["web", "qemu-8"]);
        assert_eq!(named(&["web"], &[(7, "web")]), ["web@7"]);
        let two = [(7, "web"), (8, "db"), (9, "web")];
        assert_eq!(named(&[], &two), ["web@7", "db", "web@9"], "none of them is the first");
    }

    #[test]
    fn disambiguated_names_cannot_be_claimed() {
        let claims = [(5, "web@8"), (7, "web"), (8, "web"), (9, "vm@prod"), (10, "x@")];
        let names = ["web@8@5", "web@7", "web@8", "vm@prod", "x@@10"];
        assert_eq!(named(&[], &claims), names);
    }

    #[test]
    fn the_claimed_name_excludes_the_added_suffix() {
        let claimed = |name: &str, vmm, pid| {
            Guest::unknown(name.to_owned(), vmm, pid).claimed_name().to_owned()
        };
        assert_eq!(claimed("web@7", Vmm::Qemu, 7), "web");
        assert_eq!(claimed("web@7", Vmm::Qemu, 8), "web@7");
        assert_eq!(claimed("web", Vmm::CloudHypervisor, 7), "web");
        assert_eq!(claimed("web-7", Vmm::Lighter, 7), "web-7");
    }

    proptest! {
        #[test]
        fn no_two_guests_have_one_name(
            own in proptest::collection::btree_set("[ab]{1,2}", 0..4),
            claims in proptest::collection::vec("[ab]{1,2}(@[0-9]{0,2}){0,2}", 0..12),
        ) {
            let mut guests: Vec<_> =
                (1..).zip(&claims).map(|(pid, name)| found(pid, name)).collect();
            make_names_unique(&own, &mut guests);
            let names: BTreeSet<&str> = guests.iter().map(|guest| guest.name.as_str()).collect();
            prop_assert_eq!(names.len(), guests.len());
            prop_assert!(!names.iter().any(|name| own.contains(*name)));
            for (guest, claim) in guests.iter().zip(&claims) {
                let guest = Guest::unknown(guest.name.clone(), Vmm::Qemu, guest.pid);
                // A name without the suffix may end like a name with it.
                prop_assert!(guest.claimed_name() == claim);
            }
        }
    }
}
