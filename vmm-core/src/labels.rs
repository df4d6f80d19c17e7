//! Labels that a guest's owner attaches to it. The machine does not depend on them; they move with
//! the guest.

use std::collections::BTreeMap;

/// Labels of a guest, by key; at most 64. A key is 1 to 63 letters, digits, `-`, `_`, `.` or `/`, a
/// value one line of at most 255 bytes.
pub type Labels = BTreeMap<String, String>;

/// Most labels of one guest.
const LABELS_MAX: usize = 64;
/// Longest key, in bytes.
const KEY_BYTES_MAX: usize = 63;
/// Longest value, in bytes.
const VALUE_BYTES_MAX: usize = 255;

/// A label is malformed, or there are too many.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LabelError(String);

/// Checks labels from any source.
///
/// # Errors
/// [`LabelError`] if there are more than 64, or one is malformed.
pub fn check(labels: &Labels) -> Result<(), LabelError> {
    if labels.len() > LABELS_MAX {
        return Err(LabelError(format!("a guest has at most {LABELS_MAX} labels")));
    }
    labels.iter().try_for_each(|(key, value)| check_label(key, value))
}

/// Checks one label.
///
/// # Errors
/// [`LabelError`] if its key or value is malformed.
pub fn check_label(key: &str, value: &str) -> Result<(), LabelError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
    if key.is_empty() || key.len() > KEY_BYTES_MAX || !key.bytes().all(is_plain) {
        return Err(LabelError(format!(
            "a label's key is 1 to {KEY_BYTES_MAX} letters, digits, `-`, `_`, `.` or `/`"
        )));
    }
    if value.len() > VALUE_BYTES_MAX || value.chars().any(char::is_control) {
        return Err(LabelError(format!(
            "the value of a label is one line of at most {VALUE_BYTES_MAX} bytes, that of {key} is not"
        )));
    }
    Ok(())
}
