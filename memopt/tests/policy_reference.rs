//! Checks the policy reference against the presets: each row of its first table, written into a
//! policy, changes nothing; each row of its second table matches the preset's policy.

use std::collections::BTreeSet;

use memopt::policy::{Policy, Preset};
use memopt::units::{parse_duration, parse_share, parse_size};
use serde_json::Value;

const REFERENCE: &str = include_str!("../../docs/density-policy.md");

/// A row: a field, and the values of the three presets.
type Row = (String, [String; 3]);

/// Returns the two tables of presets: the keys of the file, and what else presets decide.
fn tables() -> [Vec<Row>; 2] {
    let (presets, _) = REFERENCE.split_once("\n## Schedules\n").expect("what comes after");
    let (keys, rest) = presets.split_once("\nA preset decides more").expect("the second table");
    [keys, rest].map(|text| text.lines().filter_map(row).collect())
}

fn row(line: &str) -> Option<Row> {
    let (field, values) = line.strip_prefix("| `")?.split_once("` |").expect("a field");
    let values: Vec<&str> = values.split('|').map(str::trim).collect();
    let of = |index: usize| values[index].to_owned();
    Some((field.to_owned(), [of(0), of(1), of(2)]))
}

/// Formats `value` as TOML: numbers unchanged, `a, b` as a list, anything else as a text.
fn toml(field: &str, value: &str) -> String {
    if ["faults", "second"].iter().any(|count| field.ends_with(count)) {
        return value.to_owned();
    }
    if field == "actuators" {
        let names: Vec<String> = value.split(", ").map(|name| format!("\"{name}\"")).collect();
        return format!("[{}]", names.join(", "));
    }
    format!("\"{value}\"")
}

/// Returns the policy of `preset` with `field` set to `value`.
fn with(preset: Preset, field: &str, value: &str) -> Policy {
    let value = toml(field, value);
    let line = match field.split_once('.') {
        Some((section, key)) => format!("[{section}]\n{key} = {value}"),
        None => format!("{field} = {value}"),
    };
    let text = format!("preset = \"{preset}\"\n{line}");
    Policy::parse(&text, "docs/density-policy.md").unwrap_or_else(|error| panic!("{error}"))
}

/// Returns whether `text` is the readable form of `value`.
fn reads_as(text: &str, value: &Value) -> bool {
    if let Some(seconds) = value.get("secs") {
        return parse_duration(text).is_ok_and(|time| *seconds == time.as_secs());
    }
    let number = value.as_f64().expect("a number");
    let size = text.strip_suffix("/s").unwrap_or(text);
    let all =
        [text.parse().ok(), parse_share(text).ok(), parse_size(size).ok().map(|it| it as f64)];
    all.into_iter().flatten().any(|read: f64| (read - number).abs() < 1e-9)
}

#[test]
fn every_key_documents_its_presets() {
    let [keys, _] = tables();
    for (field, values) in keys {
        for (preset, value) in Preset::ALL.into_iter().zip(&values) {
            assert_eq!(with(preset, &field, value), preset.policy(), "{field} of {preset}");
        }
    }
}

/// Returns whether the file once had a key for this field of the policy, which the preset now
/// decides.
fn is_refused(field: &str) -> bool {
    let (section, name) = field.split_once('.').expect("a section");
    let name = name.replace('_', "-");
    let key = name.trim_end_matches("-per-s").trim_end_matches("-bytes");
    let said = Policy::parse(&format!("[{section}]\n{key} = 0"), "f").expect_err(key).to_string();
    said.contains("is decided by `preset` now")
}

#[test]
fn what_presets_decide_is_as_the_reference_says() {
    let [_, decided] = tables();
    for (field, values) in decided {
        for (preset, text) in Preset::ALL.into_iter().zip(&values) {
            let policy = serde_json::to_value(preset.policy()).expect("JSON");
            let value = policy.pointer(&format!("/{}", field.replace('.', "/")));
            let value = value.unwrap_or_else(|| panic!("no preset decides {field}"));
            assert!(is_refused(&field), "{field} can be written");
            assert!(reads_as(text, value), "{field} of {preset}: {text}, and it is {value}");
        }
    }
}

#[test]
fn every_field_has_a_row() {
    let rows: BTreeSet<String> = tables().into_iter().flatten().map(|(field, _)| field).collect();
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
