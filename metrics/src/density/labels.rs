//! The values of the labels of memory optimization's metrics.

use memopt::ledger::Level;
use memopt::policy::Actuator;
use memopt::situation::{Hindrance, Vmm};
use memopt::verify::Verdict;

use crate::definition::{LabelDefinition, LabelValues};
use crate::labels::{FixedLabel, Label, fixed_label, label_values, named_label, open_label};

open_label! {
    /// The name of a schedule of lighter.toml.
    ScheduleName as "schedule", PerSchedule
}

named_label!(Actuator as "actuator");

label_values! {
    Verdict as "verdict" {
        Delivered = "delivered",
        Partly = "partly",
        Nothing = "nothing",
        Unclear = "unclear",
    }
}

fixed_label! {
    /// What started a run.
    RunTrigger as "trigger" {
        /// A request of an operator.
        Manual = "manual",
        /// A schedule in lighter.toml that was due.
        Schedule = "schedule",
    }
}

fixed_label! {
    /// How a run ended.
    RunOutcome as "outcome" {
        /// Nothing is left to do for its goal.
        Reached = "reached",
        /// Nothing more can be done.
        Exhausted = "exhausted",
        /// Its window was over.
        WindowOver = "window_over",
        /// A user cancelled it.
        Cancelled = "cancelled",
        /// The host could not be inspected.
        Failed = "failed",
    }
}

fixed_label! {
    /// Why a schedule did not run when it was due.
    MissedReason as "reason" {
        /// The node did not run in time.
        Absent = "absent",
        /// The schedule was due again before it could catch up.
        Superseded = "superseded",
        /// Another run was under way, and the schedule does not queue.
        Overlapped = "overlapped",
        /// Another run was under way until the schedule's window was over.
        WindowOver = "window_over",
    }
}

fixed_label! {
    /// Why a window of ksmd ended.
    WindowEnd as "end" {
        /// Everything was scanned, and merging gains hardly anything more.
        Flat = "flat",
        /// Its time was used up.
        TimeUsed = "time_used",
        /// ksmd has used its CPU time.
        CpuTimeUsed = "cpu_time_used",
        /// ksmd made no progress: no process has mergeable memory.
        NothingToMerge = "nothing_to_merge",
        /// Another process changed a setting of ksmd.
        Foreign = "foreign",
        /// It was cancelled.
        CalledOff = "called_off",
        /// ksmd could no longer be driven.
        Failed = "failed",
    }
}

fixed_label! {
    /// What a survey of a guest's pages found. A page may count in several findings.
    Finding as "finding" {
        /// Pages that are present and owned by the guest alone.
        Present = "present",
        /// Pages of zeros.
        Zero = "zero",
        /// Pages other than zeros that have an equal in the merge domain.
        Duplicate = "duplicate",
        /// Pages that equal those of the guest's template.
        Template = "template",
        /// Pages that were written between two samples.
        Written = "written",
    }
}

label_values! {
    Level as "level" {
        Green = "green",
        Amber = "amber",
        Red = "red",
    }
}

fixed_label! {
    /// Which tasks waited for memory.
    Stall as "stall" {
        /// Some tasks did.
        Some = "some",
        /// All tasks did.
        Full = "full",
    }
}

fixed_label! {
    /// The size of the pages of a hugetlb pool.
    PageSize as "page_size" {
        /// Pages of 2 MiB.
        Mib2 = "2M",
        /// Pages of 1 GiB.
        Gib1 = "1G",
    }
}

label_values! {
    Vmm as "vmm" {
        Lighter = "lighter",
        Qemu = "qemu",
        CloudHypervisor = "cloud_hypervisor",
    }
}

label_values! {
    Hindrance as "hindrance" {
        Migrating = "migrating",
        Paused = "paused",
        Saving = "saving",
        Unreachable = "unreachable",
        Watched = "watched",
        Pinned = "pinned",
    }
}
