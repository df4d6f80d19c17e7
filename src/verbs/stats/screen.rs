//! A text that is drawn again and again in the same place of a terminal, as `docker stats` does.
//! The last one stays when the program ends, whatever ends it.

use std::fmt::Write;

use crate::output;

/// The size that a terminal has which does not tell its own.
const SIZE_DEFAULT: Size = Size { rows: 24, columns: 80 };

/// Clears the line from the cursor on (ECMA-48, EL).
const CLEAR_LINE: &str = "\x1b[K";

/// Clears the screen from the cursor on (ECMA-48, ED).
const CLEAR_BELOW: &str = "\x1b[J";

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    rows: usize,
    columns: usize,
}

/// Returns the size of the terminal at stdout.
pub(super) fn size() -> Size {
    match (output::rows(), output::columns()) {
        (Some(rows), Some(columns)) => Size { rows, columns },
        _ => SIZE_DEFAULT,
    }
}

/// A place on the terminal.
#[derive(Debug, Default)]
pub(super) struct Screen {
    /// Lines above the cursor that were drawn last.
    drawn: usize,
}

impl Screen {
    /// Returns what to write so that `text` replaces what was drawn before. A text that is larger
    /// than the terminal is cut off: a line that wraps, or the first lines scrolled away, would be
    /// out of reach of the next frame.
    pub(super) fn frame(&mut self, text: &str, size: Size) -> String {
        let lines = fitting(text, size);
        let mut frame = String::new();
        if self.drawn > 0 {
            // Cursor up, to the first column (ECMA-48, CPL). Writing to a String cannot fail.
            let _written = write!(frame, "\x1b[{}F", self.drawn);
        }
        for line in &lines {
            // Clearing after a line that fills the terminal would take its last character.
            frame.extend([CLEAR_LINE, line.as_str(), "\n"]);
        }
        frame.push_str(CLEAR_BELOW);
        self.drawn = lines.len();
        frame
    }
}

/// Returns the lines of `text` that fit the terminal; the last line is left to the cursor.
fn fitting(text: &str, size: Size) -> Vec<String> {
    let (all, room) = (text.lines().count(), size.rows.saturating_sub(1).max(1));
    let shown = if all > room { room.saturating_sub(1) } else { all };
    let fit = |line: &str| -> String { line.chars().take(size.columns).collect() };
    let mut lines: Vec<String> = text.lines().take(shown).map(fit).collect();
    if all > shown {
        lines.push(fit(&format!("... {} more", all - shown)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { rows: 4, columns: 10 };

    #[test]
    fn a_frame_replaces_the_one_before_it() {
        let mut screen = Screen::default();
        assert_eq!(screen.frame("a\nb\n", SIZE), "\x1b[Ka\n\x1b[Kb\n\x1b[J");
        assert_eq!(screen.frame("c\n", SIZE), "\x1b[2F\x1b[Kc\n\x1b[J");
        assert_eq!(screen.frame("d\n", SIZE), "\x1b[1F\x1b[Kd\n\x1b[J");
    }

    #[test]
    fn what_does_not_fit_is_cut_off_and_counted() {
        assert_eq!(fitting("0123456789x\nb\nc\n", SIZE), ["0123456789", "b", "c"]);
        assert_eq!(fitting("a\nb\nc\nd\n", SIZE), ["a", "b", "... 2 more"]);
        assert_eq!(fitting("a\nb", Size { rows: 1, columns: 2 }), [".."]);
        assert_eq!(fitting("äöü\n", Size { rows: 4, columns: 2 }), ["äö"]);
        assert_eq!(fitting("", SIZE), Vec::<String>::new());
    }
}
