//! Asserts that the state machines, the convergence rule and the codec use no clock, socket or
//! file.

#![allow(clippy::unwrap_used)] // all of it is test

use std::fs;
use std::path::{Path, PathBuf};

const PURE: &[&str] =
    &["source", "destination", "convergence.rs", "estimate", "protocol", "resolve.rs"];
const FORBIDDEN: &[&str] = &[
    "Instant",
    "SystemTime",
    "std::net",
    "std::fs",
    "std::thread",
    "tokio::",
    "quinn::",
    "tracing::",
];

fn files(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_file() {
        return found.push(path.to_owned());
    }
    for entry in fs::read_dir(path).unwrap() {
        files(&entry.unwrap().path(), found);
    }
}

#[test]
fn pure_modules_hold_no_clock_no_socket_and_no_file() {
    let mut found = Vec::new();
    for name in PURE {
        files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(name), &mut found);
    }
    assert!(found.len() > 15, "{found:?}");
    for file in found {
        let text = fs::read_to_string(&file).unwrap();
        for word in FORBIDDEN {
            assert!(!text.contains(word), "{} mentions {word}", file.display());
        }
    }
}

#[test]
fn only_the_codec_names_bincode() {
    let mut found = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    for file in found {
        let codec =
            file.components().any(|part| part.as_os_str().to_string_lossy().starts_with("codec"));
        let text = fs::read_to_string(&file).unwrap();
        assert!(codec || !text.contains("bincode::"), "{}", file.display());
    }
}
