//! Conditions on guests' labels, as used in policy rules and schedules.

mod selector;

pub use selector::Selector;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::units::shortened;

/// The longest key or value of a label, in bytes.
const PART_BYTES_MAX: usize = 256;

/// A condition on a label: `tier=batch`, `tier!=prod` or `tier`. A leading `!` negates it; a guest
/// without the label then meets the condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabelTest {
    negated: bool,
    key: String,
    wanted: Wanted,
}

/// What the value of an existing label must be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    Anything,
    This(String),
    Another(String),
}

impl LabelTest {
    /// Returns whether a guest with these labels meets the condition.
    #[must_use]
    pub fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let is_so = labels.get(&self.key).is_some_and(|value| match &self.wanted {
            Wanted::Anything => true,
            Wanted::This(wanted) => value == wanted,
            Wanted::Another(unwanted) => value != unwanted,
        });
        is_so != self.negated
    }
}

impl FromStr for LabelTest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            let shown = shortened(text);
            format!(
                "`{shown}` is not a label selector: write tier=batch, tier!=prod, tier, or !tier=prod"
            )
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
        let (negated, text) = match text.trim().strip_prefix('!') {
            Some(text) => (true, text),
            None => (false, text),
        };
        // A value may be any text, including `=` and `!=`.
        let (name, wanted) = match text.split_once('=') {
            Some((left, right)) => match left.strip_suffix('!') {
                Some(name) => (name, Wanted::Another(value(right)?)),
                None => (left, Wanted::This(value(right)?)),
            },
            None => (text, Wanted::Anything),
        };
        Ok(Self { negated, key: key(name)?, wanted })
    }
}

impl fmt::Display for LabelTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.negated { "!" } else { "" };
        let key = &self.key;
        match &self.wanted {
            Wanted::Anything => write!(f, "{sign}{key}"),
            Wanted::This(value) => write!(f, "{sign}{key}={value}"),
            Wanted::Another(value) => write!(f, "{sign}{key}!={value}"),
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
    fn an_invalid_test_is_refused_with_an_example() {
        for text in ["", "=x", "!", "!=", "a b", "a b=c", "!!a", &"k".repeat(100_000)] {
            let error = text.parse::<LabelTest>().unwrap_err();
            assert!(error.contains("tier=batch") && error.len() < 250, "{error}");
        }
    }
}
