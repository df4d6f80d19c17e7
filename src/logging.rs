//! Logs and spans: tracing on stderr, for people or as JSON.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, LogFormat, Verb};

/// Starts logging as the command line and `RUST_LOG` ask.
///
/// # Errors
/// The filter cannot be read.
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
        // They would be told on stderr, which cannot be written then: a panic, in the middle of a
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
