//! The HTTP/JSON interface of guest processes, on Unix sockets.
//!
//! [`types`] is what travels, [`migration`] what does about moving a guest, [`memory`] and
//! [`survey`] what does about a guest's memory and looks at its pages, [`saving`] about its file,
//! [`events`] about what happens to it, [`route`] what strangers are told of routes, [`server`] how a socket is served, [`client`] how
//! one is asked, [`descriptor`] how a file goes along, [`error`] how a refusal looks on both sides.
//! The routes themselves are where they are answered: `guest::api` and `node::api`. Start at
//! [`types`].

pub(crate) mod client;
pub(crate) mod descriptor;
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
