//! Files that are read by their type: what serde finds wrong, in our words and with its key.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::Fault;

/// What serde says, and what we say.
const WORDS: [(&str, &str); 5] = [
    ("unknown field", "unknown key"),
    ("missing field", "missing key"),
    (", expected u8", ", expected a whole number"),
    (", expected u32", ", expected a whole number"),
    (", expected u64", ", expected a whole number"),
];

/// What serde found wrong in the file of this table.
pub(super) fn fault(root: &DeTable<'_>, error: &toml::de::Error) -> Fault {
    let at = error.span().unwrap_or_default();
    let field = error.span().and_then(|span| key_at(root, span)).unwrap_or_default();
    Fault { at, field, what: plain(error.message()) }
}

/// serde speaks of fields and of Rust's types, and toml's messages have several lines.
pub(super) fn plain(message: &str) -> String {
    let number = message.strip_prefix("invalid value: integer ").and_then(|it| it.split_once(','));
    let what = number.map_or(message.to_owned(), |(number, _)| format!("{number} is out of range"));
    let what = WORDS.iter().fold(what, |what, (word, ours)| what.replace(word, ours));
    what.trim_end().replace('\n', ": ")
}

/// The key in whose name or value `span` begins.
fn key_at(table: &DeTable<'_>, span: Range<usize>) -> Option<String> {
    let offset = span.start;
    table.iter().find_map(|(key, value)| {
        let name = key.get_ref();
        let inside = match value.get_ref() {
            DeValue::Table(inner) => {
                key_at(inner, span.clone()).map(|inner| format!("{name}.{inner}"))
            }
            DeValue::Array(items) => items.iter().enumerate().find_map(|(index, item)| {
                let inner = match item.get_ref() {
                    DeValue::Table(inner) => {
                        key_at(inner, span.clone()).map(|inner| format!(".{inner}"))
                    }
                    _ => None,
                };
                let is_itself = || item.span().contains(&offset).then(String::new);
                inner.or_else(is_itself).map(|inner| format!("{name}[{index}]{inner}"))
            }),
            _ => None,
        };
        let is_itself = key.span().contains(&offset) || value.span().contains(&offset);
        inside.or_else(|| is_itself.then(|| name.to_string()))
    })
}
