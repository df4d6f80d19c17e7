//! JSON files that are replaced atomically: a reader finds the old content or the new content.

use std::io;
use std::path::Path;

use serde::Serialize;

/// Replaces the file at `path`. The new content is on disk when this returns.
pub(crate) fn replace(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    regular_file::replace(path, &text)
}
