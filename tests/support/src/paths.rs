//! The paths of the built program, the sources and the scratch folder.

use std::env::current_exe;
use std::path::{Path, PathBuf};

/// The path of the program that was built together with this test or bench.
///
/// # Panics
/// If this process is not a test or bench of the workspace.
pub fn built_program() -> PathBuf {
    profile_folder().join("lighter")
}

/// The repository's root.
///
/// # Panics
/// Never: this crate is two folders below it.
pub fn repository() -> &'static Path {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    root.expect("two folders up")
}

/// A folder below Cargo's target folder, in which files of tests persist between runs.
///
/// # Panics
/// As [`built_program`].
pub fn scratch_folder() -> PathBuf {
    target_folder().join("tmp")
}

/// Cargo's target folder.
pub(crate) fn target_folder() -> PathBuf {
    profile_folder().parent().expect("the target folder").to_owned()
}

/// `target/debug` or `target/release`, in whose `deps` tests and benches are.
fn profile_folder() -> PathBuf {
    let test = current_exe().expect("this program's path");
    let folder = test.parent().filter(|folder| folder.ends_with("deps"));
    folder.and_then(Path::parent).expect("a test or bench that Cargo built").to_owned()
}
