//! Reads one table of a file field by field: typed, within bounds, and without unknown keys.

use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::units::{Share, Span, parse_duration, parse_share, parse_size, shortened};

/// The most texts in one list.
const TEXTS_MAX: usize = 64;
/// A key more similar than this to a known one counts as a misspelling of it.
const LIKE: f64 = 0.8;

/// An error in a field.
#[derive(Debug)]
pub struct Fault {
    /// Where the field is written, as offsets into the file.
    pub at: Range<usize>,
    /// The field, with its tables.
    pub field: String,
    /// What is wrong.
    pub what: String,
}

/// A table of the file, and the keys that have been read from it.
pub(crate) struct Fields<'a, 'i> {
    path: String,
    at: Range<usize>,
    table: Option<&'a DeTable<'i>>,
    known: Vec<&'static str>,
}

type Value<'a, 'i> = &'a Spanned<DeValue<'i>>;

impl<'a, 'i> Fields<'a, 'i> {
    /// Returns the fields of the file's root table.
    pub(crate) fn root(table: &'a DeTable<'i>) -> Self {
        Self { path: String::new(), at: 0..0, table: Some(table), known: Vec::new() }
    }

    /// Returns the table `key`; an empty one if it is not in the file.
    pub(crate) fn section(&mut self, key: &'static str) -> Result<Self, Fault> {
        match self.get(key) {
            None => {
                let (path, at) = (format!("{}{key}.", self.path), self.at.clone());
                Ok(Self { path, at, table: None, known: Vec::new() })
            }
            Some(value) => self.table_in(value, key),
        }
    }

