//! What only whole hosts with a real KVM can show: stock guests, power cuts, cables, unlike
//! processors, systemd.
//!
//! The hosts are those of `scripts/lab`, Debian machines under emulation. They are started for the
//! first test and serve all tests of this process, one after the other; [`fixtures`] gives each
//! test hosts as after installation. `scripts/check` runs the short ones, `scripts/check --full`
//! all of them; each can be run alone by its name:
//!
//! ```text
//! cargo test --workspace --features failpoints --test lab -- --exact stock::two_vcpus_move_twice
//! ```

#[cfg(feature = "failpoints")]
mod outages;

mod disks;
mod ending;
mod fixtures;
mod nested;
mod processors;
mod service;
mod stock;
