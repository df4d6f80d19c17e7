//! Tables for terminals: each column as wide as its content, two spaces between columns, like
//! docker and virsh. On a terminal that is too narrow, the least important columns are omitted and
//! long cells are wrapped; a file or a pipe gets everything.

/// Spaces between two columns.
const GAP: &str = "  ";
/// Columns of a table are omitted before the last one, which is prose, becomes narrower than this.
const PROSE_MIN: usize = 24;
/// No cell is wrapped to fewer characters.
const CELL_MIN: usize = 12;

/// A table under construction.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column titles.
    pub(crate) fn new(titles: &[&str]) -> Self {
        Self { rows: vec![titles.iter().map(|title| (*title).to_owned()).collect()] }
    }

    /// Adds a row; cells beyond the titles are dropped, missing ones are empty.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let columns = self.rows.first().map_or(0, Vec::len);
        let mut row: Vec<String> =
            cells.into_iter().take(columns).map(|cell| printable(&cell)).collect();
        row.resize(columns, String::new());
        self.rows.push(row);
    }

    /// The table as text, a line for each row.
    pub(crate) fn render(&self) -> String {
        self.render_within(None, &[])
    }

    /// The table as text: a line for each row, without a limit. Within `screen` characters, the
    /// columns with the titles `expendable` are omitted as needed, the first of them first; then
    /// long cells are wrapped.
    pub(crate) fn render_within(&self, screen: Option<usize>, expendable: &[&str]) -> String {
        let mut columns = self.columns();
        let Some(screen) = screen else { return self.text(&columns) };
        for title in expendable {
            if room_for_last(&columns, screen) >= last_width(&columns).min(PROSE_MIN) {
                break;
            }
            columns.retain(|column| self.rows[0][column.index] != *title);
        }
        narrow(&mut columns, screen);
        self.text(&columns)
    }

    fn columns(&self) -> Vec<Column> {
        let count = self.rows.first().map_or(0, Vec::len);
        (0..count).map(|index| Column { index, width: self.width(index) }).collect()
    }

    fn width(&self, index: usize) -> usize {
        self.rows
            .iter()
            .filter_map(|row| row.get(index))
            .map(|cell| length(cell))
            .max()
            .unwrap_or(0)
    }

    fn text(&self, columns: &[Column]) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let cells: Vec<Vec<String>> =
                columns.iter().map(|column| wrapped(&row[column.index], column.width)).collect();
            let height = cells.iter().map(Vec::len).max().unwrap_or(1);
            for line in 0..height {
                let parts = columns.iter().zip(&cells).map(|(column, cell)| {
                    let part = cell.get(line).map_or("", String::as_str);
                    format!("{part:width$}", width = column.width)
                });
                text.push_str(parts.collect::<Vec<_>>().join(GAP).trim_end());
                text.push('\n');
            }
        }
        text
    }
}

/// A column that is shown.
#[derive(Debug)]
struct Column {
    /// Its index among all columns of the table.
    index: usize,
    /// Its width in characters.
    width: usize,
}

fn last_width(columns: &[Column]) -> usize {
    columns.last().map_or(0, |column| column.width)
}

/// Returns what the other columns leave of `screen` for the last one.
fn room_for_last(columns: &[Column], screen: usize) -> usize {
    let others = columns.iter().rev().skip(1);
    screen.saturating_sub(others.map(|column| column.width + GAP.len()).sum())
}

/// Narrows columns to `screen`: the last one first, which is prose, then the widest.
fn narrow(columns: &mut [Column], screen: usize) {
    let room = room_for_last(columns, screen);
    if let Some(last) = columns.last_mut() {
        last.width = last.width.min(room.max(PROSE_MIN));
    }
    while room_for_last(columns, screen) < last_width(columns) {
        let widest = columns.iter_mut().max_by_key(|column| column.width);
        let Some(widest) = widest.filter(|column| column.width > CELL_MIN) else { return };
        widest.width -= 1;
    }
}

fn length(text: &str) -> usize {
    text.chars().count()
}

/// Splits a cell into lines of at most `width` characters, between words where possible.
fn wrapped(cell: &str, width: usize) -> Vec<String> {
    if length(cell) <= width {
        return vec![cell.to_owned()];
    }
    let broken = |line: String| -> Vec<String> {
        let characters: Vec<char> = line.chars().collect();
        characters.chunks(width.max(1)).map(|part| part.iter().collect()).collect()
    };
    between_words(cell, width).into_iter().flat_map(broken).collect()
}

