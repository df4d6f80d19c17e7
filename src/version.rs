//! Which build of lighter this is.

/// Version of this program, as in `lighter --version`.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Commit of this build, if `LIGHTER_REVISION` gave it to the compiler.
pub(crate) const REVISION: Option<&str> = option_env!("LIGHTER_REVISION");
