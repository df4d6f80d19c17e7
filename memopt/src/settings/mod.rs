//! Reads settings files, all of them TOML. `lighter.toml` is read field by field, by the modules
//! that own the fields, because its values are merged onto a preset's and have bounds (`read`).
//! Guest definitions are read as the type that the command line uses too ([`read_as`]). Errors name
//! the file, line and field.
//!
//! This module knows no fields itself. It depends on [`crate::units`] alone.

mod error;
mod fields;
mod typed;

use serde::de::DeserializeOwned;
use toml::de::DeTable;

pub use error::SettingsError;
pub use fields::Fault;
pub(crate) use fields::Fields;

/// The longest file that is read, in bytes.
pub const FILE_BYTES_MAX: usize = 256 << 10;

/// Parses `text`, the content of the file that messages call `file`, with `read`.
///
/// # Errors
/// If the text is too long or not valid TOML, and the errors of `read`.
pub(crate) fn read<T>(
    text: &str,
    file: &str,
    read: impl FnOnce(Fields<'_, '_>) -> Result<T, Fault>,
) -> Result<T, SettingsError> {
    read_root(text, file, |root| read(Fields::root(root)))
}

/// Parses `text`, the content of the file that messages call `file`, as a `T`, which `check` then
/// compares with the TOML table.
///
/// # Errors
/// If the text is too long, not valid TOML or not a valid `T`, and the errors of `check`.
pub fn read_as<T: DeserializeOwned>(
    text: &str,
    file: &str,
    check: impl FnOnce(&T, &DeTable<'_>) -> Result<(), Fault>,
) -> Result<T, SettingsError> {
    read_root(text, file, |root| {
        let value = toml::from_str(text).map_err(|error| typed::fault(root, &error))?;
        check(&value, root)?;
        Ok(value)
    })
}

fn read_root<T>(
    text: &str,
    file: &str,
    read: impl FnOnce(&DeTable<'_>) -> Result<T, Fault>,
) -> Result<T, SettingsError> {
    let whole = |what| Fault { at: 0..0, field: String::new(), what };
    let read = || {
        if text.len() > FILE_BYTES_MAX {
            return Err(whole(format!("the file is longer than {FILE_BYTES_MAX} bytes")));
        }
        let root = DeTable::parse(text).map_err(|error| {
            let at = error.span().unwrap_or_default();
            let what = match (error.message().trim_end(), text.get(at.clone())) {
                ("duplicate key", Some(key)) => format!("duplicate key `{key}`"),
                (message, _) => typed::plain(message),
            };
            Fault { at, ..whole(what) }
        })?;
        read(root.get_ref())
    };
    read().map_err(|Fault { at, field, what }| {
        let before = text.get(..at.start).unwrap_or(text);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        SettingsError { file: file.to_owned(), line, field, what }
    })
}
