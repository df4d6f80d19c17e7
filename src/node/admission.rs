//! Whether an incoming guest is admitted: a pure decision over its request and the host's
//! resources.
//!
//! Everything is checked before anything is created, so that a refusal costs nothing and can say
//! what to do about it.

use uuid::Uuid;
use vmm_core::memory::HugePages;

use crate::names::GuestName;
use crate::units::format_size;

/// The request of an incoming guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GuestRequest {
    /// The guest's name, which it wants to keep.
    pub(crate) name: GuestName,
    /// UUID of the guest.
    pub(crate) uuid: Uuid,
    /// Guest memory, bytes.
    pub(crate) memory_bytes: u64,
    /// Where its memory comes from.
    pub(crate) takes: Takes,
    /// Number of virtual CPUs that the guest has.
    pub(crate) vcpus: u32,
}

/// Where a guest's memory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takes {
    /// The host's available memory.
    OrdinaryMemory,
    /// The host's pool of huge pages. The kernel reserves them for the guest's process, or refuses,
    /// before anything of the guest is sent, so the node need not promise them.
    PoolPages,
}

impl From<HugePages> for Takes {
    fn from(pages: HugePages) -> Self {
        match pages.pool_page_bytes() {
            Some(_) => Self::PoolPages,
            None => Self::OrdinaryMemory,
        }
    }
}

impl GuestRequest {
    /// Returns how much of the available memory the guest takes, in bytes.
    pub(crate) fn ordinary_bytes(&self) -> u64 {
        match self.takes {
            Takes::OrdinaryMemory => self.memory_bytes,
            Takes::PoolPages => 0,
        }
    }
}

/// A guest that is on this host, or has a promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Occupant {
    /// Name of the guest.
    pub(crate) name: GuestName,
    /// UUID of the guest; absent until its process has published it.
    pub(crate) uuid: Option<Uuid>,
}

/// The host's state, all of it read for one decision. Sizes in bytes.
#[derive(Debug, Clone)]
pub(crate) struct HostView {
    /// Guests on this host or on their way.
    pub(crate) occupants: Vec<Occupant>,
    /// Memory that the kernel can give without swapping.
    pub(crate) available_bytes: u64,
    /// Memory that guests never get.
    pub(crate) reserved_bytes: u64,
    /// Memory promised to arriving guests that they do not occupy yet.
    pub(crate) promised_bytes: u64,
    /// Why KVM cannot be used, if it cannot.
    pub(crate) kvm_fault: Option<String>,
    /// Most vCPUs that a guest can have on this host.
    pub(crate) vcpus_max: u32,
}

impl HostView {
    /// Returns how much memory an incoming guest can have, in bytes.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.available_bytes.saturating_sub(self.reserved_bytes).saturating_sub(self.promised_bytes)
    }
}

