//! The node of a host: receives migrations, knows the guests that are here, serves their metrics,
//! and settles what dead processes left open.
//!
//! [`service`] is the node as a whole. A guest that wants to come goes through [`front`] (the
//! dialogue), [`admission`] and [`promises`] (may it?), [`launch`] (its process). [`inventory`]
//! finds guests, [`scrape`], [`exposition`] and [`access`] show them to Prometheus, [`outcomes`]
//! counts how migrations ended, [`past`] tells other hosts where a guest has gone, [`retention`]
//! and [`resolver`] look after their records, [`events`] tells what happens to guests, [`api`] is the
//! node's socket, [`certificates`] sees
//! when those change, [`autostart`] starts guests with the host. The node may be killed at any
//! time: what it holds is on disk or in guests' processes, and what it has promised is found there
//! again. Start at [`run()`].

mod access;
mod admission;
mod api;
mod autostart;
mod certificates;
mod events;
mod exposition;
mod front;
mod inventory;
mod launch;
pub(crate) mod liveness;
mod outcomes;
mod past;
mod promises;
mod quic;
mod resolver;
mod retention;
mod run;
mod scrape;
mod service;
mod types;

pub(crate) use launch::{IncomingGreeting, IncomingLine, LINGER};
pub(crate) use run::run;
pub(crate) use types::NodeFile;
