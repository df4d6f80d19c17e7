//! Errors in settings files.

/// Why a settings file cannot be used, and where in the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {}{what}", if .field.is_empty() { String::new() } else { format!("{field}: ") })]
pub struct SettingsError {
    /// The file's name, as the caller gave it.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The field, with the tables that contain it (`balloon.reserve`, `guest[0].min`); empty if the
    /// error concerns no field.
    pub field: String,
    /// What is wrong, and how to correct it.
    pub what: String,
}
