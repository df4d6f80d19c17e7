//! Tidiness as a test: the house rules that rustc and clippy cannot check.

mod modules;

use std::fs;
use std::path::{Path, PathBuf};

/// The length of the longest file that a reader can still keep in mind.
const FILE_LINES_MAX: usize = 600;

/// The only files and folders that may contain `unsafe`, so that a review of memory safety is
/// finite.
const UNSAFE_PLACES: &[&str] = &[
    "benches/peers/packets.rs",
    "src/confinement/raw_trap.rs",
    "tests/guest/check/linux.rs",
    "vmm-core/src/sys/",
    "vmm-core/workload/",
];

/// File names that do not say what a file is for.
const VAGUE_NAMES: &[&str] = &["utils", "util", "helpers", "helper", "common", "manager", "misc"];

struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// The path as printed in a finding: relative to the root.
    fn name(&self) -> String {
        self.path.strip_prefix(root()).unwrap_or(&self.path).display().to_string()
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Reads every Rust source of the workspace.
fn sources() -> Vec<Source> {
    let folders = [
        "src",
        "vmm-core",
        "migrate",
        "memopt",
        "metrics",
        "regular-file",
        "fuzz",
        "tests",
        "benches",
        "packaging",
    ];
    let mut found = Vec::new();
    for folder in folders {
        collect(&root().join(folder), &mut found);
    }
    assert!(
        found.len() > 20,
        "the walk found only {} files: it looks in the wrong place",
        found.len()
    );
    found
}

fn collect(folder: &Path, into: &mut Vec<Source>) {
    for path in entries(folder) {
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            collect(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source file in UTF-8");
            into.push(Source { path, text });
        }
    }
}

/// Applies `rule` to every line of every source but this one, and collects what it finds wrong.
fn findings(rule: impl Fn(&Source, &str) -> Option<String>) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| source.name() != "tests/tidy/main.rs") {
        for (index, line) in source.text.lines().enumerate() {
            if let Some(what) = rule(source, line) {
                found.push(format!("{}:{}: {what}", source.name(), index + 1));
            }
        }
    }
    found
}

fn assert_none(found: &[String]) {
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn no_file_is_longer_than_600_lines() {
    let found: Vec<String> = sources()
        .iter()
        .filter(|source| source.text.lines().count() > FILE_LINES_MAX)
        .map(|source| format!("{}: {} lines", source.name(), source.text.lines().count()))
        .collect();
    assert_none(&found);
}

#[test]
fn unsafe_stays_in_its_few_files() {
    let found = findings(|source, line| {
        let code = line.split("//").next().unwrap_or_default();
        // The option `--unsafe` of `lighter migrate`, and its name.
        let code = code.replace("--unsafe", "").replace("\"unsafe\"", "");
        let has_unsafe =
            code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
        let allowed = UNSAFE_PLACES.iter().any(|place| source.name().starts_with(place));
        (has_unsafe && !allowed)
            .then(|| "unsafe outside the places listed in tests/tidy/main.rs".to_owned())
    });
    assert_none(&found);
}

#[test]
fn nothing_is_left_unfinished_or_switched_off() {
    let banned =
        ["todo!(", "unimplemented!(", "#[ignore", "allow(dead_code)", "TODO", "FIXME", "XXX"];
    let found = findings(|_, line| {
        banned.iter().find(|word| line.contains(**word)).map(|word| format!("`{word}`"))
    });
    assert_none(&found);
}

/// Checks `lines[index]` against the convention that an error's text includes its cause, and that
/// the cause is then not also the error's `source()`: a caller that prints the chain would print it
/// twice, a caller that prints only the text would lose it.
fn cause_printed_twice_or_lost(lines: &[&str], index: usize) -> Option<&'static str> {
    let line = lines[index].trim();
    let above = lines[..index].iter().rev().map(|line| line.trim());
    let mut attributes = above.take_while(|line| !line.starts_with("///"));
    if line.contains("#[source]") {
        Some("`#[source]`: name the field `cause` and say it in the text")
    } else if line.contains("{source}") && line.starts_with(['#', '"']) {
        Some("`{source}` in an error's text: name the field `cause`")
    } else if line.trim_start_matches("pub ").starts_with("source: ") && line.ends_with("Error,") {
        Some("a field `source` is the error's source(): name it `cause`")
    } else if line.contains("#[from]")
        && attributes.find(|line| line.contains("#[error(")) != Some("#[error(transparent)]")
    {
        Some("`#[from]` is the error's source() too: only with `transparent`")
    } else {
        None
    }
}

