//! Two network namespaces with cables between them (veth pairs), made with ip(8), which takes root.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A namespace; deleted when dropped, with the cables that end in it.
#[derive(Debug)]
pub struct Namespace(String);

impl Namespace {
    /// Creates a namespace.
    ///
    /// # Errors
    /// If ip(8) is missing, or this process is not root.
    pub fn create(name: String) -> Result<Self> {
        tool("ip", &["netns", "add", &name])?;
        Ok(Self(name))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// Two namespaces and what joins them; deleted when dropped.
#[derive(Debug)]
pub struct Namespaces([Namespace; 2]);

impl Namespaces {
    /// Creates two namespaces whose names begin with `prefix`.
    ///
    /// # Errors
    /// If ip(8) is missing, or this process is not root.
    pub fn create(prefix: &str) -> Result<Self> {
        let [a, b] = ["a", "b"].map(|end| Namespace::create(format!("{prefix}-{end}")));
        let namespaces = Self([a?, b?]);
        for name in namespaces.names() {
            tool("ip", &["-n", name, "link", "set", "lo", "up"])?;
        }
        Ok(namespaces)
    }

    /// Joins them by a veth pair, with the same name and one of these addresses at either end.
    ///
    /// # Errors
    /// If the interface exists.
    pub fn join(&self, interface: &str, addresses: [&str; 2]) -> Result<()> {
        let [a, b] = self.names();
        let add = ["link", "add", interface, "netns", a, "type", "veth"];
        let peer = ["peer", "name", interface, "netns", b];
        tool("ip", &[&add[..], &peer].concat())?;
        self.raise(interface, addresses)
    }

    /// Joins each to this process's namespace by a veth pair, with the same name and one of these
    /// addresses at the end in it, and one of the `outside` names at the other.
    ///
    /// # Errors
    /// If one of the interfaces exists.
    pub fn lead_out(
        &self,
        interface: &str,
        addresses: [&str; 2],
        outside: [&str; 2],
    ) -> Result<()> {
        for (name, outside) in self.names().into_iter().zip(outside) {
            let add = ["link", "add", interface, "netns", name, "type", "veth"];
            tool("ip", &[&add[..], &["peer", "name", outside]].concat())?;
            tool("ip", &["link", "set", outside, "addrgenmode", "none", "up"])?;
        }
        self.raise(interface, addresses)
    }

    /// Removes an interface of either namespace, with what it is joined to.
    ///
    /// # Errors
    /// If ip(8) cannot be run.
    pub fn cut(&self, interface: &str) -> Result<()> {
        for name in self.names() {
            // The other end of a cable has gone with the first.
            Command::new("ip").args(["-n", name, "link", "del", interface]).output()?;
        }
        Ok(())
    }

    /// Gives the interface of each its address, and turns it on.
    fn raise(&self, interface: &str, addresses: [&str; 2]) -> Result<()> {
        for (name, address) in self.names().into_iter().zip(addresses) {
            let address = format!("{address}/24");
            tool("ip", &["-n", name, "address", "add", &address, "dev", interface])?;
            tool("ip", &["-n", name, "link", "set", interface, "up"])?;
        }
        Ok(())
    }

    /// Their names.
    pub fn names(&self) -> [&str; 2] {
        let [a, b] = &self.0;
        [a.name(), b.name()]
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
