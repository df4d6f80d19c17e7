//! Texts that are reviewed as files, in `tests/golden`: run the tests with `UPDATE_GOLDEN=1` to
//! write the files again.

#![cfg(test)]

use std::path::Path;

/// The width of the terminal in the files.
pub(crate) const COLUMNS: usize = 80;

/// Asserts that `text` is the content of `tests/golden/NAME`, and fits its terminal.
#[track_caller]
pub(crate) fn matches(name: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&file, text).expect("a writable folder");
    }
    let golden = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(golden, text, "{}", file.display());
    let is_wide = |line: &&str| line.chars().count() > COLUMNS;
    assert_eq!(text.lines().find(is_wide), None, "beyond {COLUMNS} columns");
}
