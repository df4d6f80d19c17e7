//! What the labels of memory optimization's metrics can say.

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
    /// What a run was begun by.
    RunTrigger as "trigger" {
        /// An operator.
        Manual = "manual",
        /// A schedule.
        Schedule = "schedule",
    }
}

fixed_label! {
    /// How a run ended.
    RunOutcome as "outcome" {
        /// There is nothing left to do for its goal.
        Reached = "reached",
        /// There is nothing more that can be done.
        Exhausted = "exhausted",
        /// Its window was over.
        WindowOver = "window_over",
        /// Somebody called it off.
        Cancelled = "cancelled",
        /// The host could not be inspected.
        Failed = "failed",
    }
}

fixed_label! {
    /// Why a schedule did not run when it was due.
    MissedReason as "reason" {
        /// The node was not there in time.
        Absent = "absent",
        /// It was due again before it could be caught up.
        Superseded = "superseded",
        /// Another run was under way, and it does not wait.
        Overlapped = "overlapped",
        /// Another run was under way until its window was over.
        WindowOver = "window_over",
    }
}

fixed_label! {
    /// Why a window in which ksmd was driven ended.
    WindowEnd as "end" {
        /// Everything was scanned, and merging gains hardly anything more.
        Flat = "flat",
        /// Its time was over.
        TimeUsed = "time_used",
        /// ksmd has used the CPU time that it might.
        CpuTimeUsed = "cpu_time_used",
        /// No process lets its memory be merged.
        NothingToMerge = "nothing_to_merge",
        /// Somebody else changed a setting of ksmd.
        Foreign = "foreign",
        /// It was called off.
        CalledOff = "called_off",
        /// ksmd could not be driven any more.
        Failed = "failed",
    }
}

fixed_label! {
    /// What a survey of a guest's pages found. A page may be of several.
    Finding as "finding" {
        /// They are there, and the guest's own.
        Present = "present",
        /// They are zero.
        Zero = "zero",
        /// They have an equal in the merge domain, and are not zero.
        Duplicate = "duplicate",
        /// They are as in the guest's template.
        Template = "template",
        /// They were written between two samples.
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
    /// Who waited for memory.
    Stall as "stall" {
        /// Something did.
        Some = "some",
        /// Everything did.
        Full = "full",
    }
}

fixed_label! {
    /// The size of the pages of a hugetlb pool.
    PageSize as "page_size" {
        /// 2 MiB.
        Mib2 = "2M",
        /// 1 GiB.
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
    }
}