/// Why a guest is not admitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// Another guest has the name.
    #[error(
        "another guest named {name} is on the destination already, or on its way there: end that one on the destination or move this one \
         elsewhere; try again in some seconds if a migration of {name} was cancelled just now"
    )]
    NameTaken {
        /// The name that is taken.
        name: GuestName,
    },
    /// The same guest is on this host under another name.
    #[error(
        "this very guest ({uuid}) is on the destination already, as {occupant}: is the destination this host? A guest cannot be there \
         twice"
    )]
    UuidTaken {
        /// UUID of the guest.
        uuid: Uuid,
        /// Name under which it is here.
        occupant: GuestName,
    },
    /// The host does not have enough memory.
    #[error(
        "not enough memory for {name}: it has {}, and the destination can give {} ({} available, {} promised to other guests on their way, \
         {} kept for the host); stop or move a guest there, or start the node with a smaller --reserve-memory",
        format_size(*.wanted_bytes), format_size(*.free_bytes), format_size(*.available_bytes),
        format_size(*.promised_bytes), format_size(*.reserved_bytes)
    )]
    Memory {
        /// Name of the guest.
        name: GuestName,
        /// Memory of the guest.
        wanted_bytes: u64,
        /// Memory that it could have here.
        free_bytes: u64,
        /// Memory that the host has available.
        available_bytes: u64,
        /// The part of this that is promised.
        promised_bytes: u64,
        /// The part of this that is kept for the host.
        reserved_bytes: u64,
    },
    /// KVM is missing, or the node may not use it.
    #[error("the destination cannot run guests: {fault}")]
    Kvm {
        /// What is wrong, and what to do.
        fault: String,
    },
    /// The guest has more vCPUs than it can have here.
    #[error("{name} has {wanted} vCPUs, and a guest on the destination can have at most {max}")]
    Vcpus {
        /// Name of the guest.
        name: GuestName,
        /// vCPUs of the guest.
        wanted: u32,
        /// Most vCPUs that it could have here.
        max: u32,
    },
    /// The two sides have no protocol version in common.
    #[error("{what}")]
    Version {
        /// The versions of each side, and what to do.
        what: String,
    },
    /// The guest's description is invalid.
    #[error("the description of the guest is not acceptable: {what}")]
    Description {
        /// What is wrong.
        what: String,
    },
    /// A disk that arriving guests may not use.
    #[error("{name}: {what}")]
    Disk {
        /// Name of the guest.
        name: GuestName,
        /// Which disk, and what to do.
        what: String,
    },
    /// The process for the guest did not start.
    #[error("the process for {name} did not come up: {what}; the node's log on that host has more")]
    Process {
        /// Name of the guest.
        name: GuestName,
        /// Why it did not start: text of the error.
        what: String,
    },
    /// The node is shutting down.
    #[error("the destination's node is shutting down: try again when it is back")]
    ShuttingDown,
    /// The node already receives as many guests as it accepts at once.
    #[error(
        "{count} guests are on their way to the destination already: try again when they have arrived"
    )]
    TooMany {
        /// Number of those guests.
        count: usize,
    },
}

impl Refusal {
    /// Returns the reason as it is counted.
    pub(crate) fn reason(&self) -> metrics::RefusalReason {
        match self {
            Self::NameTaken { .. } => metrics::RefusalReason::NameTaken,
            Self::UuidTaken { .. } => metrics::RefusalReason::UuidTaken,
            Self::Memory { .. } => metrics::RefusalReason::Memory,
            Self::Kvm { .. } => metrics::RefusalReason::Kvm,
            Self::Vcpus { .. } => metrics::RefusalReason::Cpu,
            Self::Version { .. } => metrics::RefusalReason::Version,
            Self::Description { .. } => metrics::RefusalReason::Description,
            Self::Disk { .. } => metrics::RefusalReason::Disk,
            Self::Process { .. } => metrics::RefusalReason::Process,
            Self::ShuttingDown | Self::TooMany { .. } => metrics::RefusalReason::Busy,
        }
    }
}

