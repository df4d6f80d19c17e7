//! What the labels of memory optimization's metrics can say.

use crate::definition::{LabelDefinition, LabelValues};
use crate::labels::{Label, fixed_label, open_label};

open_label! {
    /// The name of a schedule of lighter.toml.
    ScheduleName as "schedule", PerSchedule
}

fixed_label! {
    /// The means by which memory is moved.
    Actuator as "actuator" {
        /// A guest's balloon.
        Balloon = "balloon",
        /// The kernel's samepage merging.
        Merge = "merge",
        /// Huge pages.
        Huge = "huge",
        /// Sharing with the template of a guest.
        Template = "template",
        /// Giving pages of zeros back.
        Zeros = "zeros",
        /// The host's hugetlb pools.
        Pool = "pool",
    }
}

fixed_label! {
    /// What came of a step.
    Verdict as "verdict" {
        /// What was expected: four fifths of it or more.
        Delivered = "delivered",
        /// Some of it.
        Partly = "partly",
        /// Less than a tenth of it.
        Nothing = "nothing",
        /// It cannot be told.
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
        /// The host could not be looked at.
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
        /// Everything was looked at, and merging gains hardly anything more.
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
    /// What a look at a guest's pages found. A page may be of several.
    Finding as "finding" {
        /// They are there, and the guest's own.
        Present = "present",
        /// They are zero.
        Zero = "zero",
        /// They have an equal in the merge domain, and are not zero.
        Duplicate = "duplicate",
        /// They are as in the guest's template.
        Template = "template",
        /// They were written between two looks.
        Written = "written",
    }
}

fixed_label! {
    /// How short of memory the host is.
    Level as "level" {
        /// It has enough.
        Green = "green",
        /// It gets short.
        Amber = "amber",
        /// It is about to swap or kill.
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

fixed_label! {
    /// The program that runs a guest.
    Vmm as "vmm" {
        /// This one.
        Lighter = "lighter",
        /// QEMU, with or without libvirt.
        Qemu = "qemu",
        /// Cloud Hypervisor.
        CloudHypervisor = "cloud_hypervisor",
    }
}

fixed_label! {
    /// Why a guest is left alone.
    Hindrance as "hindrance" {
        /// It is on its way to another host, or arriving.
        Migrating = "migrating",
        /// Its vCPUs are stopped.
        Paused = "paused",
        /// It is being written to a file.
        Saving = "saving",
        /// Its process does not answer.
        Unreachable = "unreachable",
        /// It is another program's, and the node only looks at those.
        Watched = "watched",
    }
}
