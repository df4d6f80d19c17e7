//! Names of guests, which are also folder names and are sent to other hosts.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest name, in bytes; leaves room for the folder in a Unix socket's 107-byte path.
const NAME_BYTES_MAX: usize = 48;

/// A guest's name: letters, digits, `-`, `_` and `.`, starting with a letter or a digit; unique on
/// a host.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct GuestName(String);

impl GuestName {
    /// Returns the name as text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Generates a name for a guest without one: `guest-` and 6 hexadecimal digits.
    pub(crate) fn generate() -> Self {
        let digits = uuid::Uuid::new_v4().simple().to_string();
        Self(format!("guest-{}", digits.get(..6).unwrap_or(&digits)))
    }
}

impl fmt::Display for GuestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for GuestName {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let rest = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !first || !rest || text.len() > NAME_BYTES_MAX {
            bail!(
                "a guest's name is 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_` or `.`, starting with a letter or a digit"
            );
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for GuestName {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<GuestName> for String {
    fn from(name: GuestName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_ordinary_names() {
        for name in ["web-1", "a", "Db_2.backup", "7of9"] {
            assert_eq!(name.parse::<GuestName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn refuses_names_that_leave_their_folder() {
        for name in ["", ".", "..", "../etc", "a/b", "-x", "a b", "a\0", "ä", &"x".repeat(49)] {
            assert!(name.parse::<GuestName>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_generated_name_is_valid_and_new() {
        let name = GuestName::generate();
        assert!(name.as_str().parse::<GuestName>().is_ok());
        assert_ne!(name, GuestName::generate());
    }
}
