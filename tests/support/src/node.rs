//! A host's node: a real `lighter node` on loopback ports of the kernel's choice.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Child;

use serde_json::Value;

use super::process::Pid;
use super::program::{in_namespace, lighter, read};
use super::wait;

/// How a node is started.
#[derive(Debug, Clone, Default)]
pub struct NodePlan {
    /// More arguments.
    pub arguments: Vec<String>,
    /// Environment, inherited by the processes that it starts.
    pub environment: Vec<(String, String)>,
    /// Network namespace to run in; absent: this one.
    pub namespace: Option<String>,
    /// QUIC address to listen on; absent: loopback, any port.
    pub listen: Option<String>,
}

/// A live node; killed when dropped. Guests do not depend on it.
#[derive(Debug)]
pub struct Node {
    child: Child,
    address: String,
}

impl Node {
    /// Starts a node on the host at `state_dir` and waits until it listens; its log is added to
    /// `log`.
    pub fn start(state_dir: &Path, log: &Path, plan: &NodePlan) -> Self {
        let listen = plan.listen.clone().unwrap_or_else(|| "127.0.0.1:0".to_owned());
        let mut arguments = vec!["node", "--listen", &listen, "--metrics", "127.0.0.1:0"];
        // One node of a host looks after them, and many tests run at once.
        if !plan.arguments.iter().any(|argument| argument == "--foreign-guests") {
            arguments.extend(["--foreign-guests", "off"]);
        }
        arguments.extend(plan.arguments.iter().map(String::as_str));
        let mut command = in_namespace(lighter(state_dir, &arguments), plan.namespace.as_deref());
        command.envs(plan.environment.iter().cloned());
        command.env("RUST_LOG", "info,lighter=debug,migrate=debug");
        let log_file = File::options().create(true).append(true).open(log).expect("a log file");
        command.stdout(log_file.try_clone().expect("a descriptor")).stderr(log_file);
        let mut child = command.spawn().expect("a node");
        let file = state_dir.join("node.json");
        let address = wait::until("the node listens", || {
            if let Some(status) = child.try_wait().expect("a child") {
                panic!("the node ended ({status}): {}", read(log));
            }
            announced(&file, child.id()).ok_or_else(|| read(&file))
        });
        Self { child, address }
    }

    /// HOST:PORT for `lighter migrate`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid(self.child.id())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The address in `node.json`, once this process wrote it.
fn announced(file: &PathBuf, pid: u32) -> Option<String> {
    let said: Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    (said.get("pid")?.as_u64()? == u64::from(pid)).then_some(())?;
    Some(said.get("listen")?.as_str()?.to_owned())
}