    /// Returns the tables `[[key]]`, at most `limit`.
    pub(crate) fn sections(&mut self, key: &'static str, limit: usize) -> Result<Vec<Self>, Fault> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let Some(items) = value.get_ref().as_array() else {
            return Err(self.fault(key, &format!("is written as [[{key}]]")));
        };
        if items.len() > limit {
            return Err(self.fault(key, &format!("{} of them, at most {limit}", items.len())));
        }
        let tables = items.iter().enumerate();
        tables.map(|(index, item)| self.table_in(item, &format!("{key}[{index}]"))).collect()
    }

    fn table_in(&self, value: Value<'a, 'i>, name: &str) -> Result<Self, Fault> {
        let (path, at) = (format!("{}{name}", self.path), value.span());
        match value.get_ref().as_table() {
            // A table's own span begins at its first line; that of a table in an array, at its
            // header.
            Some(table) => Ok(Self { path: path + ".", at, table: Some(table), known: Vec::new() }),
            None => {
                let what = format!("is a table, not {}", article(value.get_ref()));
                Err(Fault { at, field: path, what })
            }
        }
    }

    /// Returns the value of `key`, which counts as known from now on.
    pub(crate) fn get(&mut self, key: &'static str) -> Option<Value<'a, 'i>> {
        self.known.push(key);
        self.table?.get(key)
    }

    /// Creates an error for `key`, located at the key or, if it is not in the file, at its table.
    pub(crate) fn fault(&self, key: &str, what: &str) -> Fault {
        let written = self.table.and_then(|table| table.get_key_value(key));
        let at = written.map_or(self.at.clone(), |(name, _)| name.span());
        Fault { at, field: format!("{}{key}", self.path), what: what.to_owned() }
    }

    /// Reads a text and parses it with `read`.
    pub(crate) fn text<T, E: Display>(
        &mut self,
        key: &'static str,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Fault> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let text = value.get_ref().as_str().ok_or_else(|| {
            let found = article(value.get_ref());
            self.fault(key, &format!("must be quoted, as in \"15%\"; it is {found}"))
        })?;
        read(text).map(Some).map_err(|what| self.fault(key, &what.to_string()))
    }

    /// Parses a text with `read` into `into`, which keeps its value if the key is absent.
    fn text_into<T>(
        &mut self,
        key: &'static str,
        into: &mut T,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<(), Fault> {
        if let Some(value) = self.text(key, read)? {
            *into = value;
        }
        Ok(())
    }

    /// Reads a required text and parses it with `read`. If it is missing, an unknown key similar to
    /// it is reported as a misspelling.
    pub(crate) fn required<T, E: Display>(
        &mut self,
        key: &'static str,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Result<T, Fault> {
        self.text(key, read)?.ok_or_else(|| match self.misspelt(key) {
            Some(written) => self.no_such(written, &format!("did you mean `{key}`?")),
            None => self.fault(key, "is missing"),
        })
    }

    /// Reads a text or a list of texts, and parses each with `read`.
    pub(crate) fn texts<T, E: Display>(
        &mut self,
        key: &'static str,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Option<Vec<T>>, Fault> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let wrong = || self.fault(key, "is a text or a list of texts, each in quotes");
        let texts: Vec<&str> = match value.get_ref() {
            DeValue::String(text) => vec![text],
            DeValue::Array(items) => {
                let texts = items.iter().map(|item| item.get_ref().as_str());
                texts.collect::<Option<_>>().ok_or_else(wrong)?
            }
            _ => return Err(wrong()),
        };
        if texts.len() > TEXTS_MAX {
            return Err(self.fault(key, &format!("{} of them, at most {TEXTS_MAX}", texts.len())));
        }
        let read = texts
            .into_iter()
            .map(|text| read(text).map_err(|what| self.fault(key, &what.to_string())));
        read.collect::<Result<_, _>>().map(Some)
    }

    /// Reads `true` or `false`.
    pub(crate) fn flag(&mut self, key: &'static str) -> Result<Option<bool>, Fault> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let wrong = || self.fault(key, "is true or false");
        value.get_ref().as_bool().ok_or_else(wrong).map(Some)
    }

    /// Reads a size into `into`.
    pub(crate) fn size(&mut self, key: &'static str, into: &mut u64) -> Result<(), Fault> {
        self.text_into(key, into, parse_size)
    }

    /// Reads a share within `bounds` into `into`.
    pub(crate) fn share(
        &mut self,
        key: &'static str,
        bounds: RangeInclusive<f64>,
        into: &mut f64,
    ) -> Result<(), Fault> {
        let (low, high) = (Share(*bounds.start()), Share(*bounds.end()));
        self.text_into(key, into, |text| within(text, parse_share(text)?, &bounds, low, high))
    }

    /// Reads a time within `bounds`, in seconds, into `into`.
    pub(crate) fn time(
        &mut self,
        key: &'static str,
        bounds: RangeInclusive<u64>,
        into: &mut Duration,
    ) -> Result<(), Fault> {
        let bounds = Duration::from_secs(*bounds.start())..=Duration::from_secs(*bounds.end());
        let (low, high) = (Span(*bounds.start()), Span(*bounds.end()));
        self.text_into(key, into, |text| within(text, parse_duration(text)?, &bounds, low, high))
    }

    /// Reads a number within `bounds`.
    pub(crate) fn number(
        &mut self,
        key: &'static str,
        bounds: RangeInclusive<f64>,
    ) -> Result<Option<f64>, Fault> {
        self.number_that(key, "a number", bounds, |_| true)
    }

    /// Reads a whole number within `bounds`.
    pub(crate) fn whole(
        &mut self,
        key: &'static str,
        bounds: RangeInclusive<u32>,
    ) -> Result<Option<u32>, Fault> {
        let bounds = f64::from(*bounds.start())..=f64::from(*bounds.end());
        let number = self.number_that(key, "a whole number", bounds, |it| it.fract() == 0.0)?;
        Ok(number.map(|number| number as u32))
    }

    /// Reads a number within `bounds` for which `fits` holds; `noun` names its kind in the error.
    fn number_that(
        &mut self,
        key: &'static str,
        noun: &str,
        bounds: RangeInclusive<f64>,
        fits: impl Fn(f64) -> bool,
    ) -> Result<Option<f64>, Fault> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = match value.get_ref() {
            DeValue::Integer(it) => {
                i64::from_str_radix(it.as_str(), it.radix()).ok().map(|it| it as f64)
            }
            DeValue::Float(it) => it.as_str().parse().ok(),
            _ => None,
        };
        match number {
            Some(number) if bounds.contains(&number) && fits(number) => Ok(Some(number)),
            _ => {
                let (low, high) = (bounds.start(), bounds.end());
                Err(self.fault(key, &format!("is {noun} from {low} to {high}")))
            }
        }
    }

    /// Refuses values that are not in ascending order. The error names a key that is in the file,
    /// since the other value may be the preset's.
    pub(crate) fn upwards<T: PartialOrd + Copy, S: Display>(
        &self,
        values: &[(&str, T)],
        shown: fn(T) -> S,
    ) -> Result<(), Fault> {
        for pair in values.windows(2) {
            let [(low_key, low), (high_key, high)] = pair else { continue };
            if low > high {
                let (low, high) = (shown(*low), shown(*high));
                let key = if self.is_written(high_key) { high_key } else { low_key };
                let what = format!("`{low_key}`, {low}, is more than `{high_key}`, {high}");
                return Err(self.fault(key, &what));
            }
        }
        Ok(())
    }

    /// Returns whether the file contains `key`.
    pub(crate) fn is_written(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Refuses keys that were not read.
    pub(crate) fn finish(&self) -> Result<(), Fault> {
        // The first in the file, not the first in the alphabet.
        let first = self.unasked().min_by_key(|key| key.span().start);
        let Some(first) = first else { return Ok(()) };
        let hint = match self.near(first.get_ref()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("keys here: {}", self.known.join(", ")),
        };
        Err(self.no_such(first, &hint))
    }

    fn no_such(&self, written: &Spanned<DeString<'_>>, hint: &str) -> Fault {
        let field = format!("{}{}", self.path, shortened(written.get_ref()));
        Fault { at: written.span(), field, what: format!("unknown key; {hint}") }
    }

    /// Returns the keys that have not been read yet.
    fn unasked(&self) -> impl Iterator<Item = &'a Spanned<DeString<'i>>> {
        let keys = self.table.into_iter().flat_map(|table| table.keys());
        keys.filter(|key| !self.known.contains(&key.get_ref().as_ref()))
    }

    /// Returns an unread key similar enough to `key` to be a misspelling of it. No key that is read
    /// after `key` may be that similar to it, or it would be taken for the misspelling.
    fn misspelt(&self, key: &str) -> Option<&'a Spanned<DeString<'i>>> {
        self.unasked().find(|name| likeness(key, name.get_ref()) > LIKE)
    }

    /// Returns the known key most similar to `name`, if any is similar enough.
    fn near(&self, name: &str) -> Option<&'static str> {
        let alike = self.known.iter().copied().map(|key| (likeness(key, name), key));
        let (best, key) = alike.max_by(|(one, _), (other, _)| one.total_cmp(other))?;
        (best > LIKE).then_some(key)
    }
}

/// Returns `value`, written as `text`, if it is within `bounds`.
fn within<T: PartialOrd>(
    text: &str,
    value: T,
    bounds: &RangeInclusive<T>,
    low: impl Display,
    high: impl Display,
) -> Result<T, String> {
    if bounds.contains(&value) {
        return Ok(value);
    }
    Err(format!("`{}` is not from {low} to {high}", shortened(text)))
}

/// Returns the similarity of two keys, from 0 to 1.
fn likeness(key: &str, written: &str) -> f64 {
    strsim::jaro_winkler(key, &shortened(written))
}

/// Names the type of a value for people.
fn article(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
