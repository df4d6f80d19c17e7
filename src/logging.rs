//! Logs and spans: tracing on stderr, as text or as JSON.

use std::io::IsTerminal;

use anyhow::{Context, Result, bail};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::cli::{Cli, LogFormat, Verb};

/// Modules that can be named without a level: then they log everything.
const MODULES: [&str; 6] = ["lighter", "migrate", "memopt", "metrics", "vmm_core", "quinn"];

/// Parses a filter, as `RUST_LOG` has it.
///
/// # Errors
/// If it is not valid, or a word in it is neither a level nor about a module: tracing would take
/// that word for the name of a module that there is not.
fn filter(text: &str) -> Result<EnvFilter> {
    let is_plain = |word: &&str| word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let is_known = |word: &str| MODULES.contains(&word) || word.parse::<LevelFilter>().is_ok();
    let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    if let Some(word) = words.filter(is_plain).find(|word| !is_known(word)) {
        bail!("`{word}` is neither error, warn, info, debug, trace, off nor MODULE=LEVEL");
    }
    Ok(EnvFilter::try_new(text)?)
}

/// Starts logging as the command line and `RUST_LOG` specify.
///
/// # Errors
/// If the filter is not valid.
pub(crate) fn start(cli: &Cli) -> Result<()> {
    let default = if matches!(cli.verb, Verb::Node(_)) { "info" } else { "warn" };
    let filter = match (&cli.log.log_level, std::env::var("RUST_LOG")) {
        (Some(text), _) => filter(text).with_context(|| format!("--log-level {text}"))?,
        (None, Ok(text)) => filter(&text).with_context(|| format!("RUST_LOG={text}"))?,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_is_refused() {
        for text in ["debug", "migrate=debug,info", "off", "lighter", "lighter::node=trace", "5"] {
            filter(text).unwrap();
        }
        for text in ["silly", "info,wran", "migrate=loud"] {
            filter(text).unwrap_err();
        }
    }
}
