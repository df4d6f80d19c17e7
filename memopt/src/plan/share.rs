//! Divides memory between guests when there is not enough for all.

/// Tax on idle memory (ESX: tau, 75 %): an idle byte costs `1 / (1 - tax)` times as much as a used
/// one.
const IDLE_TAX: f64 = 0.75;

/// A guest that holds memory which could be taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Holder {
    /// Host memory that it holds.
    pub(super) held_bytes: u64,
    /// The part of it that it uses.
    pub(super) used_bytes: u64,
    /// Maximum that can be taken.
    pub(super) spare_bytes: u64,
    /// Priority from the policy; memory is shared in proportion to it.
    pub(super) weight: u32,
}

impl Holder {
    /// Returns what it would keep at `price`, the cost of a byte per unit of priority.
    ///
    /// The law is that of ESX, shares-per-page with idle pages taxed (Waldspurger, OSDI 2002, 5.2):
    /// `price = (used + idle / (1 - tax)) / weight`.
    fn keeps(&self, price: f64) -> f64 {
        let (held, weight) = (self.held_bytes as f64, f64::from(self.weight));
        let used = (self.used_bytes as f64).min(held);
        let worth = price * weight;
        let kept = if worth > used { used + (worth - used) * (1.0 - IDLE_TAX) } else { worth };
        kept.clamp(held - self.spare_bytes.min(self.held_bytes) as f64, held)
    }

    /// Returns the price at which it keeps everything.
    fn top_price(&self) -> f64 {
        let used = self.used_bytes.min(self.held_bytes) as f64;
        (used + (self.held_bytes as f64 - used) / (1.0 - IDLE_TAX)) / f64::from(self.weight)
    }
}

/// Returns what each holder gives, so that together they give `wanted_bytes` or all they can.
/// Holders with the most idle memory for their priority give first, never more than their
/// `spare_bytes`. The more one holder could give, the less the others have to. So leaving one out
/// bounds what it can do to them.
pub(super) fn take(holders: &[Holder], wanted_bytes: u64) -> Vec<u64> {
    let all: u64 = holders.iter().map(|it| it.spare_bytes.min(it.held_bytes)).sum();
    if all <= wanted_bytes {
        return holders.iter().map(|it| it.spare_bytes.min(it.held_bytes)).collect();
    }
    let given = |price: f64| -> f64 {
        holders.iter().map(|it| it.held_bytes as f64 - it.keeps(price)).sum()
    };
    // The higher the price, the less they give.
    let mut low = 0.0_f64;
    let mut high = holders.iter().map(|it| it.top_price()).fold(0.0, f64::max);
    for _ in 0..64 {
        let middle = low + (high - low) / 2.0;
        if given(middle) > wanted_bytes as f64 { low = middle } else { high = middle }
    }
    let gives = |it: &Holder| (it.held_bytes as f64 - it.keeps(high)).max(0.0) as u64;
    holders.iter().map(|it| gives(it).min(it.spare_bytes)).collect()
}

/// Collects shares smaller than `portion_bytes`, which are too small to move: each collected
/// portion is assigned to the holder whose share completes it. An incomplete portion is dropped.
pub(super) fn in_portions(mut shares: Vec<u64>, portion_bytes: u64) -> Vec<u64> {
    let mut collected = 0;
    for share in shares.iter_mut().filter(|share| (1..portion_bytes).contains(*share)) {
        collected += std::mem::take(share);
        if collected >= portion_bytes {
            *share = std::mem::take(&mut collected);
        }
    }
    shares
}

