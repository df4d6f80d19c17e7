//! Files with all keys, files with almost none, and every kind of error.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const FULL: &str = r#"
[policy]
preset = "safe"

[[schedule]]
name = "nightly"
cron = "30 2 * * *"
timezone = "UTC"
for = "2h"
goal = "keep 15% headroom"
guests = ["tier=batch", "!pinned"]
budget = { cpu = "50%", pages-per-second = 20_000, cpu-seconds = 900 }
overlap = "skip"
missed = "catch-up within 15m"
enabled = false

[[schedule]]
name = "weekly"
cron = "@weekly"
goal = "max density"
guests = "tier!=prod"
"#;

/// Accepts any text that begins with a goal's verb.
fn goal(text: &str) -> Result<(), String> {
    let known = ["free ", "max ", "keep "].iter().any(|verb| text.starts_with(verb));
    known.then_some(()).ok_or_else(|| format!("`{text}` is no goal"))
}

fn parse(text: &str) -> Result<Vec<Schedule>, String> {
    read(text, "lighter.toml", goal).map_err(|error| error.to_string())
}

/// A schedule with all required keys, and `line`.
fn with(line: &str) -> Result<Vec<Schedule>, String> {
    let mut lines = vec!["name = \"n\"", "cron = \"0 2 * * *\"", "goal = \"max density\""];
    let key = line.split('=').next().unwrap_or_default();
    lines.retain(|other| !other.starts_with(key));
    parse(&format!("[[schedule]]\n{line}\n{}", lines.join("\n")))
}

#[test]
fn everything_that_is_written_is_read() {
    let schedules = parse(FULL).unwrap();
    let nightly = &schedules[0];
    assert_eq!(nightly.cron, Cron::parse("30 2 * * *", Zone::utc()).unwrap());
    assert_eq!((nightly.name.as_str(), nightly.goal.as_str()), ("nightly", "keep 15% headroom"));
    assert_eq!((nightly.window, nightly.enabled), (Duration::from_secs(7200), false));
    let budget =
        Budget { cpu_percent: Some(50), pages_per_second: Some(20_000), cpu_seconds: Some(900) };
    assert_eq!(nightly.budget, budget);
    assert_eq!(nightly.guests.to_string(), "tier=batch,!pinned");
    assert_eq!(nightly.overlap, Overlap::Skip);
    assert_eq!(nightly.missed, Missing::CatchUp { within: Duration::from_secs(900) });
}

#[test]
fn missing_keys_have_defaults() {
    let weekly = &parse(FULL).unwrap()[1];
    assert_eq!(weekly.window, Duration::from_secs(3600));
    assert_eq!((weekly.budget, weekly.enabled), (Budget::default(), true));
    assert_eq!((weekly.overlap, weekly.missed), (Overlap::Queue, Missing::Skip));
    assert!(!weekly.guests.matches(&BTreeMap::new()));
    assert_eq!(weekly.cron, Cron::parse("@weekly", Zone::local()).unwrap());
    assert_eq!(parse("[policy]\n"), Ok(Vec::new()));
}

