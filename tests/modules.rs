//! Modules know each other in one direction: which of a crate's modules uses which is a graph
//! without cycles, but for those below. Without this, a reader of one module has to read all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Folders of the crates' sources.
const CRATES: [&str; 5] = ["vmm-core/src", "migrate/src", "memopt/src", "metrics/src", "src"];

/// Uses that close a cycle, each with its reason.
const ALLOWED: [Exception; 2] = [
    // A crate's error names what its modules fail with, and they return it.
    ("vmm-core/src", "error", "*"),
    // Booting sets a virtual machine up, which boots again when it resets itself.
    ("vmm-core/src", "boot", "vm"),
];

/// The folder of a crate, a module, and one that it uses; `*` for any.
type Exception = (&'static str, &'static str, &'static str);

/// Which modules of a crate use which.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// The modules of one crate, and what they use.
struct Crate {
    folder: &'static str,
    modules: BTreeSet<String>,
    /// Names that the crate's root takes from a module.
    names: BTreeMap<String, String>,
}

impl Crate {
    fn read(folder: &'static str) -> Self {
        let entries = fs::read_dir(root().join(folder)).expect("a folder");
        let stem = |path: PathBuf| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let modules: BTreeSet<_> = entries
            .filter_map(|entry| stem(entry.expect("an entry").path()))
            .filter(|name| !["lib", "main"].contains(&name.as_str()))
            .collect();
        let mut found = Self { folder, modules, names: BTreeMap::new() };
        let file = root().join(folder).join("lib.rs");
        let text = fs::read_to_string(file).map(|text| production(&text)).unwrap_or_default();
        for tree in text.split("use ").skip(1).filter_map(|rest| rest.split(';').next()) {
            for path in paths(tree.trim()) {
                if let [module, .., name] = &path[..]
                    && found.modules.contains(module)
                {
                    found.names.insert(name.clone(), module.clone());
                }
            }
        }
        found
    }

    /// The module that a path from the crate's root leads into.
    fn module(&self, path: &[String]) -> Option<&String> {
        let first = path.first()?;
        self.modules.get(first).or_else(|| self.names.get(first))
    }

    fn graph(&self) -> Graph {
        let mut graph = Graph::new();
        for module in &self.modules {
            let used = graph.entry(module.clone()).or_default();
            let top = root().join(self.folder).join(module);
            for (path, text) in files_of(&top) {
                // What `super` means there.
                let up = path.strip_prefix(&top).map_or(1, |rest| match rest.ends_with("mod.rs") {
                    true => rest.components().count(),
                    false => rest.components().count() + 1,
                });
                for start in ["crate::".to_owned(), "super::".repeat(up)] {
                    let uses = text.split(start.as_str()).skip(1);
                    let paths = uses.flat_map(|rest| paths(first_tree(rest)));
                    used.extend(paths.filter_map(|path| self.module(&path).cloned()));
                }
            }
            used.remove(module);
        }
        graph
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A module's sources without tests: `top.rs`, and what is in the folder `top`.
fn files_of(top: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut left = vec![top.with_extension("rs"), top.to_path_buf()];
    while let Some(path) = left.pop() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            left.extend(
                fs::read_dir(&path).expect("a folder").map(|it| it.expect("an entry").path()),
            );
        } else if path.is_file() && name.ends_with(".rs") && !is_for_tests(&path) {
            let text = production(&fs::read_to_string(&path).expect("a source"));
            found.push((path, text));
        }
    }
    found
}

/// Whether a file is a module for tests, or of one: where it is declared, there is `cfg(test)`
/// before it.
fn is_for_tests(path: &Path) -> bool {
    path.ancestors().take_while(|path| *path != root()).any(|path| {
        let Some(name) = path.file_stem().map(|stem| stem.to_string_lossy()) else { return false };
        let Some(folder) = path.parent() else { return false };
        let parents = [folder.join("mod.rs"), folder.join("lib.rs"), folder.with_extension("rs")];
        parents.iter().filter_map(|parent| fs::read_to_string(parent).ok()).any(|text| {
            text.split("#[cfg(test)]\n").skip(1).any(|rest| {
                let line = rest.lines().find(|line| !line.starts_with("#[")).unwrap_or_default();
                line.ends_with(&format!("mod {name};"))
            })
        })
    })
}

/// Code without comments, and without the tests at the file's end.
fn production(text: &str) -> String {
    let is_tests = |at: &usize| {
        let declared = text[*at..].lines().nth(2).unwrap_or_default();
        declared.ends_with("mod tests {")
    };
    let marks = text.match_indices("\n#[cfg(test)]\n").map(|(at, _)| at);
    let end = marks.into_iter().find(is_tests).unwrap_or(text.len());
    let code = text[..end].lines().map(|line| line.split("//").next().unwrap_or_default());
    code.collect::<Vec<_>>().join("\n")
}

/// The first path in `text`, or the first group of paths in braces.
fn first_tree(text: &str) -> &str {
    let mut depth = 0;
    let end = text.find(|c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        let is_path = c.is_alphanumeric() || "_:{}".contains(c);
        depth < 0 || depth == 0 && !is_path
    });
    &text[..end.unwrap_or(text.len())]
}

