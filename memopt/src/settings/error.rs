//! What can be wrong with a file of settings.

/// A file that cannot be used, and the place in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {}{what}", if .field.is_empty() { String::new() } else { format!("{field}: ") })]
pub struct SettingsError {
    /// The file, as it was called.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The field, with the tables that it is in (`balloon.reserve`, `guest[0].min`); empty where
    /// there is none.
    pub field: String,
    /// What is wrong, and what would be right.
    pub what: String,
}
