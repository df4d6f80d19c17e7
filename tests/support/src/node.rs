//! A host's node: a real `lighter node` on loopback ports that the kernel chooses.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Child;

use serde_json::Value;

use super::process::Pid;
use super::program::{in_namespace, lighter, read};
use super::wait;

/// How to start a node.
#[derive(Debug, Clone, Default)]
pub struct NodePlan {
    /// More arguments of `lighter node`.
    pub arguments: Vec<String>,
    /// Environment variables of the node, which the processes that it starts inherit.
    pub environment: Vec<(String, String)>,
    /// Network namespace of the node; `None` for that of the test.
    pub namespace: Option<String>,
    /// QUIC address to listen on; `None` for any port on loopback.
    pub listen: Option<String>,
}

/// A running node; killed when dropped. Guests continue without it.
#[derive(Debug)]
pub struct Node {
    child: Child,
    address: String,
}

impl Node {
    /// Starts a node on the host at `state_dir` and waits until it listens; appends its log to
    /// `log`.
    pub fn start(state_dir: &Path, log: &Path, plan: &NodePlan) -> Self {
        let listen = plan.listen.clone().unwrap_or_else(|| "127.0.0.1:0".to_owned());
        let mut arguments = vec!["node", "--listen", &listen, "--metrics", "127.0.0.1:0"];
        // Many tests run at once, and foreign guests are for one node per host only.
        for [option, value] in [["--ports", "0"], ["--foreign-guests", "off"]] {
            if !plan.arguments.iter().any(|argument| argument == option) {
                arguments.extend([option, value]);
            }
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

    /// The node's HOST:PORT, for `lighter migrate`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The node's process.
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

/// The address in `node.json`, if process `pid` wrote that file.
fn announced(file: &PathBuf, pid: u32) -> Option<String> {
    let said: Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    (said.get("pid")?.as_u64()? == u64::from(pid)).then_some(())?;
    Some(said.get("listen")?.as_str()?.to_owned())
}
