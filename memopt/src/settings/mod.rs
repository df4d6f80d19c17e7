//! How `lighter.toml` is read, by whoever has fields in it: `read` hands out its `Fields`, and what
//! is wrong with one comes back with its line.
//!
//! It knows no field of anybody. It depends on [`crate::units`] alone.

mod error;
mod fields;

use std::ops::Range;

use toml::de::DeTable;

pub use error::SettingsError;
pub(crate) use fields::{Fault, Fields};

/// The longest file that is read, in bytes.
pub const FILE_BYTES_MAX: usize = 256 << 10;

/// Reads `text`, the content of the file that is called `file` in messages, by `read`.
///
/// # Errors
/// What is too long or no TOML, and what `read` finds.
pub(crate) fn read<T>(
    text: &str,
    file: &str,
    read: impl FnOnce(Fields<'_, '_>) -> Result<T, Fault>,
) -> Result<T, SettingsError> {
    let error = |at: Range<usize>, field: String, what: String| {
        let before = text.get(..at.start).unwrap_or(text);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        SettingsError { file: file.to_owned(), line, field, what }
    };
    if text.len() > FILE_BYTES_MAX {
        return Err(error(
            0..0,
            String::new(),
            format!("the file is longer than {FILE_BYTES_MAX} bytes"),
        ));
    }
    let root = DeTable::parse(text).map_err(|wrong| {
        let what = wrong.message().trim_end().replace('\n', ": ");
        error(wrong.span().unwrap_or_default(), String::new(), what)
    })?;
    read(Fields::root(root.get_ref())).map_err(|Fault { at, field, what }| error(at, field, what))
}
