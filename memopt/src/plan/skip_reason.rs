//! The reasons why a guest or an actuator is skipped.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::situation::{Backing, Hindrance};
use crate::units::{Size, Span};

/// The reason why no step is executed on a guest, or none by one actuator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "why", rename_all = "kebab-case")]
pub enum SkipReason {
    /// The guest must not be touched now.
    Hindered {
        /// The condition that prevents it.
        by: Hindrance,
    },
    /// The policy says `optimize = false`.
    OptedOut,
    /// The policy says `take = false`, or this run is limited to other guests.
    NotTaken,
    /// Another guest with the same name comes first in the list.
    NameTaken,
    /// The policy does not allow this actuator.
    NotAllowed,
    /// The actuator failed too often.
    Benched {
        /// The failures.
        reason: String,
        /// Time until the bench ends.
        left: Duration,
    },
    /// The guest has no balloon.
    NoBalloon,
    /// No driver in the guest serves the balloon.
    NoDriver,
    /// The guest reports no memory statistics.
    NoStatistics,
    /// The actuator would return nothing from this kind of memory.
    WrongBacking {
        /// The kind of memory behind the guest's RAM.
        backing: Backing,
    },
    /// The guest was under pressure recently and has all the memory that it may have.
    Spared {
        /// The sign of the pressure.
        pressure: String,
        /// Time until the guest is no longer spared.
        left: Duration,
    },
    /// The guest boots, or has just booted: what it reports does not show yet what it needs.
    Booting {
        /// Time until memory may be taken from it.
        left: Duration,
    },
    /// The balloon changed direction too often.
    Oscillating {
        /// Time until it may be moved again.
        left: Duration,
    },
    /// The balloon has not reached its target yet.
    Settling,
    /// The guest has about as much as it needs.
    WithinDeadBand,
    /// The guest is at its floor.
    AtFloor,
    /// The guest holds no more host memory than it needs.
    NothingToGain,
    /// The goal is reached without this guest.
    HostHasEnough,
    /// The guest needs more memory, and the host has none left.
    HostShort,
    /// The guest belongs to no merge domain.
    NoDomain,
    /// The policy assigns a merge domain by the guest's name alone, which the user who started it
    /// chose.
    DomainByNameAlone,
    /// The kernel merges another domain.
    OtherDomain {
        /// Name of the merged domain.
        domain: String,
    },
    /// A guest or a process outside the domain could share pages with the guest.
    Exposed {
        /// That guest or process, worded as the subject of a sentence.
        other: String,
    },
    /// The guest's memory was not surveyed, or too long ago.
    NotSurveyed,
    /// Merging would cost more than it returns.
    NoProfit,
    /// Everything worth merging is marked already.
    Marked,
    /// ksmd has no CPU time for it.
    NoCpuTime,
    /// The guest first shares pages with its template.
    TemplateFirst,
    /// No chunk of the guest is hot and in small pages.
    NothingHot,
    /// The guest has too few zero pages.
    FewZeros,
    /// Too few of the guest's pages equal its template's.
    FewEqual,
    /// The guest is to hold all of its memory from its start.
    Preallocated,
    /// The kernel does not support merging.
    NoKsm,
    /// Only the guest's own VMM could do it.
    ForeignVmm,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hindered { by: Hindrance::Migrating } => "it is migrating",
            Self::Hindered { by: Hindrance::Paused } => "it is paused",
            Self::Hindered { by: Hindrance::Saving } => "it is being saved",
            Self::Hindered { by: Hindrance::Unreachable } => "its process does not answer",
            Self::Hindered { by: Hindrance::Pinned } => {
                "it has a device of the host, which pins all of its memory"
            }
            Self::Hindered { by: Hindrance::Watched } => {
                "it is only watched (see `lighter node --foreign-guests act`)"
            }
            Self::OptedOut => "the policy excludes it (`optimize = false`)",
            Self::NotTaken => {
                "the policy or the schedule excludes it (`take = false`, or not in its `guests`)"
            }
            Self::NameTaken => "another guest has the same name",
            Self::NotAllowed => "the policy does not allow it",
            Self::Benched { reason, left } => {
                return write!(f, "benched for {}: {reason}", Span(*left));
            }
            Self::NoBalloon => "it has no balloon",
            Self::NoDriver => "no driver in the guest serves the balloon",
            Self::NoStatistics => "the guest reports no memory statistics",
            Self::WrongBacking { backing: Backing::HugePool } => "pages of a huge-page pool do not return to the host",
            Self::WrongBacking { backing: Backing::Shared } => "shared memory is never merged",
            Self::WrongBacking { .. } => "its memory belongs to a template or is of unknown kind",
            Self::Spared { pressure, left } => {
                return write!(f, "spared for {}: {pressure}", Span(*left));
            }
            Self::Booting { left } => {
                return write!(f, "it has just booted; nothing is taken for {}", Span(*left));
            }
            Self::Oscillating { left } => {
                let left = Span(*left);
                return write!(f, "the balloon changed direction too often; not moved for {left}");
            }
            Self::Settling => "the balloon has not reached its target yet",
            Self::WithinDeadBand => "it has about as much memory as it needs",
            Self::AtFloor => "it is at its floor",
            Self::NothingToGain => "it uses no more host memory than it needs",
            Self::HostHasEnough => "the goal is reached without it",
            Self::HostShort => "it needs more memory, and the host has none left",
            Self::NoDomain => "it belongs to no merge domain",
            Self::DomainByNameAlone => {
                "its merge domain is assigned by name alone, and any user can choose a name: add `user` to its [[guest]] table"
            }
            Self::OtherDomain { domain } => return write!(f, "the kernel is merging domain {domain}"),
            Self::Exposed { other } => return write!(f, "{other} could share pages with it"),
            Self::NotSurveyed => "not surveyed recently (use --survey)",
            Self::NoProfit => "merging would cost more than it saves",
            Self::Marked => "everything worth merging is marked already",
            Self::NoCpuTime => "ksmd has no CPU time left for it (`merge.cpu-time`)",
            Self::TemplateFirst => "it shares pages with its template first",
            Self::NothingHot => "none of its hot memory is in small pages",
            Self::FewEqual => "too few of its pages equal its template's",
            Self::FewZeros => "it has too few zero pages",
            Self::Preallocated => "its memory is preallocated",
            Self::NoKsm => "the kernel does not support KSM (no /sys/kernel/mm/ksm)",
            Self::ForeignVmm => "only its own VMM could do it",
        })
    }
}

