//! The hugetlb pools of the host: unused pages are returned, and a reserve is kept.

use std::time::Duration;

use super::need::Need;
use super::sheet::Draft;
use super::view::Context;
use crate::policy::Actuator;
use crate::situation::Pool;
use crate::step::Action;
use crate::units::{Size, signed};

/// Pages of this size are not returned: once memory is fragmented, they cannot be allocated again
/// until the host reboots.
const GIGANTIC_BYTES: u64 = 1 << 30;

impl Context<'_> {
    /// Drafts steps that resize pools, according to `[pools]` in the policy.
    pub(super) fn pools(&self, need: &mut Need, draft: &mut Draft) {
        let is_allowed = self.policy.actuators.contains(&Actuator::Pool);
        if !is_allowed || self.ledger.bench(None, Actuator::Pool).is_some() {
            return;
        }
        let mut pools: Vec<&Pool> = self.situation.host.pools.iter().collect();
        pools.sort_by_key(|pool| pool.page_bytes);
        pools.dedup_by_key(|pool| pool.page_bytes);
        pools.retain(|pool| pool.page_bytes > 0);
        let smallest = pools.first().map_or(0, |pool| pool.page_bytes);
        for pool in pools {
            let free = pool.free_pages.saturating_sub(pool.reserved_pages).min(pool.pages);
            let of = |bytes: u64| bytes.div_ceil(pool.page_bytes);
            let free_min = self.policy.pools.free_min_bytes;
            // The reserve is not meant for larger pages if the host has none of them, or if it is
            // smaller than one of them.
            let is_meant =
                pool.page_bytes == smallest || (pool.pages > 0 && pool.page_bytes <= free_min);
            let least = if is_meant { of(free_min) } else { 0 };
            let most = of(self.policy.pools.free_max_bytes).max(least);
            if free < least {
                self.grow_pool(pool, least - free, need, draft);
            } else if free > most && pool.page_bytes < GIGANTIC_BYTES && !need.is_met() {
                // No more than needed, rounded up to a whole page.
                let asked = need.at_most((free - most).saturating_mul(pool.page_bytes));
                let pages = of(asked).min(free - most);
                let expected = signed(pages.saturating_mul(pool.page_bytes));
                need.met_by(expected);
                let reason = format!("{} of it is free", Size(expected));
                resize(pool, pool.pages - pages, expected, reason, draft);
            }
        }
    }

    fn grow_pool(&self, pool: &Pool, pages: u64, need: &mut Need, draft: &mut Draft) {
        let bytes = pages.saturating_mul(pool.page_bytes);
        if need.spend(bytes) {
            let least = Size::of(self.policy.pools.free_min_bytes);
            let reason = format!("{least} of it are to be free");
            resize(pool, pool.pages.saturating_add(pages), -signed(bytes), reason, draft);
        }
    }
}

fn resize(pool: &Pool, to_pages: u64, expected: i64, reason: String, draft: &mut Draft) {
    let action =
        Action::ResizePool { page_bytes: pool.page_bytes, from_pages: pool.pages, to_pages };
    draft.step(action, expected, Duration::from_millis(1), reason);
}
