//! How a guest's memory is backed: the operator chooses it, and it moves with the guest.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::numa::NumaPolicy;
use super::{MemoryError, pool};

/// Longest name of a merge domain, in bytes.
const DOMAIN_BYTES_MAX: usize = 63;

/// How a guest's memory is backed; part of its [`crate::VmShape`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryConfig {
    /// The size of the host pages under it.
    pub huge_pages: HugePages,
    /// When it is taken from the host.
    pub prealloc: Prealloc,
    /// Which NUMA nodes it is taken from.
    pub numa: NumaPolicy,
    /// The guests with whose pages its pages may be merged; `None` if they must not be merged.
    pub merge_domain: Option<MergeDomain>,
}

/// The size of the host's pages under guest memory. KVM's dirty log has 4 KiB granularity with each
/// of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// Pages of 4 KiB only.
    Off,
    /// Huge pages where the kernel can find them (`MADV_HUGEPAGE`).
    #[default]
    Transparent,
    /// Pages of 2 MiB from the host's pool, reserved for the guest's lifetime.
    Pool2M,
    /// Pages of 1 GiB from the host's pool.
    Pool1G,
}

impl HugePages {
    /// Returns the bytes of a page from a pool; `None` for ordinary memory.
    pub fn pool_page_bytes(self) -> Option<u64> {
        match self {
            Self::Off | Self::Transparent => None,
            Self::Pool2M => Some(2 << 20),
            Self::Pool1G => Some(1 << 30),
        }
    }

    /// The word for it on the command line.
    fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Transparent => "thp",
            Self::Pool2M => "2M",
            Self::Pool1G => "1G",
        }
    }
}

impl fmt::Display for HugePages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for HugePages {
    type Err = MemoryError;

    fn from_str(text: &str) -> Result<Self, MemoryError> {
        let all = [Self::Off, Self::Transparent, Self::Pool2M, Self::Pool1G];
        all.into_iter().find(|pages| pages.as_str() == text).ok_or_else(|| MemoryError::Word {
            text: text.to_owned(),
            wanted: "off, thp, 2M or 1G",
        })
    }
}

/// When guest memory is taken from the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Prealloc {
    /// As the guest touches it.
    #[default]
    OnDemand,
    /// All of it before the guest starts.
    AtStart,
}

/// A set of guests whose pages may be merged with each other's, such as those of one tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MergeDomain(String);

impl MergeDomain {
    /// Name of the domain.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MergeDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<MergeDomain> for String {
    fn from(domain: MergeDomain) -> Self {
        domain.0
    }
}

impl TryFrom<String> for MergeDomain {
    type Error = MemoryError;

    fn try_from(name: String) -> Result<Self, MemoryError> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.len() > DOMAIN_BYTES_MAX || !name.bytes().all(is_plain) {
            return Err(MemoryError::Domain { bytes_max: DOMAIN_BYTES_MAX });
        }
        Ok(Self(name))
    }
}

impl FromStr for MergeDomain {
    type Err = MemoryError;

    fn from_str(name: &str) -> Result<Self, MemoryError> {
        name.to_owned().try_into()
    }
}

impl MemoryConfig {
    /// Checks that some host could back `bytes` of guest memory like this.
    ///
    /// # Errors
    /// [`MemoryError::NotWholeHugePages`]; [`MemoryError::CannotMerge`] for a pool with a merge
    /// domain; [`MemoryError::Nodes`] for a policy without nodes.
    pub fn check(&self, bytes: u64) -> Result<(), MemoryError> {
        self.numa.check()?;
        let Some(page) = self.huge_pages.pool_page_bytes() else { return Ok(()) };
        if !bytes.is_multiple_of(page) {
            return Err(MemoryError::NotWholeHugePages { bytes, page });
        }
        match self.merge_domain {
            Some(_) => Err(MemoryError::CannotMerge),
            None => Ok(()),
        }
    }

    /// Checks that this host can back `bytes` of guest memory like this now. Reserves nothing.
    ///
    /// # Errors
    /// As [`MemoryConfig::check`]; [`MemoryError::NotEnough`], [`MemoryError::PoolShort`],
    /// [`MemoryError::NoPool`], [`MemoryError::NoSuchNode`], [`MemoryError::NoKsm`].
    pub fn check_host(&self, bytes: u64) -> Result<(), MemoryError> {
        self.check(bytes)?;
        self.numa.check_host()?;
        if self.merge_domain.is_some() {
            super::host::check_ksm()?;
        }
        match self.huge_pages.pool_page_bytes() {
            Some(page) => pool::check(bytes, page),
            None => super::host::check_available(bytes),
        }
    }

    /// Whether to populate all memory at the start. That includes a pool with a NUMA policy: the
    /// kernel reserves such pages on any node, so a page could be missing on the chosen nodes
    /// later, and the guest would die when it touches that page.
    pub(crate) fn is_populated(&self) -> bool {
        let may_run_short =
            self.huge_pages.pool_page_bytes().is_some() && self.numa != NumaPolicy::Default;
        self.prealloc == Prealloc::AtStart || may_run_short
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_sizes_parse_and_display_alike() {
        for text in ["off", "thp", "2M", "1G"] {
            assert_eq!(text.parse::<HugePages>().unwrap().to_string(), text);
        }
        let error = "4M".parse::<HugePages>().unwrap_err().to_string();
        assert!(error.contains("`4M`") && error.contains("2M or 1G"), "{error}");
        assert_eq!(HugePages::default(), HugePages::Transparent);
    }

    #[test]
    fn a_domain_is_a_plain_name() {
        assert_eq!("shop-1.eu_a".parse::<MergeDomain>().unwrap().as_str(), "shop-1.eu_a");
        for name in ["", "a b", "a/b", "ä", &"x".repeat(DOMAIN_BYTES_MAX + 1)] {
            assert!(name.parse::<MergeDomain>().is_err(), "{name:?}");
        }
        let hostile = crate::codec::encode(&"a\nb".to_owned()).unwrap();
        assert!(crate::codec::decode::<MergeDomain>(&hostile).is_err());
    }

    #[test]
    fn what_no_host_can_back_is_refused() {
        let huge = |huge_pages| MemoryConfig { huge_pages, ..MemoryConfig::default() };
        huge(HugePages::Pool2M).check(64 << 20).unwrap();
        let odd = huge(HugePages::Pool2M).check((64 << 20) + (1 << 18)).unwrap_err().to_string();
        assert!(odd.contains("whole number of huge pages of 2 MiB"), "{odd}");
        assert!(huge(HugePages::Pool1G).check(64 << 20).is_err());
        let merged =
            MemoryConfig { merge_domain: Some("shop".parse().unwrap()), ..huge(HugePages::Pool2M) };
        assert!(merged.check(64 << 20).unwrap_err().to_string().contains("cannot be merged"));
    }

    #[test]
    fn pool_pages_of_chosen_nodes_are_touched_at_once() {
        let bound = |huge_pages| MemoryConfig {
            huge_pages,
            numa: "bind:0".parse().unwrap(),
            ..MemoryConfig::default()
        };
        assert!(bound(HugePages::Pool2M).is_populated());
        assert!(!bound(HugePages::Transparent).is_populated());
    }
}
