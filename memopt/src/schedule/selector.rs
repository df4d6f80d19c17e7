//! Which guests a schedule is for, by their labels.

use std::collections::BTreeMap;
use std::fmt;

use crate::labels::LabelTest;

/// Most conditions of one selector.
const CONDITIONS_MAX: usize = 16;

/// Conditions on labels, all of which a guest must meet. None at all: every guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector(Vec<LabelTest>);

/// What is wrong with a selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// A condition that is none.
    #[error("{0}")]
    Malformed(String),
    /// Too many conditions.
    #[error("a selector has at most {CONDITIONS_MAX} conditions")]
    TooMany,
}

impl Selector {
    /// Reads conditions, each a text of its own.
    ///
    /// # Errors
    /// One is none, or there are too many.
    pub fn parse<'a>(conditions: impl IntoIterator<Item = &'a str>) -> Result<Self, SelectorError> {
        let mut read = Vec::new();
        for condition in conditions {
            if read.len() == CONDITIONS_MAX {
                return Err(SelectorError::TooMany);
            }
            read.push(condition.parse().map_err(SelectorError::Malformed)?);
        }
        Ok(Self(read))
    }

    /// Whether a guest with these labels is meant.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|test| test.holds(labels))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("every guest");
        }
        for (index, test) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{test}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &[(&str, &str)]) -> BTreeMap<String, String> {
        text.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn all_conditions_have_to_be_met() {
        let batch = labels(&[("tier", "batch"), ("team", "shop")]);
        let prod = labels(&[("tier", "prod")]);
        for (conditions, expected) in [
            (vec![], [true, true, true]),
            (vec!["tier=batch"], [true, false, false]),
            (vec!["tier!=prod"], [true, false, true]),
            (vec!["tier"], [true, true, false]),
            (vec!["!team"], [false, true, true]),
            (vec!["tier != prod", "tier"], [true, false, false]),
            (vec!["tier="], [false, false, false]),
        ] {
            let selector = Selector::parse(conditions.iter().copied()).unwrap();
            let found = [&batch, &prod, &labels(&[])].map(|guest| selector.matches(guest));
            assert_eq!(found, expected, "{selector}");
        }
    }

    #[test]
    fn a_value_may_be_any_text() {
        let selector = Selector::parse(["note=a!=b, c"]).unwrap();
        assert!(selector.matches(&labels(&[("note", "a!=b, c")])));
    }

    #[test]
    fn what_is_no_condition_is_refused() {
        for text in ["", "=x", "!", "!=", "a b", "a b=c", "!a=b", &"k".repeat(100_000)] {
            let error = Selector::parse([text]).unwrap_err().to_string();
            assert!(error.contains("tier=batch") && error.len() < 250, "{error}");
        }
        assert_eq!(Selector::parse(["a"; 17]), Err(SelectorError::TooMany));
    }

    #[test]
    fn is_shown_as_it_is_read() {
        let text = ["a=1", "b!=2", "c", "!d"];
        assert_eq!(Selector::parse(text).unwrap().to_string(), text.join(","));
    }
}
