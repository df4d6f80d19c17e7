//! What is wrong with a description of a guest, and where.

use std::fmt;

/// Where in a guest's file something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Name of the key, as written in the guest's file.
    pub(crate) key: &'static str,
    /// Which table it is a key of, by the tables' name and counted from 0, if it is in one of
    /// several.
    pub(crate) item: Option<(&'static str, usize)>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.item {
            Some((tables, index)) => write!(f, "{tables}[{index}].{}", self.key),
            None => f.write_str(self.key),
        }
    }
}

/// A value that is well-formed and still makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub(crate) struct Fault {
    /// Where in the guest's file the value is.
    pub(crate) place: Place,
    /// What is wrong with it.
    pub(crate) what: String,
}

impl Fault {
    /// Of a key that is in no table.
    pub(super) fn of(key: &'static str, what: impl Into<String>) -> Self {
        Self { place: Place { key, item: None }, what: what.into() }
    }

    /// Of a key of one of several tables, by their name and counted from 0.
    pub(super) fn of_item(item: (&'static str, usize), key: &'static str, what: String) -> Self {
        Self { place: Place { key, item: Some(item) }, what }
    }
}
