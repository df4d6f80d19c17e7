//! Errors of connections, in words that an operator can act on.

use std::io;
use std::net::SocketAddr;

use quinn::{ConnectError, ConnectionError};

use crate::reason::Reason;

/// Why a connection to a peer could not be made, or was lost.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// The peer does not answer, or fell silent while connecting.
    #[error("{peer} does not answer: check that `lighter node` runs there and that UDP reaches it")]
    Silent {
        /// Address of the peer.
        peer: String,
    },
    /// The peer fell silent on an established connection.
    #[error("lost the connection to {peer}: nothing heard for {seconds} s")]
    Lost {
        /// Address of the peer.
        peer: String,
        /// Length of the silence.
        seconds: u64,
    },
    /// The peer's certificate was issued by another authority.
    #[error("the certificate of {peer} was not issued by the authority in this host's ca.pem")]
    UnknownIssuer {
        /// Address of the peer.
        peer: String,
    },
    /// The peer's certificate is not valid for the name that was dialled.
    #[error(
        "the certificate of {peer} is not valid for the name {name}: issue one that lists it, or give one of its names with --tls-name"
    )]
    WrongName {
        /// Address of the peer.
        peer: String,
        /// The name that was dialled.
        name: String,
    },
    /// The peer's certificate has been revoked.
    #[error("the certificate of {peer} has been revoked by its authority (crl.pem)")]
    Revoked {
        /// Address of the peer.
        peer: String,
    },
    /// The peer's certificate is refused for another reason.
    #[error("the certificate of {peer} is refused: {reason}")]
    BadCertificate {
        /// Address of the peer.
        peer: String,
        /// Why TLS refuses it, such as its expiry.
        reason: String,
    },
    /// The peer refuses this host's certificate.
    #[error("{peer} refuses this host's certificate: {reason}")]
    Refused {
        /// Address of the peer.
        peer: String,
        /// The reason that the peer gave.
        reason: String,
    },
    /// The peer requires a certificate and received none.
    #[error("{peer} demands a certificate and was shown none")]
    NoCertificate {
        /// Address of the peer.
        peer: String,
    },
    /// The peer does not speak this protocol.
    #[error(
        "{peer} does not speak the migration protocol lighter/1: its version is too old or too new"
    )]
    Protocol {
        /// Address of the peer.
        peer: String,
    },
    /// The peer closed the connection.
    #[error("{peer} closed the connection{}", because(reason))]
    Closed {
        /// Address of the peer.
        peer: String,
        /// The reason it gave; may be empty.
        reason: String,
    },
    /// This end closed the connection.
    #[error("the connection to {peer} was closed by this host")]
    ClosedHere {
        /// Address of the peer.
        peer: String,
    },
    /// Another QUIC error.
    #[error("connection to {peer}: {reason}")]
    Other {
        /// Address of the peer.
        peer: String,
        /// Text of the error from QUIC.
        reason: String,
    },
    /// The name has no address.
    #[error("cannot find an address for {host}: {reason}")]
    Resolve {
        /// Host name as given.
        host: String,
        /// The system's error.
        reason: String,
    },
    /// A UDP socket cannot be opened.
    #[error("cannot open a UDP socket on {address}: {reason}")]
    Socket {
        /// The local address.
        address: String,
        /// The system's error.
        reason: String,
    },
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

/// First code of QUIC's range for TLS alerts (RFC 9001 §4.8).
const CRYPTO: u64 = 0x100;
/// TLS alerts (RFC 8446 §6.2).
mod alert {
    pub(super) const CERTIFICATE_REVOKED: u64 = 44;
    pub(super) const UNKNOWN_CA: u64 = 48;
    pub(super) const CERTIFICATE_REQUIRED: u64 = 116;
    pub(super) const NO_APPLICATION_PROTOCOL: u64 = 120;
    /// bad_certificate (42) to certificate_unknown (46).
    pub(super) const CERTIFICATE: std::ops::RangeInclusive<u64> = 42..=46;
}

impl LinkError {
    /// Translates `error` on a connection to `peer`, which was dialled as `name`.
    pub fn explain(error: &ConnectionError, peer: SocketAddr, name: &str) -> Self {
        let peer = peer.to_string();
        match error {
            ConnectionError::TimedOut => {
                Self::Lost { peer, seconds: super::transport::IDLE_TIMEOUT.as_secs() }
            }
            ConnectionError::TransportError(here) => {
                noticed_here(u64::from(here.code), &here.reason, peer, name)
            }
            ConnectionError::ConnectionClosed(there) => {
                let reason = String::from_utf8_lossy(&there.reason);
                reported_by_peer(u64::from(there.error_code), &reason, peer)
            }
            ConnectionError::ApplicationClosed(there) => {
                Self::Closed { peer, reason: String::from_utf8_lossy(&there.reason).into_owned() }
            }
            ConnectionError::VersionMismatch => Self::Protocol { peer },
            ConnectionError::LocallyClosed => Self::ClosedHere { peer },
            ConnectionError::Reset => Self::Closed { peer, reason: "it was restarted".into() },
            other => Self::Other { peer, reason: other.to_string() },
        }
    }

