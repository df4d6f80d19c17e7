//! Files of JSON that are replaced whole: a reader finds the old one or the new one.

use std::io;
use std::path::Path;

use serde::Serialize;

/// Replaces the file at `path`; it is on disk when this returns.
pub(crate) fn replace(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    regular_file::replace(path, &text)
}
