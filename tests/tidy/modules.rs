//! Modules depend on each other in one direction: the use graph of a crate's modules has no cycles,
//! except for those below. Otherwise, to understand one module, a reader has to read all. The same
//! holds for the modules of some folders inside a crate.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{Source, sources};

/// The source folders of the crates, and folders inside them whose modules are checked as well.
const FOLDERS: [&str; 6] =
    ["vmm-core/src", "migrate/src", "memopt/src", "memopt/src/service", "metrics/src", "src"];

/// Uses that may close a cycle, each with its reason.
const ALLOWED: [Exception; 2] = [
    // A crate's error type names the errors of its modules, and the modules return it.
    ("vmm-core/src", "error", "*"),
    // Booting sets up a virtual machine, and a virtual machine boots again when it resets itself.
    ("vmm-core/src", "boot", "vm"),
];

/// The source folder of a crate, a module, and a module that it uses; `*` stands for any.
type Exception = (&'static str, &'static str, &'static str);

/// The modules of a crate, each with those that it uses.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// The modules of one folder and their sources.
struct Folder {
    /// The sources without tests, each with the path of its module.
    sources: Vec<(PathBuf, String)>,
    modules: BTreeSet<String>,
    /// Names that the folder's root imports from a module.
    names: BTreeMap<String, String>,
    /// How a path from the crate's root to a module begins.
    start: String,
}

impl Folder {
    fn read(folder: &'static str) -> Self {
        let sources: Vec<_> = sources().into_iter().map(|it| (place(&it), it.text)).collect();
        let for_tests: Vec<_> = sources
            .iter()
            .flat_map(|(place, text)| modules_for_tests(text).map(|name| place.join(name)))
            .collect();
        let is_production = |place: &Path| !for_tests.iter().any(|tests| place.starts_with(tests));
        let sources: Vec<_> = sources
            .into_iter()
            .filter(|(place, _)| place.starts_with(folder) && is_production(place))
            .map(|(place, text)| (within(&place, folder), production(&text)))
            .collect();
        let modules: BTreeSet<_> = sources.iter().filter_map(|(place, _)| first(place)).collect();
        let mut names = BTreeMap::new();
        for (_, text) in sources.iter().filter(|(place, _)| first(place).is_none()) {
            for tree in text.split("use ").skip(1).filter_map(|rest| rest.split(';').next()) {
                for path in paths(tree.trim()) {
                    if let [module, .., name] = &path[..]
                        && modules.contains(module)
                    {
                        names.insert(name.clone(), module.clone());
                    }
                }
            }
        }
        let inside = folder.split_once("src/").map(|(_, inside)| inside.replace('/', "::") + "::");
        let start = format!("crate::{}", inside.unwrap_or_default());
        Self { sources, modules, names, start }
    }

    /// The module to which a path from the folder's root leads.
    fn module(&self, path: &[String]) -> Option<&String> {
        let first = path.first()?;
        self.modules.get(first).or_else(|| self.names.get(first))
    }

    fn graph(&self) -> Graph {
        let mut graph = Graph::new();
        for (place, text) in &self.sources {
            let Some(module) = first(place) else { continue };
            let used = graph.entry(module.clone()).or_default();
            // As many `super` as lead to the root.
            let supers = "super::".repeat(place.components().count());
            for start in [&self.start, &supers] {
                let uses = text.split(start).skip(1);
                let paths = uses.flat_map(|rest| paths(first_tree(rest)));
                used.extend(paths.filter_map(|path| self.module(&path).cloned()));
            }
            used.remove(&module);
        }
        graph
    }
}

/// The path of the module of `source`: `src/boot` for both `src/boot.rs` and `src/boot/mod.rs`.
fn place(source: &Source) -> PathBuf {
    let path = PathBuf::from(source.name()).with_extension("");
    let is_root = ["mod", "lib", "main"].iter().any(|name| path.ends_with(name));
    if is_root { path.parent().unwrap_or(&path).to_path_buf() } else { path }
}

fn within(place: &Path, folder: &str) -> PathBuf {
    place.strip_prefix(folder).unwrap_or(place).to_path_buf()
}

/// The outermost module that contains `place`; `None` for the crate's root.
fn first(place: &Path) -> Option<String> {
    place.iter().next().map(|name| name.to_string_lossy().into_owned())
}

/// Modules in files of their own that `text` declares only for tests.
fn modules_for_tests(text: &str) -> impl Iterator<Item = &str> {
    text.split("#[cfg(test)]\n").skip(1).filter_map(|rest| {
        let line = rest.lines().find(|line| !line.trim_start().starts_with("#["))?;
        line.strip_suffix(';')?.rsplit_once("mod ").map(|(_, name)| name)
    })
}

/// The code without comments and without the tests at the end of the file.
fn production(text: &str) -> String {
    let is_tests = |at: &usize| {
        let declared = text[*at..].lines().nth(2).unwrap_or_default();
        declared.ends_with("mod tests {")
    };
    let mut marks = text.match_indices("\n#[cfg(test)]\n").map(|(at, _)| at);
    let end = marks.find(is_tests).unwrap_or(text.len());
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

/// The paths of `a::{b, c::{d, e}}`, each split into its parts.
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

/// The cycles in `folder`, except for `allowed`, and the modules that use them.
fn cycles_of(folder: &'static str, allowed: &[Exception]) -> Graph {
    let mut graph = Folder::read(folder).graph();
    for (_, from, to) in allowed.iter().filter(|(of, ..)| *of == folder) {
        let used = graph.get_mut(*from).expect("a module");
        used.retain(|name| *to != "*" && name != to);
    }
    cycles(graph)
}

/// Removes modules that use no other one until none is left. The rest of `graph` are the cycles and
/// the modules that use them.
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
    let found: Vec<_> = FOLDERS
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
