//! The reference of the policy says what the presets are: each of its rows, written into a policy,
//! changes nothing.

use std::collections::BTreeSet;

use memopt::policy::{Policy, Preset};

const REFERENCE: &str = include_str!("../../docs/density-policy.md");

/// The rows of the table of presets: field, and the values of the three.
fn rows() -> Vec<(String, [String; 3])> {
    let (presets, _) = REFERENCE.split_once("\n## Schedules\n").expect("what comes after");
    let rows = presets.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let (field, values) = row.split_once("` |").expect("a field in backquotes");
        let values: Vec<&str> = values.split('|').map(str::trim).collect();
        let of = |index: usize| values[index].to_owned();
        (field.to_owned(), [of(0), of(1), of(2)])
    })
    .collect()
}

/// `value` as TOML: numbers as they are, `a, b` as a list, all else as a text.
fn toml(field: &str, value: &str) -> String {
    let counts =
        ["red-factor", "stalls", "faults", "second", "passes", "gain", "chunks-max", "tries"];
    if counts.iter().any(|count| field.ends_with(count)) {
        return value.to_owned();
    }
    if field == "actuators" {
        let names: Vec<String> = value.split(", ").map(|name| format!("\"{name}\"")).collect();
        return format!("[{}]", names.join(", "));
    }
    format!("\"{value}\"")
}

/// The policy of `preset` with `field` written as `value`.
fn with(preset: Preset, field: &str, value: &str) -> Policy {
    let value = toml(field, value);
    let line = match field.split_once('.') {
        Some((section, key)) => format!("[{section}]\n{key} = {value}"),
        None => format!("{field} = {value}"),
    };
    let text = format!("preset = \"{preset}\"\n{line}");
    Policy::parse(&text, "docs/density-policy.md").unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_row_says_what_the_presets_are() {
    for (field, values) in rows() {
        for (preset, value) in Preset::ALL.into_iter().zip(&values) {
            assert_eq!(with(preset, &field, value), preset.policy(), "{field} of {preset}");
        }
    }
}

#[test]
fn every_field_has_a_row() {
    let rows: BTreeSet<String> = rows().into_iter().map(|(field, _)| field).collect();
    let policy = serde_json::to_value(Policy::default()).expect("JSON");
    let mut fields = 0;
    for (section, value) in policy.as_object().expect("an object") {
        fields += match value.as_object() {
            Some(own) => own.len(),
            None => usize::from(["goal", "actuators"].contains(&section.as_str())),
        };
    }
    assert_eq!(rows.len(), fields, "{rows:?}");
}

#[test]
fn the_example_is_a_policy() {
    let begin = REFERENCE.find("```toml\n").expect("an example") + "```toml\n".len();
    let end = begin + REFERENCE[begin..].find("```").expect("its end");
    let policy = Policy::parse(&REFERENCE[begin..end], "docs/density-policy.md").expect("a policy");
    assert_eq!(policy.guests.len(), 3);
}
