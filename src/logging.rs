//! Logs and spans: tracing on stderr, as text or as JSON.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, LogFormat, Verb};

/// Starts logging as the command line and `RUST_LOG` specify.
///
/// # Errors
/// If the filter is not valid.
pub(crate) fn start(cli: &Cli) -> Result<()> {
    let default = if matches!(cli.verb, Verb::Node(_)) { "info" } else { "warn" };
    let filter = match (&cli.log.log_level, std::env::var("RUST_LOG")) {
        (Some(text), _) => {
            EnvFilter::try_new(text).with_context(|| format!("--log-level {text}"))?
        }
        (None, Ok(text)) => {
            EnvFilter::try_new(&text).with_context(|| format!("RUST_LOG={text}"))?
        }
        (None, Err(_)) => EnvFilter::new(default),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // It would report a failed write to stderr on stderr, and panic in the middle of a
        // migration.
        .log_internal_errors(false)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match cli.log.log_format {
        LogFormat::Text => builder.with_target(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
