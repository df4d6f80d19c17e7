//! The dashboards and the alert rules in `dashboards/` name only existing metrics, name all of
//! them, and the alerts fire when they should.
//!
//! An end-to-end test with a live node and Prometheus checks that each expression evaluates.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn text(path: &str) -> String {
    fs::read_to_string(folder().join(path)).expect(path)
}

const DASHBOARDS: [&str; 2] =
    ["dashboards/lighter-migrations.json", "dashboards/lighter-density.json"];

fn dashboard(file: &str) -> Value {
    serde_json::from_str(&text(file)).expect("JSON")
}

fn items<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// Returns the metrics that a text names, histograms without Prometheus' suffixes.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_lowercase() && c != '_');
    let metrics = words.filter(|word| word.starts_with("lighter_"));
    let stem = |word: &str| word.strip_suffix("_bucket").unwrap_or(word).to_owned();
    metrics.map(stem).collect()
}

/// Returns all queries of a dashboard: the expressions of its panels and of its variables.
fn asked(file: &str) -> String {
    let dashboard = dashboard(file);
    let panels = items(&dashboard, "panels").iter().flat_map(|panel| items(panel, "targets"));
    let variables = items(&dashboard["templating"], "list").iter();
    let asked = panels.map(|target| &target["expr"]);
    let asked = asked.chain(variables.map(|variable| &variable["definition"]));
    asked.filter_map(Value::as_str).collect::<Vec<_>>().join("\n")
}

#[test]
fn expressions_use_existing_metrics() {
    let known: BTreeSet<_> = metrics::definitions().map(|one| one.name.to_owned()).collect();
    let dashboards = DASHBOARDS.map(|file| (file, asked(file)));
    let alerts = ("alerts", text("dashboards/alerts.yml"));
    for (place, text) in dashboards.into_iter().chain([alerts]) {
        let named = named(&text);
        assert!(named.len() > 10, "{place}: {named:?}");
        let unknown: Vec<_> = named.difference(&known).collect();
        assert!(unknown.is_empty(), "{place}: {unknown:?}");
    }
}

#[test]
fn the_dashboards_show_every_metric() {
    let shown = named(&DASHBOARDS.map(asked).join("\n"));
    let all = metrics::definitions().map(|one| one.name.to_owned());
    let missing: Vec<_> = all.filter(|name| !shown.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Returns a panel's position: left, top, right and bottom.
fn place(panel: &Value) -> [i64; 4] {
    let of = |key: &str| panel["gridPos"][key].as_i64().expect(key);
    [of("x"), of("y"), of("x") + of("w"), of("y") + of("h")]
}

#[test]
fn panels_are_named_described_and_beside_each_other() {
    DASHBOARDS.iter().for_each(|file| panels_are_in_order(file));
}

fn panels_are_in_order(file: &str) {
    let dashboard = dashboard(file);
    let panels = items(&dashboard, "panels");
    let mut ids = BTreeSet::new();
    for (index, panel) in panels.iter().enumerate() {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_i64().expect("a number")), "{title}: its id is taken");
        let [left, top, right, bottom] = place(panel);
        assert!(left >= 0 && right <= 24, "{title} is wider than the grid");
        for other in &panels[..index] {
            let [x, y, to_x, to_y] = place(other);
            let is_apart = right <= x || to_x <= left || bottom <= y || to_y <= top;
            assert!(is_apart, "{title} lies on {}", other["title"]);
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(panel["description"].as_str().is_some_and(|text| text.ends_with('.')), "{title}");
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title} has no unit");
        assert!(!items(panel, "targets").is_empty(), "{title} shows nothing");
        for target in items(panel, "targets") {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            let expression = target["expr"].as_str().expect("an expression");
            let chosen = expression.matches("instance=~\"$instance\"").count();
            assert_eq!(chosen, expression.matches("lighter_").count(), "{title}: {expression}");
        }
    }
}

#[test]
fn each_alert_has_a_severity_and_a_runbook() {
    let rules = text("dashboards/alerts.yml");
    let guide = text("docs/alerts.md");
    let mut seen = 0;
    for rule in rules.split("- alert: ").skip(1) {
        let name = rule.lines().next().expect("a name");
        let severities = ["critical", "warning", "info"];
        assert!(
            severities.iter().any(|word| rule.contains(&format!("severity: {word}\n"))),
            "{name}"
        );
        let address = format!("runbook_url: docs/alerts.md#{}\n", name.to_lowercase());
        assert!(rule.contains(&address), "{name}: {address}");
        assert!(guide.contains(&format!("\n## {name}\n")), "docs/alerts.md says nothing of {name}");
        seen += 1;
    }
    assert!(seen > 0 && guide.matches("\n## ").count() == seen, "{seen} alerts");
}

#[test]
fn promtool_has_each_alert_fire_when_it_should() {
    if std::env::var_os("LIGHTER_SKIP_PROMTOOL").is_some() {
        eprintln!("skipped: LIGHTER_SKIP_PROMTOOL is set");
        return;
    }
    for arguments in [
        ["check", "rules", "--lint=all", "--lint-fatal", "alerts.yml"].as_slice(),
        &["test", "rules", "alerts.test.yml"],
    ] {
        let output = Command::new("promtool")
            .args(arguments)
            .current_dir(folder().join("dashboards"))
            .output()
            .expect("promtool (Debian's package `prometheus`), or LIGHTER_SKIP_PROMTOOL=1");
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said));
    }
    // A rule without a test that fires it might never fire.
    let tests = text("dashboards/alerts.test.yml");
    for rule in text("dashboards/alerts.yml").split("- alert: ").skip(1) {
        let name = rule.lines().next().expect("a name");
        assert!(tests.contains(&format!("alertname=\"{name}\"")), "nothing tests {name}");
    }
}
