//! QUIC between hosts: who may talk to whom, and a transport tuned for moving memory.
//!
//! Both ends of every connection prove themselves with a certificate of the same authority over TLS
//! 1.3 ([`Tls`], made by [`Authority`]); nothing turns that off. [`endpoint`] binds sockets with
//! the settings of [`transport`], and [`LinkError`] says in words what a failed connection failed
//! on. Nothing here knows of guests or pages; start with [`Tls`] and [`endpoint::connect`].

mod authority;
mod certificate;
mod chain;
mod congestion;
pub mod endpoint;
mod error;
mod files;
mod identity;
mod issued;
mod lists;
#[cfg(test)]
pub(crate) mod pair;
pub(crate) mod peers;
pub(crate) mod places;
mod revocation;
pub(crate) mod silence;
mod tls;
pub mod transport;
mod vouch;

pub use authority::Authority;
pub use certificate::{HostCertificate, TlsError, calendar_time};
pub use error::LinkError;
pub use files::CertError;
pub use identity::Identity;
pub use issued::Issued;
pub use lists::ListError;
pub use revocation::{Revocation, RevokeError};
pub use tls::{ALPN, Tls, web_server};
