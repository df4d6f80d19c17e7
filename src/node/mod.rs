//! The node of a host: receives migrations, lists the guests on this host, serves their metrics,
//! and settles migrations that dead processes left open.
//!
//! [`service`] is the node as a whole. An arriving guest goes through [`front`] (requests of
//! sources), [`admission`] and [`promises`] (the decision), and [`launch`] (its process).
//! [`inventory`] finds guests; [`scrape`], [`exposition`] and [`access`] show them to Prometheus;
//! [`outcomes`] counts how migrations ended; [`past`] tells other hosts where a guest has gone,
//! [`disk_users`] which guests write a disk; [`retention`] and [`resolver`] maintain the records;
//! [`events`] reports guest events; [`api`] is the node's socket; [`config`] reads the node's file;
//! [`certificates`] reloads certificates, and [`renewal`] renews the host's own; [`autostart`]
//! starts guests when the host boots, [`restarts`] those that failed. The node may be killed at any
//! time: its state is on disk or in guests' processes, and the next node restores its promises from
//! there. Start at [`run()`].

mod access;
mod admission;
mod api;
mod autostart;
mod boot_files;
mod certificates;
mod config;
mod disk_users;
mod events;
mod exposition;
mod front;
mod given_devices;
mod inventory;
mod launch;
pub(crate) mod liveness;
mod outcomes;
mod past;
mod promises;
mod quic;
mod renewal;
mod resolver;
mod restarts;
mod retention;
mod run;
mod scrape;
mod service;
mod types;

pub(crate) use launch::{IncomingGreeting, IncomingLine, LINGER};
pub(crate) use run::run;
pub(crate) use types::NodeFile;
