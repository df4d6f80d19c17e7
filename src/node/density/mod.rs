//! Memory optimization of this host: looks at its guests, plans, acts, and verifies what came back.
//!
//! All decisions are made in `memopt`; here is what they need of the world. [`service`] holds it together, [`look`] makes the
//! situation, [`foreign`] finds guests that other programs run, [`strangers`] other processes that could be merged, [`survey`] has
//! guests' pages inspected, [`act`] does the steps, [`run`] is one run from its first plan to its end, [`watch`] begins those that
//! are due and gives guests in pain their memory back, [`records`] keeps the history, [`tally`] counts for Prometheus, [`settings`]
//! reads lighter.toml, [`api`] are the routes. The node may be killed at any time: what balloons hold is asked of the guests again,
//! ksmd's settings are put back by the next node, and the history says what was interrupted.

mod act;
mod api;
mod foreign;
mod look;
mod records;
mod run;
mod service;
mod settings;
mod strangers;
mod survey;
mod tally;
pub(crate) mod types;
mod watch;

#[cfg(test)]
pub(super) use api::PATHS;
pub(super) use api::{readonly_router, router};
pub(crate) use service::Density;
pub(crate) use settings::check_settings;
pub(super) use watch::start;
