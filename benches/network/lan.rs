//! A bridge in a network namespace, with a tap device for each guest and the client's address;
//! deleted when dropped.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Address of the client (TEST-NET-2, RFC 5737).
const CLIENT: &str = "198.51.100.1/24";

/// The network namespace with the bridge.
pub(crate) struct Lan {
    name: String,
}

impl Lan {
    /// Creates the namespace and the bridge.
    ///
    /// # Errors
    /// If ip(8) is missing, or this process is not root.
    pub(crate) fn lay() -> Result<Self> {
        let lan = Self { name: format!("lighter-bench-{}", std::process::id()) };
        ip(&["netns", "add", &lan.name])?;
        lan.ip(&["link", "add", "br0", "type", "bridge"])?;
        lan.ip(&["address", "add", CLIENT, "dev", "br0"])?;
        lan.ip(&["link", "set", "br0", "up"])?;
        Ok(lan)
    }

    /// Creates a tap device on the bridge, for a process to open by name.
    ///
    /// # Errors
    /// If the tap device cannot be created.
    pub(crate) fn add_tap(&self, name: &str) -> Result<()> {
        self.ip(&["tuntap", "add", name, "mode", "tap"])?;
        self.ip(&["link", "set", name, "master", "br0", "up"])
    }

    /// Returns a command that runs `program` in the namespace.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        ip(&[&["-n", self.name.as_str()], arguments].concat())
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "del", &self.name]) {
            eprintln!("the namespace is left: {error:#}");
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("ip(8) is needed")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {arguments:?}: {complaint}");
    Ok(())
}
