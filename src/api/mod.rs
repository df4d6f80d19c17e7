//! The HTTP/JSON interface of guest processes, on Unix sockets.
//!
//! [`types`] has the types of requests and responses; those about one subject are in [`migration`],
//! [`memory`], [`survey`] (of a guest's pages), [`saving`], [`devices`] and [`events`]. [`route`]
//! describes the routes to clients (OpenAPI), [`server`] serves a socket, [`client`] sends requests
//! to one, [`descriptor`] passes open files, and [`error`] has refusals for both sides. The
//! handlers are in `guest::api` and `node::api`. Start at [`types`].

pub(crate) mod client;
pub(crate) mod descriptor;
pub(crate) mod devices;
pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod memory;
pub(crate) mod migration;
pub(crate) mod route;
pub(crate) mod saving;
pub(crate) mod server;
pub(crate) mod survey;
pub(crate) mod types;

pub(crate) use client::{ApiClient, AskError};
pub(crate) use error::{ApiError, Reason};
