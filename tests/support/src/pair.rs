//! Two hosts that trust each other, each a state folder with certificates and a node. The end of
//! the test removes them and ends all their processes.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use super::node::Node;
use super::process::processes_of;
use super::program::{Done, lighter, read, run};
use super::{Guest, NodePlan, wait};

/// A host: a state folder, and its node while one runs.
#[derive(Debug)]
pub struct Host {
    state_dir: PathBuf,
    log: PathBuf,
    node: Option<Node>,
    last_address: String,
}

impl Host {
    /// Runs a command on this host to its end.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Done {
        run(lighter(&self.state_dir, arguments))
    }

    /// The host's state folder.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The folder of the host's certificates.
    pub fn certs(&self) -> PathBuf {
        self.state_dir.join("certs")
    }

    /// Starts the host's node.
    pub fn start_node(&mut self, plan: &NodePlan) {
        assert!(self.node.is_none(), "one node for each host");
        let node = Node::start(&self.state_dir, &self.log, plan);
        node.address().clone_into(&mut self.last_address);
        self.node = Some(node);
    }

    /// The host's running node.
    pub fn node(&self) -> &Node {
        self.node.as_ref().expect("this host's node was started")
    }

    /// The address of the host's node, or of its last one.
    pub fn last_address(&self) -> &str {
        &self.last_address
    }

    /// The process of the host's node, if one runs.
    pub fn node_pid(&self) -> Option<super::Pid> {
        self.node.as_ref().map(Node::pid)
    }

    /// The newest version of each migration record on this host.
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

    /// Kills the host's node with SIGKILL.
    pub fn kill_node(&mut self) {
        drop(self.node.take());
    }

    /// The logs of the host's nodes and live guests.
    pub fn logs(&self) -> String {
        let guests =
            std::fs::read_dir(self.state_dir.join("guests")).into_iter().flatten().flatten();
        guests.fold(read(&self.log), |logs, guest| logs + &read(&guest.path().join("lighter.log")))
    }

    /// Waits until the logs of the host's nodes and live guests contain `words`.
    #[track_caller]
    pub fn await_log(&self, words: &[&str]) {
        wait::until(&format!("{words:?} in a log"), || {
            let logs = self.logs();
            let all_there = words.iter().all(|word| logs.contains(word));
            wait::holds(all_there, logs)
        });
    }

    /// Makes the host look rebooted since its last node started: the next node autostarts its
    /// guests.
    pub fn boots_again(&self) {
        let file = self.state_dir.join("autostarted.json");
        std::fs::write(file, "{\"boot_id\": \"of the life before\"}").expect("a file");
    }

    /// The guests on this host, as `lighter ls --json` lists them.
    pub fn list(&self) -> Vec<Value> {
        let listed = self.run(&["ls", "--json"]).ok().json();
        listed.as_array().expect("a list").clone()
    }

    /// The guest `name` on this host, whether or not it exists there yet.
    pub fn guest(&self, name: &str) -> Guest {
        Guest::at(&self.state_dir, name)
    }

    /// The logs and state of the host's processes, for the report of a failed test.
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

/// The newest version in a record's file. Each line is a checksum followed by a record.
fn newest(text: &str) -> Value {
    let line = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    let record = line.split_once(' ').map(|(_, record)| serde_json::from_str(record.trim()));
    record.and_then(Result::ok).unwrap_or_else(|| Value::String(format!("no record: {text}")))
}

/// Two hosts that trust the same certificate authority.
#[derive(Debug)]
pub struct Pair {
    /// The first host, which holds the authority.
    pub a: Host,
    /// The second host.
    pub b: Host,
    folder: TempDir,
}

impl Pair {
    /// Two hosts with default nodes.
    #[expect(clippy::new_without_default, reason = "it starts processes")]
    pub fn new() -> Self {
        Self::with_nodes(&NodePlan::default(), &NodePlan::default())
    }

    /// Two hosts whose nodes are started as `a` and `b` say.
    pub fn with_nodes(a: &NodePlan, b: &NodePlan) -> Self {
        let mut pair = Self::without_nodes();
        pair.a.start_node(a);
        pair.b.start_node(b);
        pair
    }

    /// Two hosts whose nodes accept disks in `folder`.
    pub fn taking_disks_in(folder: &Path) -> Self {
        let arguments = vec!["--disk-dir".to_owned(), folder.display().to_string()];
        let plan = NodePlan { arguments, ..NodePlan::default() };
        Self::with_nodes(&plan, &plan)
    }

    /// Two hosts with certificates, without nodes.
    pub fn without_nodes() -> Self {
        Self::with_names(["host-a", "127.0.0.1"], ["host-b", "127.0.0.1"])
    }

    /// Two hosts without nodes, with certificates for these names and addresses.
    pub fn with_names(names_a: [&str; 2], names_b: [&str; 2]) -> Self {
        // Short: the path of a Unix socket has at most 107 bytes.
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

    /// Gives host b a certificate for `names`, issued by host a's authority.
    pub fn issue_certificate(&self, names: &[&str]) {
        let out = self.b.certs().display().to_string();
        self.a.run(&[&["certs", "host"], names, &["--out", &out]].concat()).ok();
    }

    /// A folder for the test's own files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Both hosts, a first.
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
        // Guests outlive nodes and commands: kill those that were given this pair's folder, by
        // their ids.
        for pid in processes_of(self.folder.path()) {
            pid.kill();
        }
    }
}