    /// As [`LinkError::explain`], for a connection that was never established.
    pub fn explain_connect(error: &ConnectionError, peer: SocketAddr, name: &str) -> Self {
        match error {
            ConnectionError::TimedOut => Self::Silent { peer: peer.to_string() },
            error => Self::explain(error, peer, name),
        }
    }

    /// Returns the error as a label.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Resolve { .. } => Reason::UnknownHost,
            Self::Silent { .. } => Reason::Unreachable,
            Self::UnknownIssuer { .. } => Reason::UnknownAuthority,
            Self::Refused { reason, .. } if reason.contains(UNKNOWN_AUTHORITY) => {
                Reason::UnknownAuthority
            }
            Self::WrongName { .. } => Reason::WrongName,
            Self::BadCertificate { reason, .. } | Self::Refused { reason, .. }
                if is_of_time(reason) =>
            {
                Reason::CertificateExpired
            }
            Self::Revoked { .. }
            | Self::BadCertificate { .. }
            | Self::Refused { .. }
            | Self::NoCertificate { .. } => Reason::CertificateRefused,
            Self::Protocol { .. } => Reason::Version,
            Self::Lost { .. }
            | Self::Closed { .. }
            | Self::ClosedHere { .. }
            | Self::Other { .. }
            | Self::Socket { .. } => Reason::ConnectionLost,
        }
    }

    pub(super) fn connect(error: &ConnectError, peer: SocketAddr) -> Self {
        Self::Other { peer: peer.to_string(), reason: error.to_string() }
    }

    pub(super) fn socket(error: &io::Error, address: SocketAddr) -> Self {
        Self::Socket { address: address.to_string(), reason: error.to_string() }
    }
}

fn noticed_here(code: u64, reason: &str, peer: String, name: &str) -> LinkError {
    let Some(alert) = code.checked_sub(CRYPTO) else {
        return LinkError::Other { peer, reason: reason.into() };
    };
    if reason.contains("UnknownIssuer") || alert == alert::UNKNOWN_CA {
        LinkError::UnknownIssuer { peer }
    } else if alert == alert::CERTIFICATE_REVOKED {
        LinkError::Revoked { peer }
    } else if reason.contains("not valid for") {
        LinkError::WrongName { peer, name: name.into() }
    } else if alert == alert::CERTIFICATE_REQUIRED || reason.contains("sent no certificates") {
        LinkError::BadCertificate { peer, reason: "it showed none".into() }
    } else if alert == alert::NO_APPLICATION_PROTOCOL {
        LinkError::Protocol { peer }
    } else if is_of_time(reason) {
        let reason = format!("{reason} (this host's clock decides: is it right?)");
        LinkError::BadCertificate { peer, reason }
    } else if alert::CERTIFICATE.contains(&alert) {
        LinkError::BadCertificate { peer, reason: reason.into() }
    } else {
        LinkError::Other { peer, reason: reason.into() }
    }
}

/// Whether a certificate is refused because of its time, by the text of rustls.
fn is_of_time(reason: &str) -> bool {
    reason.contains("not valid yet") || reason.contains("expired")
}

/// What is said to a host whose authority the peer does not know.
const UNKNOWN_AUTHORITY: &str =
    "it does not know the authority, and both hosts need one of the same";

fn reported_by_peer(code: u64, reason: &str, peer: String) -> LinkError {
    let reason = || reason.to_owned();
    match code.checked_sub(CRYPTO) {
        Some(alert::UNKNOWN_CA) => LinkError::Refused { peer, reason: UNKNOWN_AUTHORITY.into() },
        Some(alert::CERTIFICATE_REVOKED) => {
            LinkError::Refused { peer, reason: "its authority has revoked it".into() }
        }
        Some(alert::CERTIFICATE_REQUIRED) => LinkError::NoCertificate { peer },
        Some(alert::NO_APPLICATION_PROTOCOL) => LinkError::Protocol { peer },
        Some(code) if alert::CERTIFICATE.contains(&code) => {
            LinkError::Refused { peer, reason: reason() }
        }
        _ => LinkError::Closed { peer, reason: reason() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_no_connection_was_made_is_a_label_of_its_own() {
        let peer = || "b:4950".to_owned();
        let here = |alert, reason| noticed_here(CRYPTO + alert, reason, peer(), "host-b").reason();
        let there = |alert, reason| reported_by_peer(CRYPTO + alert, reason, peer()).reason();
        assert_eq!(here(alert::UNKNOWN_CA, ""), Reason::UnknownAuthority);
        assert_eq!(there(alert::UNKNOWN_CA, ""), Reason::UnknownAuthority);
        assert_eq!(here(46, "certificate not valid for name host-b"), Reason::WrongName);
        assert_eq!(here(45, "certificate expired: verified at 5"), Reason::CertificateExpired);
        assert_eq!(there(45, "certificate expired: verified at 5"), Reason::CertificateExpired);
        assert_eq!(here(alert::CERTIFICATE_REVOKED, ""), Reason::CertificateRefused);
        assert_eq!(there(alert::CERTIFICATE_REVOKED, ""), Reason::CertificateRefused);
        assert_eq!(LinkError::Silent { peer: peer() }.reason(), Reason::Unreachable);
        let unknown = LinkError::Resolve { host: "b".to_owned(), reason: "no such".to_owned() };
        assert_eq!(unknown.reason(), Reason::UnknownHost);
    }
}
