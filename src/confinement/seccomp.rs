//! The system calls that remain, in all threads.
//!
//! There are several filters; the kernel applies the strictest result. A call outside
//! [`super::calls`] ends the process, with a message. What the C library may try on its own (a new
//! process, executable memory, an unusual socket) fails with an error, and the process continues.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};

use super::files::Means;
use super::{calls, raw_trap};
use crate::cli::isolation::SeccompMode;

/// Rules by system call number; a call with an empty list always matches.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// `PRIO_PROCESS`, which is unsigned in glibc and signed in musl.
const PRIO_PROCESS: u64 = libc::PRIO_PROCESS as u64;
/// How high a thread may set its priority; the types differ likewise.
const LIMITS_OF_PRIORITY: [u64; 2] = [libc::RLIMIT_NICE as u64, libc::RLIMIT_RTPRIO as u64];

/// Limits this process, in all threads and any that they start, to the calls of a guest's process.
///
/// # Errors
/// If the kernel has no filters, or refuses them.
pub(crate) fn restrict(mode: SeccompMode, means: Means) -> Result<()> {
    let other = match mode {
        SeccompMode::Off => return Ok(()),
        SeccompMode::Log => SeccompAction::Log,
        SeccompMode::On => SeccompAction::Trap,
    };
    raw_trap::listen().context("cannot listen for refused system calls")?;
    // The filter that does not allow `seccomp` itself must come last.
    for filter in [absent(mode), refused(mode, means), allowed(means, other)] {
        let program: BpfProgram = filter
            .and_then(TryInto::try_into)
            .context("the list of system calls makes no sense")?;
        apply_filter_all_threads(&program).context(
            "cannot confine the guest's process to its system calls: `--seccomp off` runs it all the same",
        )?;
    }
    Ok(())
}

