//! What only whole hosts with a real KVM can show: stock guests, power cuts, unplugged cables,
//! different processors, systemd.
//!
//! The hosts are those of `scripts/lab`, Debian machines under emulation. The first test starts
//! them, and all tests of this process use them, one after the other; [`fixtures`] resets the hosts
//! to their state after installation for each test. `scripts/check` runs the short tests,
//! `scripts/check --full` all of them; each can be run alone by its name:
//!
//! ```text
//! cargo test --workspace --features failpoints --test lab -- --exact stock::two_vcpus_move_twice
//! ```

#[cfg(feature = "failpoints")]
mod outages;
#[cfg(feature = "failpoints")]
mod postcopy;

mod cache;
mod cloud;
mod converging;
mod disks;
mod ending;
mod failover;
mod firmware;
mod fixtures;
mod hot_plug;
mod nested;
mod nfs;
mod package;
mod processors;
mod qcow2;
mod read_only;
mod seed;
mod service;
mod stock;
mod vfio;
mod vhost;
