//! The labels and their values as types, so that code cannot misspell or invent one.

use migrate::Phase;
use migrate::decisions::DecisionKind;
use migrate::progress::Role;

use crate::definition::{LabelDefinition, LabelValues};

/// A value of one label.
pub trait Label {
    /// The label's name and possible values.
    const DEFINITION: LabelDefinition;
    /// Returns this value as the exposition prints it.
    fn as_str(&self) -> &str;
}

/// A label with a fixed set of values.
pub trait FixedLabel: Label + Copy + PartialEq + 'static {
    /// Every value, in order.
    const EVERY: &'static [Self];
}

/// The labels of one family: a tuple of [`Label`]s, `()` for a family without labels.
pub trait Labels {
    /// The labels, in order.
    const DEFINITIONS: &'static [LabelDefinition];
    /// Returns the values in the same order.
    fn values(&self) -> Vec<&str>;
}

impl Labels for () {
    const DEFINITIONS: &'static [LabelDefinition] = &[];
    fn values(&self) -> Vec<&str> {
        Vec::new()
    }
}

impl<A: Label> Labels for (A,) {
    const DEFINITIONS: &'static [LabelDefinition] = &[A::DEFINITION];
    fn values(&self) -> Vec<&str> {
        vec![self.0.as_str()]
    }
}

impl<A: Label, B: Label> Labels for (A, B) {
    const DEFINITIONS: &'static [LabelDefinition] = &[A::DEFINITION, B::DEFINITION];
    fn values(&self) -> Vec<&str> {
        vec![self.0.as_str(), self.1.as_str()]
    }
}

impl<A: Label, B: Label, C: Label> Labels for (A, B, C) {
    const DEFINITIONS: &'static [LabelDefinition] = &[A::DEFINITION, B::DEFINITION, C::DEFINITION];
    fn values(&self) -> Vec<&str> {
        vec![self.0.as_str(), self.1.as_str(), self.2.as_str()]
    }
}

/// Makes a label of a type that has names for its own values.
macro_rules! named_label {
    ($name:ty as $label:literal) => {
        impl FixedLabel for $name {
            const EVERY: &'static [Self] = &Self::ALL;
        }

        impl Label for $name {
            const DEFINITION: LabelDefinition = LabelDefinition {
                name: $label,
                values: LabelValues::Fixed(&{
                    let mut names = [""; <$name>::ALL.len()];
                    let mut index = 0;
                    while index < names.len() {
                        names[index] = <$name>::ALL[index].name();
                        index += 1;
                    }
                    names
                }),
            };
            fn as_str(&self) -> &str {
                self.name()
            }
        }
    };
}

/// Makes a label of a type without such names.
macro_rules! label_values {
    ($name:ty as $label:literal { $( $variant:ident = $value:literal, )+ }) => {
        impl FixedLabel for $name {
            const EVERY: &'static [Self] = &[ $( Self::$variant, )+ ];
        }

        impl Label for $name {
            const DEFINITION: LabelDefinition = LabelDefinition {
                name: $label,
                values: LabelValues::Fixed(&[ $( $value, )+ ]),
            };
            fn as_str(&self) -> &str {
                match self { $( Self::$variant => $value, )+ }
            }
        }
    };
}

