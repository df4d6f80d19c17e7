//! Why a guest gets nothing.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::situation::{Backing, Hindrance};
use crate::units::{Size, Span};

/// Why nothing is done, to a guest or by one actuator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "why", rename_all = "kebab-case")]
pub enum Because {
    /// Something forbids to touch it now.
    Hindered {
        /// What.
        by: Hindrance,
    },
    /// The policy says `optimize = false`.
    OptedOut,
    /// The policy says `take = false`, or this run is for others.
    NotTaken,
    /// Another guest of the same name is on the list.
    NameTaken,
    /// The policy does not allow this actuator.
    NotAllowed,
    /// It failed too often.
    Benched {
        /// How.
        reason: String,
        /// For how long yet.
        left: Duration,
    },
    /// It has no balloon.
    NoBalloon,
    /// Nobody in the guest serves the balloon.
    NoDriver,
    /// The guest says nothing of its memory.
    NoStatistics,
    /// With this kind of memory it would bring nothing.
    WrongBacking {
        /// Of what the RAM is made.
        backing: Backing,
    },
    /// It hurt lately and has all it may have.
    Spared {
        /// What showed it.
        pain: String,
        /// For how long yet.
        left: Duration,
    },
    /// Its balloon went up and down too often.
    Oscillating {
        /// For how long yet it is left alone.
        left: Duration,
    },
    /// The balloon is still on its way.
    Settling,
    /// It has about what it needs.
    WithinDeadBand,
    /// It has its floor.
    AtFloor,
    /// It has no more pages on the host than it needs.
    NothingToGain,
    /// The goal is reached without it.
    HostHasEnough,
    /// It needs more, and the host has no more.
    HostShort,
    /// It belongs to no merge domain.
    NoDomain,
    /// It would have a merge domain by its name, which whoever started it has chosen.
    DomainByNameAlone,
    /// The kernel merges another domain.
    OtherDomain {
        /// Which.
        domain: String,
    },
    /// Somebody who is not of its domain could share pages with it.
    Exposed {
        /// Who, as a subject.
        other: String,
    },
    /// Its memory was not looked at, or too long ago.
    NotSurveyed,
    /// Merging would cost more than it brings.
    NoProfit,
    /// All of it that is worth merging may be merged already.
    Marked,
    /// ksmd has no CPU time for it.
    NoCpuTime,
    /// It shares with its template first.
    TemplateFirst,
    /// Nothing of it is hot and without huge pages.
    NothingHot,
    /// It has too few pages of zeros.
    FewZeros,
    /// Too few of its pages equal its template's.
    FewEqual,
    /// It is to have all of its memory from its start.
    Preallocated,
    /// The kernel cannot merge.
    NoKsm,
    /// Only its own VMM could.
    ForeignVmm,
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hindered { by: Hindrance::Migrating } => "it is migrating",
            Self::Hindered { by: Hindrance::Paused } => "it is paused",
            Self::Hindered { by: Hindrance::Saving } => "it is being saved",
            Self::Hindered { by: Hindrance::Unreachable } => "its process does not answer",
            Self::Hindered { by: Hindrance::Watched } => {
                "it is only watched (`lighter node --foreign-guests act`)"
            }
            Self::OptedOut => "the policy leaves it alone",
            Self::NotTaken => {
                "it is to be left as it is (`take = false`, or not among the schedule's guests)"
            }
            Self::NameTaken => "another guest has the same name",
            Self::NotAllowed => "the policy does not allow it",
            Self::Benched { reason, left } => {
                return write!(f, "benched for {}: {reason}", Span(*left));
            }
            Self::NoBalloon => "it has no balloon",
            Self::NoDriver => "no driver in the guest serves the balloon",
            Self::NoStatistics => "the guest says nothing of its memory",
            Self::WrongBacking { backing: Backing::HugePool } => "pages of a pool do not come back",
            Self::WrongBacking { backing: Backing::Shared } => "shared memory is never merged",
            Self::WrongBacking { .. } => "its memory is a template's, or of unknown kind",
            Self::Spared { pain, left } => {
                return write!(f, "spared for {}: {pain}", Span(*left));
            }
            Self::Oscillating { left } => {
                let left = Span(*left);
                return write!(f, "the balloon went up and down too often, it rests for {left}");
            }
            Self::Settling => "the balloon is still on its way",
            Self::WithinDeadBand => "it has about what it needs",
            Self::AtFloor => "it has no more than its floor",
            Self::NothingToGain => "it holds no more of the host than it needs",
            Self::HostHasEnough => "the goal is reached without it",
            Self::HostShort => "it needs more, and the host has no more",
            Self::NoDomain => "it belongs to no merge domain",
            Self::DomainByNameAlone => {
                "its merge domain is given by its name, which anybody could choose: add `user` to its [[guest]] table"
            }
            Self::OtherDomain { domain } => return write!(f, "the kernel merges domain {domain}"),
            Self::Exposed { other } => return write!(f, "{other} could share its pages"),
            Self::NotSurveyed => "not surveyed recently (use --survey)",
            Self::NoProfit => "merging would cost more than it brings",
            Self::Marked => "what of it is worth merging is marked already",
            Self::NoCpuTime => "ksmd has no CPU time for it (merge.cpu-time)",
            Self::TemplateFirst => "it shares with its template first",
            Self::NothingHot => "nothing of it is hot and without huge pages",
            Self::FewEqual => "too few of its own pages are as in its template",
            Self::FewZeros => "it has too few pages of zeros",
            Self::Preallocated => "its memory is taken in advance",
            Self::NoKsm => "the kernel cannot merge (no /sys/kernel/mm/ksm)",
            Self::ForeignVmm => "only its own VMM could",
        })
    }
}

/// Something that only the operator can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Advice {
    /// Have the guest report free pages: they would come back by themselves.
    EnableReporting {
        /// The guest.
        guest: String,
        /// What it says is free.
        free_bytes: u64,
    },
    /// The kernel may merge this guest, and it belongs to no merge domain: nothing else may be
    /// merged beside it.
    NameDomain {
        /// The guest.
        guest: String,
    },
    /// A rule of the policy would give this guest something by its name, which is its owner's
    /// choice.
    NameUser {
        /// The guest.
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
                    "{guest}: let its balloon report free pages ({free} now): they come back automatically"
                )
            }
            Self::NameDomain { guest } => write!(
                f,
                "{guest}: KSM is enabled for it but no merge domain is set: give it a merge-domain in the policy, \
                 or start it without (QEMU: -machine mem-merge=off)"
            ),
            Self::NameUser { guest } => write!(
                f,
                "{guest}: a [[guest]] table gives it `min` or `priority` by its name only, and its owner has chosen that: \
                 if it is the guest that is meant, add `user`"
            ),
        }
    }
}
