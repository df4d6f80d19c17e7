//! Whether an incoming guest may come: a pure decision over what it asks for and what the host has.
//!
//! Everything is checked here before anything is created, so that a refusal costs nothing and says
//! what to do about it.

use uuid::Uuid;
use vmm_core::memory::HugePages;

use crate::names::GuestName;
use crate::units::format_size;

/// What an incoming guest asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GuestRequest {
    /// The name that it wants to keep.
    pub(crate) name: GuestName,
    /// Its identity.
    pub(crate) uuid: Uuid,
    /// Guest memory, bytes.
    pub(crate) memory_bytes: u64,
    /// Where it comes from.
    pub(crate) takes: Takes,
    /// Virtual CPUs.
    pub(crate) vcpus: u32,
}

/// Where a guest's memory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takes {
    /// What the host has available.
    OrdinaryMemory,
    /// The host's pool of huge pages: the kernel reserves them for the guest's process, or refuses,
    /// before anything of the guest is sent. So nothing need be promised.
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
    /// What the guest takes of the memory that is available, in bytes.
    pub(crate) fn ordinary_bytes(&self) -> u64 {
        match self.takes {
            Takes::OrdinaryMemory => self.memory_bytes,
            Takes::PoolPages => 0,
        }
    }
}

/// A guest that is on this host, or has been promised a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Occupant {
    /// Its name.
    pub(crate) name: GuestName,
    /// Its identity; absent while its process has not told.
    pub(crate) uuid: Option<Uuid>,
}

/// What this host has, all read for one decision. Sizes in bytes.
#[derive(Debug, Clone)]
pub(crate) struct HostView {
    /// Who is here.
    pub(crate) occupants: Vec<Occupant>,
    /// What the kernel can give without swapping.
    pub(crate) available_bytes: u64,
    /// What is left to the host whatever happens.
    pub(crate) reserved_bytes: u64,
    /// What guests on their way here have been promised and do not occupy yet.
    pub(crate) promised_bytes: u64,
    /// Why KVM cannot be used, if so.
    pub(crate) kvm_fault: Option<String>,
    /// The most vCPUs that a guest can have here.
    pub(crate) vcpus_max: u32,
}

impl HostView {
    /// What an incoming guest can have, in bytes.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.available_bytes.saturating_sub(self.reserved_bytes).saturating_sub(self.promised_bytes)
    }
}

/// Why a guest cannot come.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The name is in use.
    #[error(
        "another guest named {name} is on the destination already, or on its way there: end that one on the destination or move this one \
         elsewhere; try again in some seconds if a migration of {name} was called off just now"
    )]
    NameTaken {
        /// The name.
        name: GuestName,
    },
    /// The identity is in use, under another name.
    #[error(
        "this very guest ({uuid}) is on the destination already, as {occupant}: is the destination this host? A guest cannot be there \
         twice"
    )]
    UuidTaken {
        /// The identity.
        uuid: Uuid,
        /// Who has it.
        occupant: GuestName,
    },
    /// Not enough memory.
    #[error(
        "not enough memory for {name}: it has {}, and this host can give {} ({} available, {} promised to other guests on their way, \
         {} kept for the host); stop or move a guest there, or start the node with a smaller --reserve-memory",
        format_size(*.wanted_bytes), format_size(*.free_bytes), format_size(*.available_bytes),
        format_size(*.promised_bytes), format_size(*.reserved_bytes)
    )]
    Memory {
        /// The guest.
        name: GuestName,
        /// What it has.
        wanted_bytes: u64,
        /// What it could have.
        free_bytes: u64,
        /// What the host has.
        available_bytes: u64,
        /// What of this is promised.
        promised_bytes: u64,
        /// What of this is kept back.
        reserved_bytes: u64,
    },
    /// KVM is missing or closed to the node.
    #[error("this host cannot run guests: {fault}")]
    Kvm {
        /// What is wrong, and what to do.
        fault: String,
    },
    /// More vCPUs than the host can give.
    #[error("{name} has {wanted} vCPUs, and a guest on this host can have at most {max}")]
    Vcpus {
        /// The guest.
        name: GuestName,
        /// What it has.
        wanted: u32,
        /// What it could have.
        max: u32,
    },
    /// No protocol version in common.
    #[error("{what}")]
    Version {
        /// What each side speaks, and the way out.
        what: String,
    },
    /// The description makes no sense.
    #[error("the description of the guest is not acceptable: {what}")]
    Description {
        /// What is wrong.
        what: String,
    },
    /// A disk that guests from elsewhere may not have.
    #[error("{name}: {what}")]
    Disk {
        /// The guest.
        name: GuestName,
        /// Which disk, and the way out.
        what: String,
    },
    /// The process for the guest did not come up.
    #[error("the process for {name} did not come up: {what}; the node's log on that host has more")]
    Process {
        /// The guest.
        name: GuestName,
        /// What happened.
        what: String,
    },
    /// The node is about to end.
    #[error("the node on this host is shutting down: try again when it is back")]
    ShuttingDown,
    /// As many guests are on their way here as the node takes at once.
    #[error(
        "{count} guests are on their way to this host already: try again when they have arrived"
    )]
    TooMany {
        /// How many.
        count: usize,
    },
}

impl Refusal {
    /// The reason as counted.
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

/// Whether the guest may come.
///
/// # Errors
/// The first [`Refusal`] that applies; identity comes before resources, since no amount of memory
/// helps against it.
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
