//! How long a host's certificate can be used: until it expires, or its authority does.
//!
//! No certificate is issued beyond its authority's end ([`Authority::issue`]). Earlier versions
//! did, and other authorities may: then the authority expires first, and hosts do not notice, since
//! they trust it by its key. Other programs that verify the host, as Prometheus does, refuse it.
//!
//! [`Authority::issue`]: super::authority::Authority::issue

use std::path::Path;
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use serde::Serialize;
use x509_parser::parse_x509_certificate;

use super::certificate::{HostCertificate, TlsError, unix_s};
use super::chain::{authorities, host_chain};
use super::files::{CA_CERT, HOST_CERT, read};

/// The certificate that expires first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// The host's own certificate: a renewal helps.
    Host,
    /// The certificate of its authority, not after the host's: only another authority helps.
    Authority,
}

/// The end of the time for which a host's certificate can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    /// The end, in seconds since 1970.
    pub until_unix_s: i64,
    /// The certificate that expires then.
    pub limit: Limit,
}

impl Expiry {
    /// Reads `host.pem` and `ca.pem` from `dir`.
    ///
    /// # Errors
    /// [`TlsError`], naming the file that cannot be read or parsed.
    pub fn load(dir: &Path) -> Result<Self, TlsError> {
        let read = |name| read(&dir.join(name)).map_err(TlsError::Read);
        Self::new(&read(CA_CERT)?, &read(HOST_CERT)?)
    }

    /// Returns the expiry of the first certificate in `cert_pem`, which an authority in `ca_pem`
    /// has issued.
    ///
    /// # Errors
    /// [`TlsError::Pem`] or [`TlsError::Malformed`].
    pub fn new(ca_pem: &str, cert_pem: &str) -> Result<Self, TlsError> {
        let own = Self::of(&HostCertificate::from_pem(cert_pem)?);
        let (chain, trusted) = (links(&host_chain(cert_pem)?), links(&authorities(ca_pem)?));
        Ok(match end_above(&chain, &trusted) {
            Some(until_unix_s) if until_unix_s <= own.until_unix_s => {
                Self { until_unix_s, limit: Limit::Authority }
            }
            _ => own,
        })
    }

    /// Returns the expiry of a certificate whose authority is not known.
    #[must_use]
    pub fn of(certificate: &HostCertificate) -> Self {
        Self { until_unix_s: certificate.valid_until_unix_s, limit: Limit::Host }
    }

    /// Returns the seconds that are left at `now`; negative after the expiry.
    #[must_use]
    pub fn left_s(&self, now: SystemTime) -> i64 {
        self.until_unix_s.saturating_sub(unix_s(now))
    }
}

/// The parts of a certificate that its place in a chain depends on.
struct Link {
    subject: Vec<u8>,
    issuer: Vec<u8>,
    until_unix_s: i64,
}

/// Parses certificates; those that cannot be parsed are left out.
fn links(certificates: &[CertificateDer<'_>]) -> Vec<Link> {
    let link = |der: &CertificateDer<'_>| {
        let (_, parsed) = parse_x509_certificate(der).ok()?;
        Some(Link {
            subject: parsed.subject().as_raw().to_vec(),
            issuer: parsed.issuer().as_raw().to_vec(),
            until_unix_s: parsed.validity().not_after.timestamp(),
        })
    };
    certificates.iter().filter_map(link).collect()
}

/// Returns when the first of the authorities above the first certificate of `chain` expires; none
/// if none of them is there.
fn end_above(chain: &[Link], trusted: &[Link]) -> Option<i64> {
    let mut issuer = &chain.first()?.issuer;
    let mut ends = Vec::new();
    for _ in chain {
        // An authority whose certificate was renewed with the same key may be there twice.
        let named = trusted.iter().filter(|link| link.subject == *issuer);
        if let Some(end) = named.map(|link| link.until_unix_s).max() {
            ends.push(end);
            break;
        }
        let Some(above) = chain.iter().skip(1).find(|link| link.subject == *issuer) else { break };
        ends.push(above.until_unix_s);
        issuer = &above.issuer;
    }
    ends.into_iter().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(subject: &str, issuer: &str, until_unix_s: i64) -> Link {
        Link { subject: subject.into(), issuer: issuer.into(), until_unix_s }
    }

    #[test]
    fn the_first_end_above_a_host_counts() {
        let chain = || vec![link("host", "middle", 10), link("middle", "root", 50)];
        let root = |until_unix_s| link("root", "root", until_unix_s);
        assert_eq!(end_above(&chain(), &[root(90)]), Some(50));
        assert_eq!(end_above(&chain(), &[link("other", "other", 1), root(40)]), Some(40));
        assert_eq!(end_above(&chain(), &[root(40), root(90)]), Some(50), "a renewed root");
        assert_eq!(end_above(&chain(), &[link("middle", "root", 50)]), Some(50));
        assert_eq!(end_above(&[link("host", "root", 10)], &[]), None);
        // Certificates that name each other must not keep it busy.
        let circle = [link("host", "b", 1), link("a", "b", 2), link("b", "a", 3)];
        assert_eq!(end_above(&circle, &[]), Some(2));
        assert_eq!(end_above(&[], &[root(1)]), None);
    }
}
