//! Two hosts that trust each other, each a state folder with certificates and a node; removed, with
//! all their processes, at the end of a test.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use super::node::Node;
use super::process::processes_of;
use super::program::{Done, lighter, read, run};
use super::{Guest, NodePlan, wait};

/// A host: a state folder, and its node while there is one.
#[derive(Debug)]
pub struct Host {
    state_dir: PathBuf,
    log: PathBuf,
    node: Option<Node>,
    last_address: String,
}

impl Host {
    /// Runs a verb on this host to its end.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Done {
        run(lighter(&self.state_dir, arguments))
    }

    /// Its state folder.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The folder in which it knows its certificates.
    pub fn certs(&self) -> PathBuf {
        self.state_dir.join("certs")
    }

    /// Starts its node.
    pub fn start_node(&mut self, plan: &NodePlan) {
        assert!(self.node.is_none(), "one node for each host");
        let node = Node::start(&self.state_dir, &self.log, plan);
        node.address().clone_into(&mut self.last_address);
        self.node = Some(node);
    }

    /// Its live node.
    pub fn node(&self) -> &Node {
        self.node.as_ref().expect("this host's node was started")
    }

    /// The address of its node, or of the one that it had last.
    pub fn last_address(&self) -> &str {
        &self.last_address
    }

    /// Its node's process, while there is one.
    pub fn node_pid(&self) -> Option<super::Pid> {
        self.node.as_ref().map(Node::pid)
    }

    /// The records of its migrations, each as it was written last.
    pub fn records(&self) -> Vec<Value> {
        self.record_files().iter().map(|path| newest(&read(path))).collect()
    }

    fn record_files(&self) -> Vec<PathBuf> {
        let inside = |folder: PathBuf| {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries.map(|entry| entry.path())
        };
        inside(self.state_dir.join("migrations/guests")).flat_map(inside).flat_map(inside).collect()
    }

    /// SIGKILL for its node.
    pub fn kill_node(&mut self) {
        drop(self.node.take());
    }

    /// What its nodes and its live guests have logged.
    pub fn logs(&self) -> String {
        let guests =
            std::fs::read_dir(self.state_dir.join("guests")).into_iter().flatten().flatten();
        guests.fold(read(&self.log), |logs, guest| logs + &read(&guest.path().join("lighter.log")))
    }

    /// Waits until its nodes and live guests have logged `words`.
    #[track_caller]
    pub fn await_log(&self, words: &[&str]) {
        wait::until(&format!("{words:?} in a log"), || {
            let logs = self.logs();
            let all_there = words.iter().all(|word| logs.contains(word));
            wait::holds(all_there, logs)
        });
    }

    /// As if the host had booted since its last node: the next one starts its guests again.
    pub fn boots_again(&self) {
        let file = self.state_dir.join("autostarted.json");
        std::fs::write(file, "{\"boot_id\": \"of the life before\"}").expect("a file");
    }

    /// The guests on this host, as `lighter ls --json` lists them.
    pub fn list(&self) -> Vec<Value> {
        let listed = self.run(&["ls", "--json"]).ok().json();
        listed.as_array().expect("a list").clone()
    }

    /// A guest that is (to be) on this host, by name.
    pub fn guest(&self, name: &str) -> Guest {
        Guest::at(&self.state_dir, name)
    }

    /// All that its processes left to read, for the report of a test that failed.
    fn testimony(&self) -> String {
        let mut text = format!("--- node of {}\n{}", self.state_dir.display(), read(&self.log));
        for guest in
            std::fs::read_dir(self.state_dir.join("guests")).into_iter().flatten().flatten()
        {
            for file in ["guest.json", "lighter.log"] {
                let path = guest.path().join(file);
                text += &format!("--- {}\n{}\n", path.display(), read(&path));
            }
        }
        for record in self.record_files() {
            text += &format!("--- {}\n{}\n", record.display(), read(&record));
        }
        text
    }
}

/// The newest version in a record's file: each is a line, a checksum and then the record.
fn newest(text: &str) -> Value {
    let line = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    let record = line.split_once(' ').map(|(_, record)| serde_json::from_str(record.trim()));
    record.and_then(Result::ok).unwrap_or_else(|| Value::String(format!("no record: {text}")))
}

/// Two hosts of one authority.
#[derive(Debug)]
pub struct Pair {
    /// The first, which holds the authority.
    pub a: Host,
    /// The second.
    pub b: Host,
    folder: TempDir,
}

impl Pair {
    /// Two hosts with ordinary nodes.
    #[expect(clippy::new_without_default, reason = "it starts processes")]
    pub fn new() -> Self {
        Self::with_nodes(&NodePlan::default(), &NodePlan::default())
    }

    /// Two hosts with these nodes.
    pub fn with_nodes(a: &NodePlan, b: &NodePlan) -> Self {
        let mut pair = Self::without_nodes();
        pair.a.start_node(a);
        pair.b.start_node(b);
        pair
    }

    /// Two hosts with nodes that take disks in `folder`.
    pub fn taking_disks_in(folder: &Path) -> Self {
        let arguments = vec!["--disk-dir".to_owned(), folder.display().to_string()];
        let plan = NodePlan { arguments, ..NodePlan::default() };
        Self::with_nodes(&plan, &plan)
    }

    /// Two hosts with certificates and no node yet.
    pub fn without_nodes() -> Self {
        Self::with_names(["host-a", "127.0.0.1"], ["host-b", "127.0.0.1"])
    }

    /// Two hosts without a node yet, with certificates for these names and addresses.
    pub fn with_names(names_a: [&str; 2], names_b: [&str; 2]) -> Self {
        // Short, for the 107 bytes of a Unix socket's path.
        let folder = TempDir::with_prefix("lighter-").expect("a temporary folder");
        let host = |name: &str| Host {
            state_dir: folder.path().join(name),
            log: folder.path().join(format!("node-{name}.log")),
            node: None,
            last_address: String::new(),
        };
        let pair = Self { a: host("a"), b: host("b"), folder };
        pair.a.run(&["certs", "init", names_a[0], names_a[1]]).ok();
        pair.issue_certificate(&names_b);
        pair
    }

    /// Gives host b a certificate for `names`, from host a's authority.
    pub fn issue_certificate(&self, names: &[&str]) {
        let out = self.b.certs().display().to_string();
        self.a.run(&[&["certs", "host"], names, &["--out", &out]].concat()).ok();
    }

    /// A folder for files of the test's own.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Both.
    pub fn hosts(&self) -> [&Host; 2] {
        [&self.a, &self.b]
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}{}", self.a.testimony(), self.b.testimony());
        }
        self.a.kill_node();
        self.b.kill_node();
        // Guests outlive nodes and verbs: end those that were given this pair's folder, by their
        // ids.
        for pid in processes_of(self.folder.path()) {
            pid.kill();
        }
    }
}