/// The paths of `a::{b, c::{d, e}}`, by their parts.
fn paths(tree: &str) -> Vec<Vec<String>> {
    let Some((before, group)) = tree.split_once('{') else {
        let parts = tree.split(" as ").next().unwrap_or_default().split("::");
        return vec![parts.map(|part| part.trim().to_owned()).collect()];
    };
    let parts = before.split("::").map(str::trim).filter(|part| !part.is_empty());
    let prefix: Vec<_> = parts.map(str::to_owned).collect();
    let (mut depth, mut starts) = (0, 0);
    let mut found = Vec::new();
    for (at, c) in group.char_indices() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if depth < 0 || depth == 0 && c == ',' {
            let inner = paths(group[starts..at].trim());
            found.extend(inner.into_iter().map(|rest| [prefix.clone(), rest].concat()));
            starts = at + 1;
        }
        if depth < 0 {
            break;
        }
    }
    found
}

/// The cycles of the crate in `folder` but for `allowed`, and what uses them.
fn cycles_of(folder: &'static str, allowed: &[Exception]) -> Graph {
    let mut graph = Crate::read(folder).graph();
    for (_, from, to) in allowed.iter().filter(|(of, ..)| *of == folder) {
        let used = graph.get_mut(*from).expect("a module");
        used.retain(|name| *to != "*" && name != to);
    }
    cycles(graph)
}

/// What is left of `graph` once modules that use no other one are taken out, again and again: the
/// cycles, and what uses them.
fn cycles(mut graph: Graph) -> Graph {
    loop {
        let leaves: BTreeSet<_> = graph
            .iter()
            .filter(|(_, used)| used.is_empty())
            .map(|(name, _)| name.clone())
            .collect();
        if leaves.is_empty() {
            return graph;
        }
        graph.retain(|name, _| !leaves.contains(name));
        graph.values_mut().for_each(|used| used.retain(|name| !leaves.contains(name)));
    }
}

#[test]
fn modules_know_each_other_in_one_direction() {
    let found: Vec<_> = CRATES
        .into_iter()
        .flat_map(|folder| {
            let left = cycles_of(folder, &ALLOWED);
            left.into_iter().map(move |(name, used)| format!("{folder}: {name} uses {used:?}"))
        })
        .collect();
    assert!(found.is_empty(), "among these are cycles:\n{}", found.join("\n"));
}

#[test]
fn each_exception_is_needed() {
    for exception in ALLOWED {
        let others: Vec<_> = ALLOWED.into_iter().filter(|other| *other != exception).collect();
        assert!(!cycles_of(exception.0, &others).is_empty(), "{exception:?}");
    }
}

#[test]
fn cycles_are_found() {
    let graph = |edges: &[(&str, &[&str])]| -> Graph {
        let used = |used: &[&str]| used.iter().map(|&name| name.to_owned()).collect();
        edges.iter().map(|(name, names)| ((*name).to_owned(), used(names))).collect()
    };
    assert!(cycles(graph(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &[])])).is_empty());
    let left = cycles(graph(&[("a", &["b"]), ("b", &["c"]), ("c", &["b", "d"]), ("d", &[])]));
    assert_eq!(left.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(
        paths("{boot::{self, Origin as Start}, Vm}"),
        [vec!["boot", "self"], vec!["boot", "Origin"], vec!["Vm"]]
    );
    assert_eq!(first_tree("boot::load(ram)"), "boot::load");
    assert_eq!(first_tree("{a, b::{c}};\nuse"), "{a, b::{c}}");
}
