//! A TOML table, field by field: whatever is wrong is said with its line and its key.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::file::FileError;

/// The longest text that is shown of what somebody wrote, in characters.
const SHOWN_CHARS_MAX: usize = 64;

/// Where a file stands that is being read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    /// What it is called.
    pub(super) file: &'a str,
    /// What it says.
    pub(super) text: &'a str,
}

impl Place<'_> {
    /// What is wrong with the key `field`, which is written at `span`.
    pub(super) fn fault(
        self,
        span: Range<usize>,
        field: &str,
        what: impl Into<String>,
    ) -> FileError {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        FileError {
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            field: field.to_owned(),
            what: what.into(),
        }
    }
}

/// A table that is being read.
#[derive(Debug)]
pub(super) struct Fields<'a, 'i> {
    place: Place<'a>,
    /// What it is called: `schedule[0]`.
    path: String,
    span: Range<usize>,
    table: &'a DeTable<'i>,
}

impl<'a, 'i> Fields<'a, 'i> {
    /// The table called `path`, which may have the keys `known` and no others.
    pub(super) fn new(
        place: Place<'a>,
        path: String,
        value: &'a Spanned<DeValue<'i>>,
        known: &[&str],
    ) -> Result<Self, FileError> {
        let Some(table) = value.get_ref().as_table() else {
            let what = format!("{} is written where a table has to be", kind(value.get_ref()));
            return Err(place.fault(value.span(), &path, what));
        };
        if let Some((key, _)) =
            table.iter().find(|(key, _)| !known.contains(&key.get_ref().as_ref()))
        {
            return Err(place.fault(key.span(), &path, unknown(key.get_ref(), known)));
        }
        // A table's own span begins at its first line; that of an array of tables is its header.
        Ok(Self { place, path, span: value.span(), table })
    }

    /// What is wrong with the key `key`.
    pub(super) fn fault(&self, key: &str, what: impl Into<String>) -> FileError {
        let entry = self.table.iter().find(|(name, _)| name.get_ref() == key);
        let span = entry.map_or_else(|| self.span.clone(), |(name, _)| name.span());
        self.place.fault(span, &format!("{}.{key}", self.path), what)
    }

    /// The value of a key that may be absent.
    pub(super) fn value(&self, key: &str) -> Option<&'a Spanned<DeValue<'i>>> {
        self.table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    /// The text of a key that may be absent.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, FileError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.get_ref() {
            DeValue::String(text) => Ok(Some(text.as_ref())),
            other => {
                Err(self.fault(key, format!("{} is written where a text has to be", kind(other))))
            }
        }
    }

    /// The text of a key that has to be there.
    pub(super) fn required(&self, key: &str) -> Result<&'a str, FileError> {
        self.text(key)?.ok_or_else(|| self.fault(key, "this key is missing"))
    }

    /// The text of a key that may be absent, as `read` understands it.
    pub(super) fn read<T>(
        &self,
        key: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, FileError> {
        let text = self.text(key)?;
        text.map(|text| read(text).map_err(|what| self.fault(key, what))).transpose()
    }

    /// A number of 1 or more, of a key that may be absent.
    pub(super) fn count(&self, key: &str) -> Result<Option<u32>, FileError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let number = match value.get_ref() {
            DeValue::Integer(number) => u32::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        let wrong = || self.fault(key, format!("write a whole number from 1 to {}", u32::MAX));
        number.filter(|number| *number > 0).map(Some).ok_or_else(wrong)
    }

    /// `true` or `false`, of a key that may be absent.
    pub(super) fn switch(&self, key: &str) -> Result<Option<bool>, FileError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.get_ref() {
            DeValue::Boolean(switch) => Ok(Some(*switch)),
            _ => Err(self.fault(key, "write true or false")),
        }
    }

    /// A text, or a list of texts, of a key that may be absent.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, FileError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let wrong = || self.fault(key, "write a text or a list of texts");
        match value.get_ref() {
            DeValue::String(text) => Ok(Some(vec![text.as_ref()])),
            DeValue::Array(items) => {
                let text =
                    |item: &'a Spanned<DeValue<'i>>| item.get_ref().as_str().ok_or_else(wrong);
                items.iter().map(text).collect::<Result<_, _>>().map(Some)
            }
            _ => Err(wrong()),
        }
    }
}

/// What is said of a key that nobody knows.
pub(super) fn unknown(key: &str, known: &[&str]) -> String {
    let shown: String = key.chars().take(SHOWN_CHARS_MAX).collect();
    let near = |name: &&&str| strsim::damerau_levenshtein(&shown, name) <= 1 + shown.len() / 4;
    let distance = |name: &&&str| strsim::damerau_levenshtein(&shown, name);
    match known.iter().filter(near).min_by_key(distance) {
        Some(meant) => format!("unknown key `{shown}`: is `{meant}` meant?"),
        None => format!("unknown key `{shown}`: there are {}", known.join(", ")),
    }
}

/// What a value is, in words.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