/// Decides whether to admit the guest.
///
/// # Errors
/// The first [`Refusal`] that applies. Identity is checked before resources, since no amount of
/// memory helps against a conflict.
pub(crate) fn decide(request: &GuestRequest, host: &HostView) -> Result<(), Refusal> {
    if let Some(twin) = host.occupants.iter().find(|occupant| occupant.uuid == Some(request.uuid)) {
        return Err(Refusal::UuidTaken { uuid: request.uuid, occupant: twin.name.clone() });
    }
    if let Some(taken) = host.occupants.iter().find(|occupant| occupant.name == request.name) {
        return Err(Refusal::NameTaken { name: taken.name.clone() });
    }
    if let Some(fault) = &host.kvm_fault {
        return Err(Refusal::Kvm { fault: fault.clone() });
    }
    if request.vcpus == 0 || request.memory_bytes == 0 {
        let what = format!(
            "{} with {} vCPUs and {} of memory",
            request.name,
            request.vcpus,
            format_size(request.memory_bytes)
        );
        return Err(Refusal::Description { what });
    }
    if request.vcpus > host.vcpus_max {
        return Err(Refusal::Vcpus {
            name: request.name.clone(),
            wanted: request.vcpus,
            max: host.vcpus_max,
        });
    }
    if request.ordinary_bytes() > host.free_bytes() {
        return Err(Refusal::Memory {
            name: request.name.clone(),
            wanted_bytes: request.memory_bytes,
            free_bytes: host.free_bytes(),
            available_bytes: host.available_bytes,
            promised_bytes: host.promised_bytes,
            reserved_bytes: host.reserved_bytes,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::GIB;

    fn name(text: &str) -> GuestName {
        text.parse().unwrap()
    }

    fn request() -> GuestRequest {
        GuestRequest {
            name: name("web-1"),
            uuid: Uuid::from_u128(1),
            memory_bytes: 2 * GIB,
            takes: Takes::OrdinaryMemory,
            vcpus: 2,
        }
    }

    fn host() -> HostView {
        HostView {
            occupants: vec![Occupant { name: name("db"), uuid: Some(Uuid::from_u128(9)) }],
            available_bytes: 8 * GIB,
            reserved_bytes: GIB,
            promised_bytes: 0,
            kvm_fault: None,
            vcpus_max: 8,
        }
    }

    #[test]
    fn admits_what_fits() {
        assert_eq!(decide(&request(), &host()), Ok(()));
    }

    #[test]
    fn refuses_a_name_or_an_identity_that_is_here() {
        let same_name = GuestRequest { name: name("db"), ..request() };
        assert_eq!(decide(&same_name, &host()), Err(Refusal::NameTaken { name: name("db") }));
        let same_uuid = GuestRequest { uuid: Uuid::from_u128(9), ..request() };
        let refusal = decide(&same_uuid.clone(), &host()).unwrap_err();
        assert_eq!(refusal, Refusal::UuidTaken { uuid: Uuid::from_u128(9), occupant: name("db") });
        let itself = GuestRequest { name: name("db"), ..same_uuid };
        assert!(decide(&itself, &host()).unwrap_err().to_string().contains("this host?"));
    }

    #[test]
    fn a_promise_counts_like_memory_in_use() {
        let host = HostView { promised_bytes: 5 * GIB + 1, ..host() };
        let refusal = decide(&request(), &host).unwrap_err();
        assert_eq!(refusal.reason(), metrics::RefusalReason::Memory);
        let message = refusal.to_string();
        assert!(
            message.contains("web-1")
                && message.contains("2 GiB")
                && message.contains("--reserve-memory"),
            "{message}"
        );
    }

    #[test]
    fn the_last_byte_can_be_given_and_no_more() {
        let exact = HostView { available_bytes: 3 * GIB, ..host() };
        assert_eq!(decide(&request(), &exact), Ok(()));
        let short = HostView { available_bytes: 3 * GIB - 1, ..host() };
        assert!(decide(&request(), &short).is_err());
        let absurd = HostView { available_bytes: 0, promised_bytes: u64::MAX, ..host() };
        assert_eq!(absurd.free_bytes(), 0);
    }

    #[test]
    fn huge_pages_of_the_pool_are_not_taken_from_what_is_available() {
        let full = HostView { available_bytes: 0, ..host() };
        let request = GuestRequest { takes: Takes::PoolPages, ..request() };
        assert_eq!(decide(&request, &full), Ok(()));
        assert_eq!(request.ordinary_bytes(), 0);
    }

    #[test]
    fn refuses_what_the_host_cannot_run() {
        let closed = HostView { kvm_fault: Some("/dev/kvm: permission denied".into()), ..host() };
        assert_eq!(decide(&request(), &closed).unwrap_err().reason(), metrics::RefusalReason::Kvm);
        let wide = GuestRequest { vcpus: 9, ..request() };
        assert_eq!(decide(&wide, &host()).unwrap_err().reason(), metrics::RefusalReason::Cpu);
        let empty = GuestRequest { memory_bytes: 0, ..request() };
        assert_eq!(
            decide(&empty, &host()).unwrap_err().reason(),
            metrics::RefusalReason::Description
        );
    }
}