/// Returns what each gets of `budget_bytes`: what it asks for, or a share by its priority when that
/// is less. What one does not need goes to the others (max-min fairness), so asking for too much
/// takes nothing from those who ask for little.
pub(super) fn give(asks: &[(u64, u32)], budget_bytes: u64) -> Vec<u64> {
    let mut order: Vec<usize> = (0..asks.len()).collect();
    // By the amount asked for per unit of priority, compared by cross-multiplication to be exact.
    order.sort_by(|&a, &b| {
        let (left, right) = (asks[a], asks[b]);
        let (left, right) =
            (u128::from(left.0) * u128::from(right.1), u128::from(right.0) * u128::from(left.1));
        left.cmp(&right).then(a.cmp(&b))
    });
    let mut weights: u128 = asks.iter().map(|(_, weight)| u128::from(*weight)).sum();
    let mut left = budget_bytes;
    let mut given = vec![0; asks.len()];
    for index in order {
        let (ask, weight) = asks[index];
        let share = u128::from(left) * u128::from(weight) / weights.max(1);
        given[index] = ask.min(u64::try_from(share).unwrap_or(u64::MAX));
        left -= given[index];
        weights -= u128::from(weight);
    }
    given
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn holder(held: u64, used: u64, spare: u64, weight: u32) -> Holder {
        Holder { held_bytes: held, used_bytes: used, spare_bytes: spare, weight }
    }

    #[test]
    fn the_idle_give_before_the_busy() {
        let (busy, idle) = (holder(1000, 900, 500, 100), holder(1000, 100, 500, 100));
        assert_eq!(take(&[busy, idle], 400), [0, 400]);
        assert_eq!(take(&[busy, idle], 2000), [500, 500]);
    }

    #[test]
    fn equal_guests_give_by_their_priority() {
        let given = take(&[holder(1000, 0, 900, 300), holder(1000, 0, 900, 100)], 800);
        assert!(given[0] < given[1] && given.iter().sum::<u64>().abs_diff(800) <= 2, "{given:?}");
        let given = take(&[holder(1000, 0, 900, 1), holder(1000, 0, 900, 1)], 801);
        assert!(given[0].abs_diff(given[1]) <= 1, "{given:?}");
    }

    #[test]
    fn small_asks_are_met_before_large_ones() {
        assert_eq!(give(&[(10, 1), (1000, 1), (1000, 1)], 110), [10, 50, 50]);
        assert_eq!(give(&[(1000, 3), (1000, 1)], 100), [75, 25]);
        assert_eq!(give(&[(5, 1), (5, 1)], 100), [5, 5]);
        assert_eq!(give(&[], 100), Vec::<u64>::new());
    }

    #[test]
    fn small_shares_are_collected_into_portions() {
        assert_eq!(in_portions(vec![3, 9, 3, 0, 3, 3, 1], 4), [0, 9, 6, 0, 0, 6, 0]);
    }

    fn some_holder() -> impl Strategy<Value = Holder> {
        (0..1_u64 << 40, 0..1_u64 << 40, 0..1_u64 << 40, 1..10_000_u32)
            .prop_map(|(held, used, spare, weight)| holder(held, used, spare.min(held), weight))
    }

    proptest! {
        #[test]
        fn no_guest_gives_more_than_it_has_nor_all_more_than_wanted(
            holders in prop::collection::vec(some_holder(), 0..20), wanted in 0..1_u64 << 44,
        ) {
            let given = take(&holders, wanted);
            let all: u64 = holders.iter().map(|it| it.spare_bytes).sum();
            for (given, holder) in given.iter().zip(&holders) {
                prop_assert!(*given <= holder.spare_bytes);
            }
            let sum: u64 = given.iter().sum();
            prop_assert!(sum <= wanted.min(all));
            // Each share is rounded down, and the price is exact to about one part in 2^53.
            prop_assert!(wanted.min(all) - sum <= 64 + wanted.min(all) / 1_000_000 + holders.len() as u64);
        }

        #[test]
        fn an_additional_holder_never_costs_the_others(
            holders in prop::collection::vec(some_holder(), 1..10), more in some_holder(), wanted in 0..1_u64 << 42,
        ) {
            let alone = take(&holders, wanted);
            let mut with = holders;
            with.push(more);
            for (with, alone) in take(&with, wanted).iter().zip(&alone) {
                prop_assert!(*with <= alone + 64 + alone / 1_000_000, "{with} {alone}");
            }
        }

        #[test]
        fn grants_equal_the_request_or_the_budget(
            asks in prop::collection::vec((0..1_u64 << 40, 1..10_000_u32), 1..20), budget in 0..1_u64 << 42,
        ) {
            let given = give(&asks, budget);
            let asked: u64 = asks.iter().map(|(ask, _)| ask).sum();
            let sum: u64 = given.iter().sum();
            prop_assert!(sum <= budget && sum <= asked);
            prop_assert!(asked.min(budget) - sum <= asks.len() as u64);
            let weights: u128 = asks.iter().map(|(_, weight)| u128::from(*weight)).sum();
            for (given, (ask, weight)) in given.iter().zip(&asks) {
                let share = u128::from(budget) * u128::from(*weight) / weights;
                prop_assert!(u128::from(*given) + 1 >= share.min(u128::from(*ask)), "less than its share");
            }
        }
    }
}
