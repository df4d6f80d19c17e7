//! Parses exposition text, and finds the metrics of the catalogue that stay zero.

use std::collections::BTreeSet;

use crate::catalogue::definitions;
use crate::definition::Kind;

/// The longest page that [`parse_samples`] reads: 64 MiB.
const PAGE_BYTES_MAX: usize = 64 << 20;

/// One series of a page.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The series' name, with `_bucket`, `_sum` or `_count` for a histogram's.
    pub name: String,
    /// The label pairs, in the order of the page.
    pub labels: Vec<(String, String)>,
    /// Value of the series on this page.
    pub value: f64,
}

impl Sample {
    /// Returns the value of a label, if the series has it.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Why a page is not valid text exposition 0.0.4.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpositionError {
    /// A line that is neither a comment nor a sample.
    #[error("line {line} of the metrics page is not a sample: {text:?}")]
    Line {
        /// The line's number, from 1.
        line: usize,
        /// The beginning of the line.
        text: String,
    },
    /// The page is longer than any node serves.
    #[error("the metrics page has {bytes} bytes; at most {PAGE_BYTES_MAX} are read")]
    TooLong {
        /// The page's length.
        bytes: usize,
    },
}

/// Parses every series of a page.
///
/// # Errors
/// [`ExpositionError`] if the text is not a metrics page.
pub fn parse_samples(page: &str) -> Result<Vec<Sample>, ExpositionError> {
    if page.len() > PAGE_BYTES_MAX {
        return Err(ExpositionError::TooLong { bytes: page.len() });
    }
    let lines = page.lines().enumerate();
    lines
        .filter(|(_, text)| !text.is_empty() && !text.starts_with('#'))
        .map(|(index, text)| {
            parse_sample(text).ok_or_else(|| ExpositionError::Line {
                line: index + 1,
                text: text.chars().take(120).collect(),
            })
        })
        .collect()
}

fn parse_sample(text: &str) -> Option<Sample> {
    let name_end = text.find(['{', ' '])?;
    let (name, rest) = text.split_at(name_end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => parse_labels(inside)?,
        None => (Vec::new(), rest),
    };
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    (!name.is_empty()).then(|| Sample { name: name.to_owned(), labels, value })
}

/// Parses the pairs before the closing brace; returns them and the rest of the text.
fn parse_labels(mut text: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        text = text.strip_prefix(',').unwrap_or(text);
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (key, rest) = text.split_once("=\"")?;
        let (value, rest) = unquote(rest)?;
        labels.push((key.to_owned(), value));
        text = rest;
    }
}

/// Unescapes a label's value up to its closing quote; returns it and the rest of the text.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                escaped => escaped,
            }),
            other => value.push(other),
        }
    }
    None
}

/// Returns the names of the catalogue's metrics that were zero or absent on all of `pages`: either
/// nothing records them, or the observed node did not exercise them.
///
/// # Errors
/// [`ExpositionError`] if a text is not a metrics page.
pub fn never_moved<'a>(
    pages: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<&'static str>, ExpositionError> {
    let mut moved = BTreeSet::new();
    for page in pages {
        let samples = parse_samples(page)?;
        moved.extend(samples.into_iter().filter(|s| s.value != 0.0).map(|s| s.name));
    }
    let still = definitions().filter(|definition| match definition.kind {
        Kind::Counter | Kind::Gauge => !moved.contains(definition.name),
        Kind::Histogram => !moved.contains(&format!("{}_count", definition.name)),
    });
    Ok(still.map(|definition| definition.name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_labels_with_escapes() {
        let page = "# HELP x y.\n# TYPE x gauge\nx{a=\"q\\\"\\\\n\\n\",b=\"\"} 1.5\n";
        let samples = parse_samples(page).expect("a page");
        assert_eq!(samples[0].label("a"), Some("q\"\\n\n"));
        assert_eq!(samples[0].label("b"), Some(""));
        assert!((samples[0].value - 1.5).abs() < f64::EPSILON);
    }

    #[test]
    fn names_the_line_that_is_not_a_sample() {
        let error = parse_samples("x 1\n<html>\n").expect_err("not a page");
        assert_eq!(error, ExpositionError::Line { line: 2, text: "<html>".into() });
        for broken in ["x{a=\"1} 2", "x{a} 2", "x", "{a=\"1\"} 2", "x{a=\"1\"}", "x y"] {
            assert!(parse_samples(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_metric_moves_once_any_page_has_it_other_than_zero() {
        let still = "lighter_guests{state=\"running\"} 0\n";
        let moving = "lighter_guests{state=\"running\"} 0\nlighter_guests{state=\"paused\"} 1\n";
        assert!(never_moved([still]).expect("pages").contains(&"lighter_guests"));
        assert!(!never_moved([still, moving]).expect("pages").contains(&"lighter_guests"));
    }

    #[test]
    fn a_histogram_moves_with_its_first_observation() {
        let name = "lighter_migrations_completed_downtime_seconds";
        let page = format!("{name}_count{{direction=\"outgoing\"}} 1\n");
        assert!(!never_moved([page.as_str()]).expect("pages").contains(&name));
    }
}
