//! Selects guests by their labels.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::LabelTest;

/// Conditions on labels, all of which a guest must meet. Without conditions it selects every guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Selector(Vec<LabelTest>);

impl Selector {
    /// Selects the guests that meet all of these conditions.
    #[must_use]
    pub const fn new(conditions: Vec<LabelTest>) -> Self {
        Self(conditions)
    }

    /// Returns whether there is no condition, so that every guest is selected.
    #[must_use]
    pub const fn is_everyone(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether a guest with these labels is selected.
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

    fn selector(conditions: &[&str]) -> Selector {
        Selector::new(conditions.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn all_conditions_have_to_be_met() {
        let batch = labels(&[("tier", "batch"), ("team", "shop")]);
        let prod = labels(&[("tier", "prod")]);
        for (conditions, expected) in [
            (vec![], [true, true, true]),
            (vec!["tier=batch"], [true, false, false]),
            (vec!["tier!=prod"], [true, false, false]),
            (vec!["!tier=prod"], [true, false, true]),
            (vec!["!tier!=prod"], [false, true, true]),
            (vec!["tier"], [true, true, false]),
            (vec!["!team"], [false, true, true]),
            (vec!["tier != prod", "tier"], [true, false, false]),
            (vec!["tier="], [false, false, false]),
        ] {
            let selector = selector(&conditions);
            let found = [&batch, &prod, &labels(&[])].map(|guest| selector.matches(guest));
            assert_eq!(found, expected, "{selector}");
        }
    }

    #[test]
    fn a_value_may_be_any_text() {
        let selector = selector(&["note=a!=b, c"]);
        assert!(selector.matches(&labels(&[("note", "a!=b, c")])));
    }

    #[test]
    fn is_shown_as_it_is_read() {
        let text = ["a=1", "b!=2", "c", "!d", "!e=3", "!f!=4"];
        assert_eq!(selector(&text).to_string(), text.join(","));
    }
}