/// Splits a text into lines of at most `width` characters; a longer word has a line of its own.
fn between_words(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if length(line) + 1 + length(word) <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Replaces control characters, and others that text from elsewhere must not contain: it must not
/// move the cursor, nor change the order of characters.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if is_harmful(c) { '?' } else { c }).collect()
}

/// Whether the character may change what a terminal shows besides itself: control characters, and
/// those that set the direction of text, or are invisible.
pub(crate) fn is_harmful(c: char) -> bool {
    let is_format = matches!(
        c,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}'
    );
    c.is_control() || is_format
}

/// Formats lines of `label  value`, with labels padded to the same width.
pub(crate) fn facts(lines: &[(&str, String)]) -> String {
    facts_within(lines, None)
}

/// Formats facts for a terminal of `screen` characters: long values continue below their
/// beginning. Words, such as paths, stay whole.
pub(crate) fn facts_within(lines: &[(&str, String)], screen: Option<usize>) -> String {
    let width = lines.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    let room =
        screen.map_or(usize::MAX, |screen| screen.saturating_sub(width + GAP.len()).max(PROSE_MIN));
    let mut text = String::new();
    for (label, value) in lines {
        for (index, line) in between_words(&printable(value), room).iter().enumerate() {
            let label = if index == 0 { *label } else { "" };
            text.push_str(format!("{label:width$}{GAP}{line}").trim_end());
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_longest_cell() {
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row(["a-long-name".to_owned(), "running".to_owned()]);
        table.row(["b".to_owned()]);
        assert_eq!(table.render(), "NAME         STATE\na-long-name  running\nb\n");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let mut table = Table::new(&["NAME"]);
        table.row(["a\x1b[2Jb".to_owned()]);
        assert_eq!(table.render(), "NAME\na?[2Jb\n");
    }

    #[test]
    fn a_narrow_terminal_shows_the_important_columns_and_wraps_prose() {
        let mut table = Table::new(&["STEP", "CPU", "WHY"]);
        let why = "the goal asks for memory; it needs 70 MiB";
        table.row(["web-1: balloon", "6.3 ms", why].map(str::to_owned));
        assert_eq!(table.render_within(None, &["CPU"]), table.render());
        assert_eq!(table.render_within(Some(80), &["CPU"]), table.render());
        assert_eq!(
            table.render_within(Some(48), &["CPU"]),
            "STEP            CPU     WHY\n\
             web-1: balloon  6.3 ms  the goal asks for\n\
             \x20                       memory; it needs 70 MiB\n"
        );
        assert_eq!(
            table.render_within(Some(42), &["CPU"]),
            "STEP            WHY\n\
             web-1: balloon  the goal asks for memory;\n\
             \x20               it needs 70 MiB\n"
        );
    }

    #[test]
    fn long_cells_are_wrapped_where_nothing_can_be_omitted() {
        let mut table = Table::new(&["GUESTS", "WHY"]);
        let guests = "web-1, web-2, web-3, web-4";
        table.row([guests.to_owned(), format!("no {}", "x".repeat(24))]);
        let rest = ["x".repeat(19), "x".repeat(5)];
        assert_eq!(
            table.render_within(Some(40), &[]),
            format!(
                "{:21}WHY\n{:21}no\n{:21}{}\n{:21}{}\n",
                "GUESTS", "web-1, web-2,", "web-3, web-4", rest[0], "", rest[1]
            )
        );
    }

    #[test]
    fn facts_line_up() {
        assert_eq!(facts(&[("a", "1".to_owned()), ("long", "2".to_owned())]), "a     1\nlong  2\n");
    }

    #[test]
    fn long_facts_continue_below_their_beginning() {
        let lines = [("State", "a text that is longer than the screen".to_owned())];
        assert_eq!(
            facts_within(&lines, Some(32)),
            "State  a text that is longer\n       than the screen\n"
        );
        let path = format!("/{}", "x".repeat(40));
        let lines = [("File", path.clone())];
        assert_eq!(facts_within(&lines, Some(32)), format!("File  {path}\n"));
    }
}
