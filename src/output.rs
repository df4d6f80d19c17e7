//! What commands print: results on stdout, notes on stderr. Only this module writes to either, so
//! that a full disk is an error and a reader that has closed its end (`lighter ls | head -1`) is
//! not.

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::mem;
use std::str::from_utf8;

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

/// What a guest wrote, on stdout: unchanged into a file or a pipe. A terminal would obey its
/// control characters, which may change the terminal's title, clipboard or answers.
#[derive(Debug)]
pub(crate) struct GuestOutput {
    terminal: Option<Harmless>,
}

impl GuestOutput {
    /// Prepares for what stdout is.
    pub(crate) fn new() -> Self {
        Self { terminal: io::stdout().is_terminal().then(Harmless::default) }
    }

    /// Writes the next bytes; returns false if the reader has closed its end.
    ///
    /// # Errors
    /// Like [`write_raw`].
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<bool> {
        match &mut self.terminal {
            Some(terminal) => write_raw(terminal.text(bytes).as_bytes()),
            None => write_raw(bytes),
        }
    }
}

/// Replaces what a terminal would obey in a stream of bytes.
#[derive(Debug, Default)]
struct Harmless {
    /// The beginning of a character whose other bytes follow.
    cut: Vec<u8>,
}

impl Harmless {
    /// Returns the next bytes as text: newlines, tabs and printable characters stay, carriage
    /// returns are dropped, `?` stands for other control characters.
    fn text(&mut self, bytes: &[u8]) -> String {
        let mut all = mem::take(&mut self.cut);
        all.extend_from_slice(bytes);
        let mut text = String::with_capacity(all.len());
        let mut chunks = all.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            let kept = chunk.valid().chars().filter(|c| *c != '\r');
            text.extend(
                kept.map(|c| if is_harmful(c) && c != '\n' && c != '\t' { '?' } else { c }),
            );
            let invalid = chunk.invalid();
            let is_cut = from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if is_cut && chunks.peek().is_none() {
                self.cut = invalid.to_vec();
            } else if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        text
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
    fn a_terminal_gets_no_control_characters_of_a_guest() {
        for (bytes, shown) in [
            (&b"a\tb\r\nc\n"[..], "a\tb\nc\n"),
            (b"\x1b[31mred\x1b]0;title\x07", "?[31mred?]0;title?"),
            ("\u{9b}2J \u{202e}x".as_bytes(), "?2J ?x"),
            (b"\x9b2J \xe2a \x00\x7f", "\u{fffd}2J \u{fffd}a ??"),
            ("gr\u{fc}n \u{20ac}".as_bytes(), "gr\u{fc}n \u{20ac}"),
        ] {
            assert_eq!(Harmless::default().text(bytes), shown);
            // Wherever the stream is cut into pieces.
            let mut stream = Harmless::default();
            let pieces: String = bytes.iter().map(|byte| stream.text(&[*byte])).collect();
            assert_eq!(pieces, shown);
        }
    }

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
