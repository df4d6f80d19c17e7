//! Hosts, guests and migrations as a user has them, for the tests: real processes of the built
//! program, real KVM, real QUIC on loopback, each pair of hosts in a temporary folder of its own.
//!
//! Start at [`Pair`] (two hosts that trust each other), then [`Guest`] and [`Migration`]. What must
//! hold after a failure is in [`checks`]. Nothing here sleeps to synchronise: [`wait`] asks for a
//! condition until it holds or a deadline passes.

mod api;
pub(crate) mod checks;
mod guest;
pub(crate) mod kernel;
pub(crate) mod ksm;
mod ksm_turn;
mod migration;
mod node;
mod pair;
mod pool;
mod process;
mod program;
mod state_folder;
pub(crate) mod wait;

pub(crate) use api::ask;
pub(crate) use guest::{Guest, GuestPlan};
pub(crate) use migration::{CRAWL, HELD, Migration, Outcome};
use node::Node;
pub(crate) use node::NodePlan;
pub(crate) use pair::{Host, Pair};
pub(crate) use pool::Pool;
pub(crate) use process::Pid;
pub(crate) use program::{Done, Exit, Running, as_stranger, in_namespace, lighter, run};