/// The filter of what a guest's process does.
fn allowed(means: Means, other: SeccompAction) -> Result<SeccompFilter, seccompiler::BackendError> {
    let mut rules: Rules =
        calls::ALLOWED.iter().copied().flatten().map(|call| (*call, Vec::new())).collect();
    let vhost = means.vhost.then_some(calls::IOCTLS_OF_VHOST);
    let devices = calls::IOCTLS_OF_DEVICES
        .into_iter()
        .chain(vhost)
        .map(|(mask, request)| rule([(1, SeccompCmpOp::MaskedEq(mask), request)]));
    let ioctls = ioctls(means).map(|request| rule([(1, SeccompCmpOp::Eq, request)]));
    let ioctls: Result<_, _> = devices.chain(ioctls).collect();
    rules.insert(libc::SYS_ioctl, ioctls?);
    // The handler that reports refused calls must not be replaced.
    let others = rule([(0, SeccompCmpOp::Ne, libc::SIGSYS as u64)])?;
    rules.insert(libc::SYS_rt_sigaction, vec![others]);
    let about = |process: u32| rule([(0, SeccompCmpOp::Eq, process.into())]);
    let own = std::process::id();
    rules.insert(libc::SYS_tgkill, vec![about(own)?]);
    // 0 means the caller as well. Those limits stay that keep it from a higher priority.
    let limits = |process: u32| {
        let [nice, real_time] = LIMITS_OF_PRIORITY.map(|limit| (1, SeccompCmpOp::Ne, limit));
        rule([(0, SeccompCmpOp::Eq, process.into()), nice, real_time])
    };
    rules.insert(libc::SYS_prlimit64, vec![limits(own)?, limits(0)?]);
    // A thread may lower its own priority and change its slices, but not those of others; the
    // limits keep it from more.
    let itself = [(0, SeccompCmpOp::Eq, PRIO_PROCESS), (1, SeccompCmpOp::Eq, 0)];
    rules.insert(libc::SYS_setpriority, vec![rule(itself)?]);
    rules.insert(libc::SYS_sched_getattr, vec![about(0)?]);
    rules.insert(libc::SYS_sched_setattr, vec![about(0)?]);
    // Only the times of an open file: Landlock does not cover this call.
    let no_path = SeccompCondition::new(1, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    rules.insert(libc::SYS_utimensat, vec![SeccompRule::new(vec![no_path])?]);
    SeccompFilter::new(rules, other, SeccompAction::Allow, arch()?)
}

/// The `ioctl` requests, except those of devices.
fn ioctls(means: Means) -> impl Iterator<Item = u64> {
    let interfaces = if means.taps { &calls::IOCTLS_OF_INTERFACES[..] } else { &[] };
    let templates = if means.template { &calls::IOCTLS_OF_TEMPLATES[..] } else { &[] };
    let missing = if means.missing_pages { &calls::IOCTLS_OF_MISSING_PAGES[..] } else { &[] };
    calls::IOCTLS.iter().chain(interfaces).chain(templates).chain(missing).copied()
}

/// The filter of calls that fail with an error.
fn refused(mode: SeccompMode, means: Means) -> Result<SeccompFilter, seccompiler::BackendError> {
    let executable = || {
        let exec = libc::PROT_EXEC as u64;
        rule([(2, SeccompCmpOp::MaskedEq(exec), exec)])
    };
    let families = calls::SOCKET_FAMILIES.map(|family| (0, SeccompCmpOp::Ne, family as u64));
    let is_of = |family: i32| (0, SeccompCmpOp::Eq, family as u64);
    let other_netlink = (2, SeccompCmpOp::Ne, libc::NETLINK_ROUTE as u64);
    let mut sockets = vec![rule(families)?, rule([is_of(libc::AF_NETLINK), other_netlink])?];
    if !means.unix_sockets {
        sockets.push(rule([is_of(libc::AF_UNIX)])?);
    }
    let thread = libc::CLONE_THREAD as u64;
    let mut rules = Rules::from([
        (libc::SYS_mmap, vec![executable()?]),
        (libc::SYS_mprotect, vec![executable()?]),
        (libc::SYS_socket, sockets),
        (libc::SYS_clone, vec![rule([(0, SeccompCmpOp::MaskedEq(thread), 0)])?]),
    ]);
    if !means.rings {
        rules.extend(calls::RINGS.map(|call| (call, Vec::new())));
    }
    SeccompFilter::new(rules, SeccompAction::Allow, failure(mode, libc::EPERM), arch()?)
}

/// The filter of `clone3`, whose arguments a filter cannot read; the C library falls back on
/// `clone`.
fn absent(mode: SeccompMode) -> Result<SeccompFilter, seccompiler::BackendError> {
    let rules = Rules::from([(libc::SYS_clone3, Vec::new())]);
    SeccompFilter::new(rules, SeccompAction::Allow, failure(mode, libc::ENOSYS), arch()?)
}

fn failure(mode: SeccompMode, error: i32) -> SeccompAction {
    match mode {
        SeccompMode::Log => SeccompAction::Log,
        SeccompMode::On | SeccompMode::Off => SeccompAction::Errno(error as u32),
    }
}

fn arch() -> Result<TargetArch, seccompiler::BackendError> {
    std::env::consts::ARCH.try_into()
}

/// A rule with all of these conditions: argument number, comparison, value.
fn rule<const N: usize>(
    conditions: [(u8, SeccompCmpOp, u64); N],
) -> Result<SeccompRule, seccompiler::BackendError> {
    // The kernel reads only the lower 32 bits of these arguments, so only those are compared.
    let condition = |(argument, operation, value)| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operation, value)
    };
    SeccompRule::new(conditions.into_iter().map(condition).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_become_filters() {
        let mode = SeccompMode::On;
        for means in [Means::default(), Means::ALL] {
            for filter in [allowed(means, SeccompAction::Trap), refused(mode, means), absent(mode)]
            {
                let program: BpfProgram = filter.unwrap().try_into().unwrap();
                assert!(program.len() < 4096, "the kernel takes no more: {}", program.len());
            }
        }
    }

    #[test]
    fn a_userfaultfd_is_used_only_for_clones_and_arriving_guests() {
        let lists = |means, request| ioctls(means).any(|listed| listed == request);
        let [template, arriving] = [
            Means { template: true, ..Means::default() },
            Means { missing_pages: true, ..Means::default() },
        ];
        for request in calls::IOCTLS_OF_TEMPLATES {
            assert!(lists(template, request) && !lists(Means::default(), request));
        }
        for request in calls::IOCTLS_OF_MISSING_PAGES {
            assert!(lists(arriving, request) && !lists(Means::default(), request));
            let both_use_it = calls::IOCTLS_OF_TEMPLATES.contains(&request);
            assert_eq!(lists(template, request), both_use_it, "{request:#x}");
        }
    }

    #[test]
    fn no_call_is_listed_twice_and_none_of_the_notorious() {
        let mut all: Vec<_> = calls::ALLOWED.iter().copied().flatten().collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        for (call, name) in &calls::NAMED_CALLS {
            assert!(!all.contains(&call), "{name}");
        }
    }
}
