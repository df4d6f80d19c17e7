//! Which queue is which.
//!
//! By the specification (virtio 1.2, 5.5.2) each queue has a number of its own, whether the others exist or
//! not. Linux numbers those that the features brought about one after the other, and so does QEMU: without
//! free page hinting the reporting queue is number 3, without statistics number 2. A device that has no
//! hinting can tell which of the two its driver does, so this one understands both.

use super::feature;

/// Queues that the device has: as many as any numbering needs.
pub(super) const COUNT: usize = 5;
/// The reporting queue by the specification.
const REPORTING_BY_SPECIFICATION: usize = 4;

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Pages that the driver gives up.
    Inflate,
    /// Pages that the driver takes back.
    Deflate,
    /// A buffer of statistics, which the device keeps until it wants new ones.
    Statistics,
    /// Free pages, which the driver does not use until they are answered.
    Reporting,
}

/// What queue `index` is for when the driver has accepted `features`.
pub(super) fn role(index: usize, features: u64) -> Option<Role> {
    let optional = [(feature::STATISTICS, Role::Statistics), (feature::REPORTING, Role::Reporting)];
    let mut accepted = optional.into_iter().filter(|(feature, _)| features & feature != 0);
    match index {
        0 => Some(Role::Inflate),
        1 => Some(Role::Deflate),
        REPORTING_BY_SPECIFICATION => {
            accepted.map(|(_, role)| role).find(|role| *role == Role::Reporting)
        }
        _ => accepted.nth(index - 2).map(|(_, role)| role),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles(features: u64) -> [Option<Role>; COUNT + 1] {
        std::array::from_fn(|index| role(index, features))
    }

    #[test]
    fn every_choice_of_features_has_its_numbers() {
        use Role::{Deflate, Inflate, Reporting, Statistics};
        let both = [Some(Inflate), Some(Deflate)];
        let table = [
            (0, [None, None, None, None]),
            (feature::STATISTICS, [Some(Statistics), None, None, None]),
            (feature::REPORTING, [Some(Reporting), None, Some(Reporting), None]),
            (
                feature::STATISTICS | feature::REPORTING,
                [Some(Statistics), Some(Reporting), Some(Reporting), None],
            ),
        ];
        for (features, rest) in table {
            // What has no queue changes nothing.
            for other in [0, feature::DEFLATE_ON_OOM, feature::PAGE_POISON, 1 << 32] {
                let expected = [both.as_slice(), &rest].concat();
                assert_eq!(roles(features | other).as_slice(), expected, "{features:#x}");
            }
        }
    }
}
