//! Tests of guests' labels, as rules of a policy and schedules have them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::units::shortened;

/// The longest key or value, in bytes.
const PART_BYTES_MAX: usize = 256;

/// A test of a label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum LabelTest {
    /// `tier=batch`
    Is(String, String),
    /// `tier!=prod`: also where there is no such label.
    IsNot(String, String),
    /// `tier`: whatever it says.
    Has(String),
    /// `!tier`: there is none.
    HasNot(String),
}

impl LabelTest {
    /// Whether it holds for a guest with these labels.
    #[must_use]
    pub fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::Is(key, value) => labels.get(key) == Some(value),
            Self::IsNot(key, value) => labels.get(key) != Some(value),
            Self::Has(key) => labels.contains_key(key),
            Self::HasNot(key) => !labels.contains_key(key),
        }
    }
}

impl FromStr for LabelTest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            let shown = shortened(text);
            format!("`{shown}` is no test of a label: write tier=batch, tier!=prod, tier or !tier")
        };
        let key = |key: &str| {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
            let key = key.trim();
            let is_key = !key.is_empty() && key.len() <= PART_BYTES_MAX && key.bytes().all(fits);
            is_key.then(|| key.to_owned()).ok_or_else(wrong)
        };
        let value = |value: &str| {
            let fits = value.len() <= PART_BYTES_MAX;
            fits.then(|| value.trim().to_owned()).ok_or_else(wrong)
        };
        if let Some(absent) = text.trim().strip_prefix('!') {
            return Ok(Self::HasNot(key(absent)?));
        }
        // A value may be any text, `=` and `!=` included.
        match text.split_once('=') {
            Some((left, right)) => match left.strip_suffix('!') {
                Some(name) => Ok(Self::IsNot(key(name)?, value(right)?)),
                None => Ok(Self::Is(key(left)?, value(right)?)),
            },
            None => Ok(Self::Has(key(text)?)),
        }
    }
}

impl fmt::Display for LabelTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is(key, value) => write!(f, "{key}={value}"),
            Self::IsNot(key, value) => write!(f, "{key}!={value}"),
            Self::Has(key) => f.write_str(key),
            Self::HasNot(key) => write!(f, "!{key}"),
        }
    }
}

impl TryFrom<String> for LabelTest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<LabelTest> for String {
    fn from(test: LabelTest) -> Self {
        test.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_test_is_refused_with_what_one_looks_like() {
        for text in ["", "=x", "!", "!=", "a b", "a b=c", "!a=b", &"k".repeat(100_000)] {
            let error = text.parse::<LabelTest>().unwrap_err();
            assert!(error.contains("tier=batch") && error.len() < 250, "{error}");
        }
    }
}
