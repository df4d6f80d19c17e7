//! Labels of guests, as `--label` and the key `labels` give them.

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::{Result, bail};
use serde::{Deserialize, Deserializer};
use vmm_core::labels;

/// A label of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Label {
    /// Letters, digits, `-`, `_`, `.` and `/`.
    pub(crate) key: String,
    /// Any text of one line.
    pub(crate) value: String,
}

impl Label {
    fn new(key: &str, value: &str) -> Result<Self> {
        labels::check_label(key, value)?;
        Ok(Self { key: key.to_owned(), value: value.to_owned() })
    }
}

impl FromStr for Label {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once('=') {
            Some((key, value)) => Self::new(key, value),
            None => bail!("`{text}` is not a label: write it as KEY=VALUE"),
        }
    }
}

/// Reads a table of labels.
pub(crate) fn table<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Label>, D::Error> {
    let table = BTreeMap::<String, String>::deserialize(from)?;
    let labels = table.iter().map(|(key, value)| Label::new(key, value));
    labels.collect::<Result<_>>().map_err(serde::de::Error::custom)
}
