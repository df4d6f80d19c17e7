//! Assigns a purpose to each queue.
//!
//! By the specification (virtio 1.2, 5.5.2) each queue has a fixed number, whether the others exist
//! or not. Linux instead numbers the queues of the accepted features consecutively, and so does
//! QEMU: without statistics, the queue of hints is number 2. The queues that a driver has set up
//! show which numbering it uses, so this device supports both.

use super::feature;

/// Number of queues that the device has: enough for either numbering.
pub(super) const COUNT: usize = 5;

/// Purpose of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Pages that the driver gives up.
    Inflate,
    /// Pages that the driver takes back.
    Deflate,
    /// A buffer of statistics, which the device holds until it wants new ones.
    Statistics,
    /// Free pages that the driver may use again at any time.
    Hints,
    /// Free pages that the driver does not use until the device has answered.
    Reporting,
}

/// The queues that depend on a feature, in the order of their numbers from 2 on.
const OPTIONAL: [(u64, Role); 3] = [
    (feature::STATISTICS, Role::Statistics),
    (feature::HINTS, Role::Hints),
    (feature::REPORTING, Role::Reporting),
];

/// Returns the purpose of queue `index` when the driver has accepted `features` and set up the
/// queues for which `is_set_up` holds.
pub(super) fn role(index: usize, features: u64, is_set_up: impl Fn(usize) -> bool) -> Option<Role> {
    let place = match index {
        0 => return Some(Role::Inflate),
        1 => return Some(Role::Deflate),
        _ => index - 2,
    };
    let accepted = OPTIONAL.into_iter().filter(|(feature, _)| features & feature != 0);
    let consecutive = || accepted.clone().nth(place).map(|(_, role)| role);
    let own = OPTIONAL.get(place).filter(|(feature, _)| features & feature != 0);
    let own = || own.map(|(_, role)| *role);
    // Consecutive numbering leaves these queues unused.
    let by_specification = (2 + accepted.clone().count()..COUNT).any(is_set_up);
    if by_specification { own().or_else(consecutive) } else { consecutive().or_else(own) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [u64; 3] = [feature::STATISTICS, feature::HINTS, feature::REPORTING];

    /// Every combination of the features that have queues, with and without features that have
    /// none.
    fn choices() -> impl Iterator<Item = u64> {
        let others = [0, feature::DEFLATE_ON_OOM | feature::PAGE_POISON, 1 << 32];
        (0..8_usize).flat_map(move |choice| {
            let chosen = (0..3).filter(|bit| choice >> bit & 1 == 1).map(|bit| ALL[bit]);
            let chosen: u64 = chosen.sum();
            others.map(|other| chosen | other)
        })
    }

    /// The roles of the features in `features`, in order.
    fn accepted(features: u64) -> Vec<Role> {
        let has = |(feature, _): &&(u64, Role)| features & feature != 0;
        OPTIONAL.iter().filter(has).map(|(_, role)| *role).collect()
    }

    #[test]
    fn queues_one_after_the_other_are_known_for_every_choice_of_features() {
        for features in choices() {
            let expected = [vec![Role::Inflate, Role::Deflate], accepted(features)].concat();
            let count = expected.len();
            let found: Vec<_> =
                (0..count).map(|index| role(index, features, |other| other < count)).collect();
            assert_eq!(found, expected.into_iter().map(Some).collect::<Vec<_>>(), "{features:#x}");
        }
    }

    #[test]
    fn queues_by_the_specification_are_known_for_every_choice_of_features() {
        for features in choices() {
            let is_set_up =
                |index: usize| index < 2 || index < COUNT && features & ALL[index - 2] != 0;
            for (index, (_, expected)) in (2..).zip(OPTIONAL).filter(|(index, _)| is_set_up(*index))
            {
                assert_eq!(
                    role(index, features, is_set_up),
                    Some(expected),
                    "{features:#x} {index}"
                );
            }
        }
    }

    #[test]
    fn without_features_there_are_two_queues() {
        let found: Vec<_> = (2..=COUNT).filter_map(|index| role(index, 0, |_| true)).collect();
        assert_eq!(found, []);
    }
}