/// Declares a type that serves only as a label.
macro_rules! fixed_label {
    ($(#[$doc:meta])* $name:ident as $label:literal {
        $( $(#[$variant_doc:meta])* $variant:ident = $value:literal, )+
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $( $(#[$variant_doc])* $variant, )+ }

        label_values! { $name as $label { $( $variant = $value, )+ } }
    };
}

macro_rules! open_label {
    ($(#[$doc:meta])* $name:ident as $label:literal, $values:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub String);

        impl Label for $name {
            const DEFINITION: LabelDefinition =
                LabelDefinition { name: $label, values: LabelValues::$values };
            fn as_str(&self) -> &str {
                &self.0
            }
        }
    };
}

pub(crate) use {fixed_label, label_values, named_label, open_label};

open_label! {
    /// The name of a guest on this host.
    GuestName as "guest", PerGuest
}
open_label! {
    /// The identity of a guest, which stays the same on every host.
    GuestUuid as "uuid", PerGuest
}
open_label! {
    /// The tap of a guest's network device on this host.
    NetDevice as "device", PerGuest
}
open_label! {
    /// The version of the program.
    BuildVersion as "version", PerBuild
}
open_label! {
    /// The source revision that the program was built from.
    BuildRevision as "revision", PerBuild
}

fixed_label! {
    /// What a guest on this host is doing.
    GuestState as "state" {
        /// Arriving from another host; this copy is not complete and does not run.
        Incoming = "incoming",
        /// Its vCPUs run.
        Running = "running",
        /// Its vCPUs are paused on request.
        Paused = "paused",
        /// On its way to another host; it runs here until the switchover.
        Migrating = "migrating",
        /// Handed over or complete, but the other host has not confirmed; it does not run here.
        InDoubt = "in_doubt",
        /// It has ended, and its process is about to exit.
        Ended = "ended",
    }
}

// Whether a migration moves a guest away from this host or to it.
label_values! {
    Role as "direction" {
        Source = "outgoing",
        Destination = "incoming",
    }
}

named_label!(Phase as "phase");

// What a source has decided.
named_label!(DecisionKind as "decision");

fixed_label! {
    /// How pages are encoded on the wire.
    Encoding as "encoding" {
        /// As they are, without compression.
        Raw = "raw",
        /// Compressed with lz4.
        Lz4 = "lz4",
        /// One bit each: they hold only zeros.
        Zero = "zero",
    }
}

fixed_label! {
    /// Why a migration failed.
    FailureReason as "reason" {
        /// The two ends have no protocol version in common.
        Version = "version",
        /// The destination refused the guest.
        Refused = "refused",
        /// The limit on total time was reached.
        Timeout = "timeout",
        /// The other end is connected but did not answer.
        NoAnswer = "no_answer",
        /// The connection was lost, or could not be established for another reason than those
        /// below.
        ConnectionLost = "connection_lost",
        /// A certificate was refused by either end.
        Certificate = "certificate",
        /// The other end violated the protocol.
        Protocol = "protocol",
        /// Pages arrived damaged or incomplete.
        Data = "data",
        /// A request to the virtual machine failed.
        Guest = "guest",
        /// The guest ended during its migration.
        GuestStopped = "guest_stopped",
        /// The durable record could not be written.
        Record = "record",
        /// The two ends disagree about which of them runs the guest.
        InDoubt = "in_doubt",
        /// An operator settled the migration manually.
        Operator = "operator",
        /// The guest was paused for too long at the switchover, and resumed at its source; or its
        /// migration stalled.
        Downtime = "downtime",
        /// The process that owned this end died.
        ProcessDied = "process_died",
        /// Anything else; the log line with the migration's id has the details.
        Other = "other",
    }
}

fixed_label! {
    /// What an estimate of a migration says of it.
    EstimateFigure as "figure" {
        /// Duration of the whole migration.
        Duration = "duration",
        /// Downtime of the guest.
        Downtime = "downtime",
        /// Bytes sent.
        Bytes = "bytes",
    }
}

fixed_label! {
    /// Why a node refused an incoming guest.
    RefusalReason as "reason" {
        /// A guest of that name is on this host.
        NameTaken = "name_taken",
        /// A guest with that identity is on this host.
        UuidTaken = "uuid_taken",
        /// Not enough memory is available.
        Memory = "memory",
        /// KVM cannot be used.
        Kvm = "kvm",
        /// This host cannot give the guest its vCPUs or CPU features.
        Cpu = "cpu",
        /// There is no protocol version in common.
        Version = "version",
        /// The guest's description is invalid or exceeds a limit.
        Description = "description",
        /// The guest has a disk that guests from other hosts may not have.
        Disk = "disk",
        /// The guest's process did not start.
        Process = "process",
        /// The node accepts no guests now: it is shutting down, or too many are arriving.
        Busy = "busy",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tuples_give_names_and_values_in_the_same_order() {
        let labels = (GuestName("web-1".into()), Role::Source, Phase::Precopy);
        let names: Vec<_> = <(GuestName, Role, Phase) as Labels>::DEFINITIONS
            .iter()
            .map(|label| label.name)
            .collect();
        assert_eq!(names, ["guest", "direction", "phase"]);
        assert_eq!(labels.values(), ["web-1", "outgoing", "precopy"]);
    }

    #[test]
    fn fixed_labels_list_the_values_that_they_print() {
        let printed: Vec<_> = Phase::EVERY.iter().map(Label::as_str).collect();
        assert_eq!(
            Phase::DEFINITION.values,
            LabelValues::Fixed(&[
                "connect",
                "prepare",
                "precopy",
                "switchover",
                "ready",
                "commit",
                "resume",
                "postcopy"
            ])
        );
        assert_eq!(printed.len(), Phase::EVERY.len());
        assert_eq!(printed[2], "precopy");
    }
}
