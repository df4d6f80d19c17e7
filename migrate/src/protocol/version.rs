//! Protocol versions and features, and which of them two sides have in common.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::text::PeerText;

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u16);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The versions that this build speaks, oldest first.
pub const SUPPORTED_VERSIONS: &[Version] = &[Version(1)];

/// Most versions that a peer may list.
pub const MAX_VERSIONS: usize = 32;

/// Pages may be compressed with lz4.
pub const FEATURE_LZ4: Features = Features(1);

/// The content of disks may be copied with a guest.
pub const FEATURE_DISKS: Features = Features(2);

/// The source may send the port of its host's node.
pub const FEATURE_NODE: Features = Features(4);

// Bit 8 meant that the source may call a hand-over off, without an answer.

/// The guest may run at the destination before all of its memory is there. Not among
/// [`Features::SUPPORTED`]: a side offers it if its host can do it.
pub const FEATURE_POSTCOPY: Features = Features(16);

/// The source may use several links at once, with a connection on each.
pub const FEATURE_LINKS: Features = Features(32);

/// Guests with a PCI bus are known: their descriptions and states can be read.
pub const FEATURE_PCI: Features = Features(64);

/// The source may commit before it knows that the destination is ready: `Commit` follows the last
/// pages and the state.
pub const FEATURE_EARLY_COMMIT: Features = Features(128);

/// The source may call a hand-over off and go on with rounds. A connection that is lost while
/// rounds are sent may be replaced: both sides keep what they have.
pub const FEATURE_RECONNECT: Features = Features(256);

/// Features that may be used if both sides have them: a set of bits. Unknown bits are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Features(pub u64);

impl Features {
    /// All features of this build.
    pub const SUPPORTED: Self = Self(
        FEATURE_LZ4.0
            | FEATURE_DISKS.0
            | FEATURE_NODE.0
            | FEATURE_LINKS.0
            | FEATURE_PCI.0
            | FEATURE_EARLY_COMMIT.0
            | FEATURE_RECONNECT.0,
    );

    /// Returns the features of either set.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns the features of this set that `other` does not have.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Returns the features that both sets have.
    #[must_use]
    pub const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Returns whether this set has all of `other`.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The versions and features that a side offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Versions, in any order, at most [`MAX_VERSIONS`].
    pub versions: Vec<Version>,
    /// Features that the side can use.
    pub features: Features,
    /// Name and release of the program, for messages.
    pub software: PeerText,
}

impl Offer {
    /// Returns the offer of this build.
    pub fn ours() -> Self {
        Self {
            versions: crate::failpoint::versions().map_or_else(
                || SUPPORTED_VERSIONS.to_vec(),
                |versions| versions.into_iter().map(Version).collect(),
            ),
            features: Features::SUPPORTED.without(Features(crate::failpoint::without())),
            software: PeerText::new(concat!("lighter ", env!("CARGO_PKG_VERSION"))),
        }
    }

    /// Returns the newest version that both sides speak.
    ///
    /// # Errors
    /// If there is none; the error lists the versions of both sides.
    pub fn newest_common(&self, peer: &Self) -> Result<Version, VersionMismatch> {
        let shared = |version: &&Version| peer.versions.contains(version);
        self.versions
            .iter()
            .filter(shared)
            .max()
            .copied()
            .ok_or_else(|| VersionMismatch { ours: self.to_string(), theirs: peer.to_string() })
    }
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut versions: Vec<_> = self.versions.iter().take(MAX_VERSIONS).collect();
        versions.sort_unstable();
        let list: Vec<_> = versions.iter().map(ToString::to_string).collect();
        match list.as_slice() {
            [] => write!(f, "{} (no protocol version)", self.software),
            list => write!(f, "{} (protocol {})", self.software, list.join(", ")),
        }
    }
}

/// The two sides have no version in common.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no protocol version in common: this side is {ours}, the other is {theirs}; upgrade the older one"
)]
pub struct VersionMismatch {
    /// Software and versions of this side.
    pub ours: String,
    /// Software and versions of the peer.
    pub theirs: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(software: &str, versions: &[u16]) -> Offer {
        Offer {
            versions: versions.iter().copied().map(Version).collect(),
            features: Features::default(),
            software: software.into(),
        }
    }

    #[test]
    fn newest_common_wins_whatever_the_order() {
        let common = offer("a", &[3, 1, 2]).newest_common(&offer("b", &[2, 1, 7]));
        assert_eq!(common, Ok(Version(2)));
    }

    #[test]
    fn nothing_in_common_names_both_sides() {
        let error =
            offer("lighter 9", &[4, 3]).newest_common(&offer("lighter 1", &[1])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("lighter 9 (protocol 3, 4)"), "{text}");
        assert!(text.contains("lighter 1 (protocol 1)"), "{text}");
    }
}
