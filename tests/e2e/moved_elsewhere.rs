//! Lists of metrics that one test skips because another moves them: an entry names that test, and
//! `check` verifies that the test exists and names the metrics.

use std::fs;
use std::path::Path;

/// A file, a test in it, and the full names of the metrics that the test moves.
pub(crate) type MovedElsewhere = (&'static str, &'static str, &'static [&'static str]);

/// All metrics of a list.
pub(crate) fn names(list: &[MovedElsewhere]) -> Vec<&'static str> {
    list.iter().flat_map(|(.., metrics)| metrics.iter().copied()).collect()
}

/// The text of test `name` in `file`; `None` if there is no such test.
fn test_text<'a>(file: &'a str, name: &str) -> Option<&'a str> {
    let (before, text) = file.split_once(&format!("fn {name}() {{\n"))?;
    let (attribute, indent) = before.rsplit_once('\n')?;
    let end = text.find(&format!("\n{indent}}}\n"))?;
    attribute.trim_end().ends_with("#[test]").then_some(&text[..end])
}

/// Asserts that the test exists and names each of its metrics, and that the catalogue contains
/// them.
#[track_caller]
pub(crate) fn check((path, name, metrics): &MovedElsewhere) {
    let file = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path));
    let file = file.unwrap_or_else(|error| panic!("{path}: {error}"));
    let text = test_text(&file, name).unwrap_or_else(|| panic!("{path} has no test {name}"));
    for metric in *metrics {
        let is_named = ['"', '{', ' '].iter().any(|end| text.contains(&format!("\"{metric}{end}")));
        assert!(is_named, "{name} in {path} says nothing of {metric}");
        let is_known = ::metrics::definitions().any(|one| one.name == *metric);
        assert!(is_known, "{metric} is not in the catalogue");
    }
}
