//! Where the built program, the sources and room for files are.

use std::env::current_exe;
use std::path::{Path, PathBuf};

/// The program that was built along with this test or bench.
///
/// # Panics
/// This process is no test and no bench of the workspace.
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

/// A folder below Cargo's target folder, where files of tests stay from run to run.
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