/// An action that only the operator can take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Advice {
    /// Enable free page reporting for the guest, so that its free pages are returned automatically.
    EnableReporting {
        /// Name of the guest.
        guest: String,
        /// Memory that the guest reports as free.
        free_bytes: u64,
    },
    /// Set a merge domain: the kernel may merge this guest, but it belongs to none, so no domain
    /// can be merged beside it.
    NameDomain {
        /// Name of the guest.
        guest: String,
    },
    /// Name the user: a policy rule would give this guest an advantage by its name, which its owner
    /// chose.
    NameUser {
        /// Name of the guest.
        guest: String,
    },
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EnableReporting { guest, free_bytes } => {
                let free = Size::of(*free_bytes);
                write!(
                    f,
                    "{guest}: enable free page reporting of its balloon ({free} are free now): free pages then return automatically"
                )
            }
            Self::NameDomain { guest } => write!(
                f,
                "{guest}: KSM is enabled for it but no merge domain is set: give it a `merge-domain` in the policy, \
                 or start it without KSM (QEMU: -machine mem-merge=off)"
            ),
            Self::NameUser { guest } => write!(
                f,
                "{guest}: a [[guest]] table gives it `min` or `priority` by its name only, and its owner chose the name: \
                 if this is the guest you mean, add `user`"
            ),
        }
    }
}