#[test]
fn errors_name_line_and_key() {
    for (line, expected) in [
        ("cron = \"0 25 * * *\"", "lighter.toml:2: schedule[0].cron: `0 25 * * *` is not a cron"),
        ("cron = \"0 0 31 2 *\"", "lighter.toml:2: schedule[0].cron: `0 0 31 2 *` never comes"),
        ("cron = 5", "schedule[0].cron: must be quoted"),
        ("timezone = \"Mars\"", "schedule[0].timezone: this host knows no time zone `Mars`"),
        ("for = \"two hours\"", "schedule[0].for: `two hours` is not a time"),
        ("for = \"59s\"", "schedule[0].for: `59s` is not from 1m to 7d"),
        ("for = \"8d\"", "schedule[0].for: `8d` is not from 1m to 7d"),
        ("goal = \"be nice\"", "schedule[0].goal: `be nice` is no goal"),
        ("goal = \"\"", "schedule[0].goal: is empty"),
        ("name = \"a/b\"", "lighter.toml:2: schedule[0].name: a schedule's name is"),
        ("name = \"manual\"", "and not `manual`"),
        ("guests = \"a b\"", "schedule[0].guests: `a b` is not a label selector"),
        ("guests = [1]", "schedule[0].guests: is a text or a list of texts"),
        ("enabled = \"yes\"", "schedule[0].enabled: is true or false"),
        ("overlap = \"wait\"", "schedule[0].overlap: `wait` is none of queue, skip"),
        ("missed = \"catch-up\"", "schedule[0].missed: write \"skip\" or \"catch-up within 15m\""),
        ("missed = \"catch-up within 2h\"", "after its window is over (for = \"1h\")"),
        (
            "budget = { cpu = \"0%\" }",
            "schedule[0].budget.cpu: `0%` is not a whole number from 1% to 100%",
        ),
        (
            "budget = { pages-per-second = 0 }",
            "schedule[0].budget.pages-per-second: is a whole number from 1 to 4294967295",
        ),
        (
            "budget = { cpu-seconds = 99999999999 }",
            "schedule[0].budget.cpu-seconds: is a whole number from 1",
        ),
        (
            "budget = { pages_per_second = 1 }",
            "schedule[0].budget.pages_per_second: unknown key; did you mean",
        ),
        ("budget = 3", "schedule[0].budget: is a table, not a number"),
        ("timezon = \"UTC\"", "schedule[0].timezon: unknown key; did you mean `timezone`?"),
        ("zebra = 1", "schedule[0].zebra: unknown key; keys here: name, timezone, cron"),
    ] {
        let error = with(line).unwrap_err();
        assert!(
            error.starts_with("lighter.toml:2: ") && error.contains(expected),
            "{line}: {error}"
        );
    }
}

#[test]
fn a_missing_key_is_reported_with_its_table() {
    for (key, text) in [
        ("name", "[[schedule]]\ncron = \"@daily\"\ngoal = \"max density\""),
        ("cron", "[[schedule]]\nname = \"n\"\ngoal = \"max density\""),
        ("goal", "[[schedule]]\nname = \"n\"\ncron = \"@daily\""),
    ] {
        let expected = format!("lighter.toml:3: schedule[0].{key}: is missing");
        assert_eq!(parse(&format!("\n\n{text}")), Err(expected));
    }
}

#[test]
fn a_misspelt_key_is_not_reported_as_missing() {
    let text = "[[schedule]]\nname = \"n\"\ncrn = \"@daily\"\ngoal = \"max density\"";
    let expected = "lighter.toml:3: schedule[0].crn: unknown key; did you mean `cron`?";
    assert_eq!(parse(text), Err(expected.to_owned()));
}

#[test]
fn numbers_are_written_as_toml_has_them() {
    for number in ["20000", "20_000", "0x4E20", "2e4"] {
        let schedules = with(&format!("budget = {{ pages-per-second = {number} }}")).unwrap();
        assert_eq!(schedules[0].budget.pages_per_second, Some(20_000), "{number}");
    }
}

#[test]
fn conditions_are_few() {
    let conditions = |count: usize| format!("guests = [{}]", "\"tier\", ".repeat(count));
    assert!(with(&conditions(64)).is_ok());
    let error = with(&conditions(65)).unwrap_err();
    assert!(error.ends_with("schedule[0].guests: 65 of them, at most 64"), "{error}");
}

#[test]
fn other_files_are_refused() {
    for (text, expected) in [
        ("\n[schedule]\nname = \"n\"", "lighter.toml:2: schedule: is written as [[schedule]]"),
        ("schedule = [1]", "lighter.toml:1: schedule[0]: is a table, not a number"),
        ("[[schedule]]\nname = \n", "lighter.toml:2: "),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.starts_with(expected), "{text}: {error}");
    }
}

#[test]
fn names_are_one_schedules_and_schedules_are_few() {
    let table = |name: &str| {
        format!("[[schedule]]\nname = \"{name}\"\ncron = \"@daily\"\ngoal = \"max density\"\n")
    };
    let twice = parse(&[table("a"), table("a")].concat()).unwrap_err();
    assert_eq!(twice, "lighter.toml:6: schedule[1].name: another schedule is called `a` already");
    let many: String = (0..=SCHEDULES_MAX).map(|index| table(&format!("n{index}"))).collect();
    assert!(parse(&many).unwrap_err().contains("65 of them, at most 64"));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,200}") {
        let _ = parse(&text);
        let quoted = text.replace(['"', '\\'], "");
        const KEYS: &[&str] =
            &["name", "cron", "timezone", "for", "goal", "guests", "overlap", "missed"];
        for key in KEYS {
            let _ = with(&format!("{key} = \"{quoted}\""));
        }
    }
}
