//! The messages that the two sides exchange, and their encoding.
//!
//! One control stream, opened by the source, carries [`SourceMessage`]s one way and
//! [`DestinationMessage`]s the other; [`front`] has the messages exchanged with the node
//! beforehand. All of them go through [`codec`], the only module that uses bincode, which bounds
//! each length before it allocates. Memory pages do not go through here.
//!
//! The frames of `Hello`, `Refused`, `Resolve`, `Abort` and the answers to `Resolve` never change
//! between versions: any two releases can tell each other why they cannot work together, and can
//! settle a migration that was interrupted by an upgrade.

pub mod codec;
pub mod front;
mod identity;
mod masks;
mod message;
pub(crate) mod page_ack;
pub(crate) mod page_request;
pub(crate) mod preamble;
mod version;

pub use codec::CodecError;
pub use identity::{MigrationId, Token};
pub use masks::PageMasks;
pub use message::{
    Complaint, Decision, DestinationMessage, MAX_LINKS, MAX_STREAMS, Prepare, SavedState,
    SourceMessage, Takeover,
};
pub use version::{
    FEATURE_DISKS, FEATURE_EARLY_COMMIT, FEATURE_LINKS, FEATURE_LZ4, FEATURE_NODE, FEATURE_PCI,
    FEATURE_POSTCOPY, FEATURE_RECONNECT, Features, MAX_VERSIONS, Offer, SUPPORTED_VERSIONS,
    Version, VersionMismatch,
};
