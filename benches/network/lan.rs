//! A bridge in a network namespace, with a tap for each guest and the client's address; removed
//! when dropped.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The client's address (TEST-NET-2, RFC 5737).
const CLIENT: &str = "198.51.100.1/24";

/// The namespace.
pub(crate) struct Lan {
    name: String,
}

impl Lan {
    /// Makes namespace and bridge.
    ///
    /// # Errors
    /// There is no ip(8), or this is not root.
    pub(crate) fn lay() -> Result<Self> {
        let lan = Self { name: format!("lighter-bench-{}", std::process::id()) };
        ip(&["netns", "add", &lan.name])?;
        lan.ip(&["link", "add", "br0", "type", "bridge"])?;
        lan.ip(&["address", "add", CLIENT, "dev", "br0"])?;
        lan.ip(&["link", "set", "br0", "up"])?;
        Ok(lan)
    }

    /// Makes a tap on the bridge, for whoever opens it.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn add_tap(&self, name: &str) -> Result<()> {
        self.ip(&["tuntap", "add", name, "mode", "tap"])?;
        self.ip(&["link", "set", name, "master", "br0", "up"])
    }

    /// A command that runs in the namespace.
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
