//! What commands print: results on stdout, notes on stderr. Only this module writes to either, so
//! that a full disk is an error and a reader that has closed its end (`lighter ls | head -1`) is
//! not.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use anyhow::{Context, Result};
use rustix::termios::tcgetwinsize;
use serde::Serialize;

use crate::table::is_harmful;

/// Prints `text` on stdout, unchanged.
///
/// # Errors
/// If it cannot be written, as on a full disk. A reader that has closed its end is not an error: it
/// wants no more.
pub(crate) fn print(text: impl Display) -> Result<()> {
    write_all(&mut io::stdout().lock(), &text.to_string()).context("cannot print the result")
}

/// Prints `text` and a newline.
///
/// # Errors
/// Like [`print()`].
pub(crate) fn print_line(text: impl Display) -> Result<()> {
    print(format_args!("{text}\n"))
}

/// Prints a value as the one JSON document of `--json`.
///
/// # Errors
/// If the value has no JSON form, or as for [`print()`].
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    print_line(serde_json::to_string_pretty(value).context("cannot print the result as JSON")?)
}

/// Returns the width of the terminal that stdout is, in characters; `None` if it is a file or a
/// pipe, whose readers want everything.
pub(crate) fn columns() -> Option<usize> {
    known(tcgetwinsize(io::stdout()).ok()?.ws_col)
}

/// Returns the height of the terminal that stdout is, in lines.
pub(crate) fn rows() -> Option<usize> {
    known(tcgetwinsize(io::stdout()).ok()?.ws_row)
}

/// Returns the width of the terminal that stderr is; `None` if it is none.
pub(crate) fn note_columns() -> Option<usize> {
    known(tcgetwinsize(io::stderr()).ok()?.ws_col)
}

/// A terminal that does not know its size says 0.
fn known(size: u16) -> Option<usize> {
    (size > 0).then_some(size.into())
}

/// Prints `text` on stderr, with a newline. Other control characters, which may come from a file
/// that another process has written, are replaced. An error is ignored: there is nowhere to report
/// it.
pub(crate) fn note(text: impl Display) {
    let lines = |c: char| if is_harmful(c) && !['\n', '\r', '\t'].contains(&c) { '?' } else { c };
    let text: String = text.to_string().chars().map(lines).collect();
    let _unheard = write_all(&mut io::stderr().lock(), &format!("{text}\n"));
}

/// Writes bytes to stdout unchanged; returns false if the reader has closed its end.
///
/// # Errors
/// Like [`print()`], except for the closed end.
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
    fn a_closed_reader_is_not_an_error_and_a_full_device_is() {
        let (reader, mut writer) = io::pipe().unwrap();
        drop(reader);
        write_all(&mut writer, "unheard").unwrap();

        let mut full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = write_all(&mut full, "too much").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    }
}
