//! Two network namespaces with cables between them (veth pairs), made with ip(8), which takes root.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Two namespaces and what joins them; deleted when dropped.
#[derive(Debug)]
pub struct Namespaces([String; 2]);

impl Namespaces {
    /// Creates two namespaces whose names begin with `prefix`.
    ///
    /// # Errors
    /// If ip(8) is missing, or this process is not root.
    pub fn create(prefix: &str) -> Result<Self> {
        let namespaces = Self(["a", "b"].map(|end| format!("{prefix}-{end}")));
        for namespace in &namespaces.0 {
            tool("ip", &["netns", "add", namespace])?;
        }
        for namespace in &namespaces.0 {
            tool("ip", &["-n", namespace, "link", "set", "lo", "up"])?;
        }
        Ok(namespaces)
    }

    /// Joins them by a veth pair, with the same name and one of these addresses at either end.
    ///
    /// # Errors
    /// If the interface exists.
    pub fn join(&self, interface: &str, addresses: [&str; 2]) -> Result<()> {
        let [a, b] = &self.0;
        let add = ["link", "add", interface, "netns", a, "type", "veth"];
        let peer = ["peer", "name", interface, "netns", b];
        tool("ip", &[&add[..], &peer].concat())?;
        for (namespace, address) in self.0.iter().zip(addresses) {
            let address = format!("{address}/24");
            tool("ip", &["-n", namespace, "address", "add", &address, "dev", interface])?;
            tool("ip", &["-n", namespace, "link", "set", interface, "up"])?;
        }
        Ok(())
    }

    /// Their names.
    pub fn names(&self) -> &[String; 2] {
        &self.0
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for namespace in &self.0 {
            // Deleting the first may already delete the cables; the rest goes with the second.
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

/// Runs a tool of iproute2, and returns what it prints.
///
/// # Errors
/// If it is not installed, or fails.
pub fn tool(name: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(name).args(arguments).output();
    let output = output.with_context(|| format!("{name}(8) of iproute2 is needed"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} {}: {complaint}", arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