#[test]
fn errors_print_their_cause_once() {
    let printed_twice = [
        "#[error(\"cannot read it: {source}\")]",
        "pub source: std::io::Error,",
        "Thread(#[source] io::Error),",
    ];
    for line in printed_twice {
        assert!(cause_printed_twice_or_lost(&[line], 0).is_some(), "{line}");
    }
    let from = |error| cause_printed_twice_or_lost(&[error, "Link(#[from] LinkError),"], 1);
    assert!(from("#[error(\"no link: {0}\")]").is_some());
    assert!(from("#[error(transparent)]").is_none());

    let mut found = Vec::new();
    for source in sources().iter().filter(|source| source.name() != "tests/tidy/main.rs") {
        let lines: Vec<&str> = source.text.lines().collect();
        for index in 0..lines.len() {
            if let Some(what) = cause_printed_twice_or_lost(&lines, index) {
                found.push(format!("{}:{}: {what}", source.name(), index + 1));
            }
        }
    }
    assert_none(&found);
}

#[test]
fn file_names_match_their_contents() {
    let found: Vec<String> = sources()
        .iter()
        .filter(|source| {
            source
                .path
                .file_stem()
                .is_some_and(|stem| VAGUE_NAMES.iter().any(|vague| stem == *vague))
        })
        .map(Source::name)
        .collect();
    assert_none(&found);
}

#[test]
fn every_file_opens_with_its_purpose() {
    let found: Vec<String> = sources()
        .iter()
        .filter(|source| !source.text.trim_start().starts_with("//!"))
        .map(Source::name)
        .collect();
    assert_none(&found);
}

#[test]
fn scripts_check_runs_the_tests_of_every_target() {
    let check = fs::read_to_string(root().join("scripts/check")).expect("a script");
    let words: Vec<&str> = check.split_whitespace().collect();
    let run: Vec<&str> =
        words.windows(2).filter(|pair| pair[0] == "--test").map(|pair| pair[1]).collect();
    let crates = entries(root()).into_iter().chain([root().to_owned()]);
    let tests = crates.filter(|folder| folder.join("Cargo.toml").exists());
    let targets: Vec<String> = tests
        .flat_map(|folder| entries(&folder.join("tests")))
        .filter(|path| {
            path.extension().is_some_and(|it| it == "rs") || path.join("main.rs").exists()
        })
        .map(|path| path.file_stem().expect("a name").display().to_string())
        .collect();
    assert!(targets.len() > 10, "only {targets:?} were found");
    let missing: Vec<_> = targets.iter().filter(|it| !run.contains(&it.as_str())).collect();
    assert!(missing.is_empty(), "scripts/check does not run {missing:?}");
}

/// The entries of `folder`; empty if there is no such folder.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let found = fs::read_dir(folder).into_iter().flatten();
    found.map(|entry| entry.expect("a readable folder").path()).collect()
}

/// Files of `tests/e2e/faults` without tests.
const FAULT_FIXTURES: [&str; 2] = ["phase", "scene"];

#[test]
fn contributing_lists_the_modules_of_fault_tests() {
    let text = fs::read_to_string(root().join("CONTRIBUTING.md")).expect("a guide");
    let names = text.split("`faults::").skip(1).filter_map(|it| it.split('`').next());
    let mut listed: Vec<String> = names.map(str::to_owned).collect();
    let files = entries(&root().join("tests/e2e/faults"));
    let names = files.iter().map(|path| path.file_stem().expect("a name").display().to_string());
    let mut modules: Vec<String> =
        names.filter(|name| !FAULT_FIXTURES.contains(&name.as_str())).collect();
    listed.sort();
    modules.sort();
    assert_eq!(listed, modules);
}

#[test]
fn lines_fit_the_screen() {
    let found = findings(|_, line| {
        let width = line.chars().count();
        // Table rows cannot be wrapped.
        let comment = line.trim_start().trim_start_matches(['/', '!']);
        let is_prose =
            line.trim_start().starts_with("//") && !comment.trim_start().starts_with('|');
        let most = if is_prose { 100 } else { 140 };
        (width > most).then(|| format!("{width} columns"))
    });
    assert_none(&found);
}
