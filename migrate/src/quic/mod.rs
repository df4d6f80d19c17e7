//! QUIC between hosts: authentication of peers, and a transport tuned for moving memory.
//!
//! Both ends of every connection authenticate over TLS 1.3 with a certificate of the same authority
//! ([`Tls`], made by [`Authority`]); this cannot be turned off. [`endpoint`] binds sockets with the
//! settings of [`transport`], and [`LinkError`] explains why a connection failed. Nothing here
//! depends on guests or pages; start with [`Tls`] and [`endpoint::connect`].

mod authority;
mod bundle;
mod certificate;
mod chain;
mod congestion;
pub mod endpoint;
mod error;
mod expiry;
mod files;
mod identity;
mod issued;
mod lists;
#[cfg(test)]
pub(crate) mod pair;
pub(crate) mod peers;
mod pending;
pub(crate) mod places;
mod request;
mod revocation;
pub(crate) mod silence;
mod tls;
pub mod transport;
mod vouch;

pub use authority::{Authority, check_names};
pub use bundle::{BUNDLE_BYTES_MAX, Bundle, BundleError, OtherAuthority};
pub use certificate::{HostCertificate, TlsError, calendar_time};
pub use chain::trusted_authorities;
pub(crate) use congestion::last_acknowledged;
pub use error::LinkError;
pub use expiry::{Expiry, Limit};
pub use files::CertError;
pub use identity::Identity;
pub use issued::Issued;
pub use lists::ListError;
pub use pending::PendingKey;
pub use request::{REQUEST_BYTES_MAX, Request, RequestError};
pub use revocation::{Revocation, RevokeError};
pub use tls::{ALPN, Tls, web_server};
