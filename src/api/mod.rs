//! The HTTP/JSON interface of guest processes, on Unix sockets.
//!
//! [`types`] is what travels, [`migration`] what does about moving a guest, [`memory`] and
//! [`survey`] what does about a guest's memory and looks at its pages, [`saving`] about its file,
//! [`guest`] the routes of a guest process, [`route`] what strangers are told of routes, [`server`]
//! how a socket is served, [`client`] how one is asked, [`descriptor`] how a file goes along,
//! [`error`] how a refusal looks on both sides. Nothing here knows how a guest does what it is
//! asked: [`guest::GuestControl`] does. Start at [`guest`].

pub(crate) mod client;
mod descriptor;
pub(crate) mod error;
pub(crate) mod guest;
pub(crate) mod memory;
pub(crate) mod migration;
pub(crate) mod route;
pub(crate) mod saving;
pub(crate) mod server;
pub(crate) mod survey;
pub(crate) mod types;

pub(crate) use client::{ApiClient, AskError};
pub(crate) use error::{ApiError, Reason};
