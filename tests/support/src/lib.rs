//! Hosts, guests and migrations as a user has them, for tests and benches: real processes of the
//! built program, real KVM, real QUIC on loopback. Each pair of hosts has its own temporary folder.
//!
//! Start at [`Pair`] (two hosts that trust each other), then [`Guest`] and [`Migration`]. What must
//! hold after a failure is in [`checks`]. Nothing here sleeps to synchronise: [`wait`] checks a
//! condition until it holds or a deadline passes. What only benches share is in [`mod@bench`].

pub mod bench;
pub mod cable;
pub mod checks;
pub mod kernel;
pub mod ksm;
pub mod ksm_turn;
pub mod linux;
pub mod state_folder;
pub mod wait;

mod api;
mod guest;
mod migration;
mod node;
mod pair;
mod paths;
mod pool;
mod process;
mod program;

pub use api::ask;
pub use guest::{Guest, GuestPlan};
pub use migration::{CRAWL, HELD, Migration, Outcome};
pub use node::NodePlan;
pub use pair::{Host, Pair};
pub use paths::{built_program, repository, scratch_folder};
pub use pool::Pool;
pub use process::Pid;
pub use program::{
    Done, Exit, Running, WITHOUT_EARLY_COMMIT, as_stranger, in_namespace, in_terminal, lighter, run,
};
