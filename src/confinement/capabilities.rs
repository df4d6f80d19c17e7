//! The capabilities that a guest's process keeps when root runs it, and its priority.

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use super::files::Means;
use crate::cli::isolation::SeccompMode;

/// Access to files of other users, which root's guests may have, and memory beyond the resource
/// limits.
const KEPT: CapabilitySet = CapabilitySet::DAC_OVERRIDE
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::SYS_RESOURCE);

/// Drops the capabilities (capabilities(7)) that a guest with these means does not need, in this
/// thread and in those that it starts, and has no thread of the process raise its priority. Call it
/// while there is no other thread. Does nothing unless `mode` is `On`.
///
/// # Errors
/// If the kernel refuses.
pub(crate) fn drop_most(mode: SeccompMode, means: Means) -> Result<()> {
    if mode != SeccompMode::On {
        return Ok(());
    }
    let refused = "cannot drop capabilities: `--seccomp off` runs the guest all the same";
    for limit in [Resource::Nice, Resource::Rtprio] {
        setrlimit(limit, Rlimit { current: Some(0), maximum: Some(0) }).context(refused)?;
    }
    let own = capabilities(None).context(refused)?;
    set_capabilities(None, what_is_left(own, means)).context(refused)
}

fn what_is_left(own: CapabilitySets, means: Means) -> CapabilitySets {
    let kept = if means.taps { KEPT | CapabilitySet::NET_ADMIN } else { KEPT };
    CapabilitySets {
        effective: own.effective & kept,
        permitted: own.permitted & kept,
        inheritable: CapabilitySet::empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_capabilities_are_not_added() {
        let has = |set| CapabilitySets { effective: set, permitted: set, inheritable: set };
        let some = CapabilitySet::SYS_ADMIN | CapabilitySet::FOWNER | CapabilitySet::NET_ADMIN;
        let left = what_is_left(has(some), Means::default());
        assert_eq!(left.permitted, CapabilitySet::FOWNER);
        assert_eq!(left.effective, CapabilitySet::FOWNER);
        assert!(left.inheritable.is_empty());
        let left = what_is_left(has(some), Means::ALL);
        assert_eq!(left.permitted, CapabilitySet::FOWNER | CapabilitySet::NET_ADMIN);
    }
}
