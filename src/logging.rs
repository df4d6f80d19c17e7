//! Logs and spans: tracing on stderr, as text or as JSON.

use std::io::IsTerminal;

use anyhow::{Context, Result, bail};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::cli::{Cli, LogFormat, Verb};

/// Modules that can be named without a level: then they log everything.
const MODULES: [&str; 6] = ["lighter", "migrate", "memopt", "metrics", "vmm_core", "quinn"];

/// The environment variable with a filter, which other programs read as well.
pub(crate) const VARIABLE: &str = "RUST_LOG";

/// Parses a filter, as `--log-level` and `RUST_LOG` have it.
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

/// Returns those words of `text` that are valid in a filter: `RUST_LOG` may be meant for other
/// programs.
pub(crate) fn usable(text: &str) -> String {
    if filter(text).is_ok() {
        return text.to_owned();
    }
    let is_usable = |word: &&str| !word.trim().is_empty() && filter(word).is_ok();
    text.split(',').filter(is_usable).collect::<Vec<_>>().join(",")
}

/// Returns the filter of `RUST_LOG`, or `default` if nothing in it can be used, and a warning about
/// what cannot.
fn filter_of_environment(text: &str, default: &str) -> (EnvFilter, Option<String>) {
    let usable = usable(text);
    let chosen = if usable.trim().is_empty() { default } else { usable.as_str() };
    let warning =
        filter(text).err().map(|error| format!("ignored in {VARIABLE}={text}: {error:#}"));
    (EnvFilter::new(chosen), warning)
}

/// Starts logging as the command line and `RUST_LOG` specify. What cannot be used in `RUST_LOG` is
/// warned of.
///
/// # Errors
/// If the filter of the command line is not valid.
pub(crate) fn start(cli: &Cli) -> Result<()> {
    // A datagram that the kernel refuses is lost like any other: if it matters, the connection is
    // lost, and said to be.
    let default = match cli.verb {
        Verb::Node(_) => "info,quinn_udp=error",
        _ => "warn,quinn_udp=error",
    };
    let (filter, warning) = match (&cli.log.log_level, std::env::var(VARIABLE)) {
        (Some(text), _) => (filter(text).with_context(|| format!("--log-level {text}"))?, None),
        (None, Ok(text)) => filter_of_environment(&text, default),
        (None, Err(_)) => (EnvFilter::new(default), None),
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
    if let Some(warning) = warning {
        tracing::warn!("{warning}");
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

    #[test]
    fn what_other_programs_understand_in_the_environment_is_ignored_with_a_warning() {
        for (text, chosen, is_warned) in [
            ("hyper", "warn", true),
            ("hyper,migrate=debug", "migrate=debug", true),
            ("migrate=loud", "warn", true),
            ("hyper=info,lighter=debug", "hyper=info,lighter=debug", false),
            ("", "warn", false),
        ] {
            let (filter, warning) = filter_of_environment(text, "warn");
            assert_eq!(filter.to_string(), EnvFilter::new(chosen).to_string(), "{text}");
            assert_eq!(warning.is_some(), is_warned, "{text}: {warning:?}");
            assert!(filter_of_environment(&usable(text), "warn").1.is_none(), "{text}");
        }
    }
}
