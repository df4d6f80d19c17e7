//! Errors of files that are read as a type: serde's messages in lighter's words, with the key.

use toml::de::{DeTable, DeValue};

use super::Fault;

/// serde's words, and the replacements used here.
const WORDS: [(&str, &str); 9] = [
    ("unknown field", "unknown key"),
    ("missing field", "missing key"),
    (", expected a string", ", expected text in quotes"),
    (", expected a sequence", ", expected a list in []"),
    (", expected a boolean", ", expected true or false"),
    (", expected u8", ", expected a whole number"),
    (", expected u16", ", expected a whole number"),
    (", expected u32", ", expected a whole number"),
    (", expected u64", ", expected a whole number"),
];

/// Converts an error of serde in the file of this table.
pub(super) fn fault(root: &DeTable<'_>, error: &toml::de::Error) -> Fault {
    let at = error.span().unwrap_or_default();
    let field = error.span().and_then(|span| key_at(root, span.start)).unwrap_or_default();
    Fault { at, field, what: plain(error.message()) }
}

/// Rewrites a message in terms of keys and numbers, on one line: serde writes of fields and Rust
/// types, and toml's messages have several lines.
pub(super) fn plain(message: &str) -> String {
    let number = message.strip_prefix("invalid value: integer ").and_then(|it| it.split_once(','));
    let what = number.map_or(message.to_owned(), |(number, _)| format!("{number} is out of range"));
    let what = WORDS.iter().fold(what, |what, (word, ours)| what.replace(word, ours));
    what.trim_end().replace('\n', ": ")
}

/// Returns the key whose name or value contains `offset`.
fn key_at(table: &DeTable<'_>, offset: usize) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        let name = key.get_ref();
        let inside = match value.get_ref() {
            DeValue::Table(inner) => key_at(inner, offset).map(|inner| format!("{name}.{inner}")),
            DeValue::Array(items) => items.iter().enumerate().find_map(|(index, item)| {
                let inner = match item.get_ref() {
                    DeValue::Table(inner) => key_at(inner, offset).map(|inner| format!(".{inner}")),
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
