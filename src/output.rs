//! What verbs print: results on stdout, notes on stderr. The only place that writes to either, so
//! that a full disk is an error and a reader that has heard enough (`lighter ls | head -1`) is
//! none.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use anyhow::{Context, Result};
use serde::Serialize;

/// Prints `text` on stdout, as it is.
///
/// # Errors
/// It cannot be written, as on a full disk. Nobody reading any more is no error: there is nothing
/// left to say to them.
pub(crate) fn print(text: impl Display) -> Result<()> {
    write_all(&mut io::stdout().lock(), &text.to_string()).context("cannot print the result")
}

/// Prints `text` and a line's end.
///
/// # Errors
/// As [`print()`].
pub(crate) fn print_line(text: impl Display) -> Result<()> {
    print(format_args!("{text}\n"))
}

/// Prints a value as the one JSON document of `--json`.
///
/// # Errors
/// The value has no JSON form; as [`print()`].
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    print_line(serde_json::to_string_pretty(value).context("cannot print the result as JSON")?)
}

/// Says `text`, a line, on stderr. When that cannot be written there is nowhere to say so.
pub(crate) fn note(text: impl Display) {
    let _unheard = write_all(&mut io::stderr().lock(), &format!("{text}\n"));
}

/// Writes bytes on stdout as they are; false when nobody reads any more.
///
/// # Errors
/// As [`print()`].
pub(crate) fn write_raw(bytes: &[u8]) -> Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        outcome => outcome.map(|()| true).context("cannot print the result"),
    }
}

fn write_all(out: &mut impl Write, text: &str) -> io::Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    #[test]
    fn a_reader_that_is_gone_is_no_error_and_a_full_device_is() {
        let (reader, mut writer) = io::pipe().unwrap();
        drop(reader);
        write_all(&mut writer, "unheard").unwrap();

        let mut full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = write_all(&mut full, "too much").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    }
}
