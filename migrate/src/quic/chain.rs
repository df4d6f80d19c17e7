//! Certificates and authorities of a host, read from PEM, and whether its peers will accept them.

use std::path::Path;
use std::sync::Arc;

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{self, cipher_suite};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, InconsistentKeys, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem};

use super::certificate::TlsError;
use super::files::{CA_CERT, read};

/// Returns ring with AES-128 first: it is the cheapest cipher per byte. The others are kept for
/// CPUs without AES.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    provider.cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}

/// Returns the authorities whose certificates are trusted.
pub(crate) fn roots(ca_pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in authorities(ca_pem)? {
        roots.add(certificate).map_err(|cause| TlsError::BadAuthority { cause })?;
    }
    Ok(roots)
}

/// Checks the host's certificate as its peers will, which trust the same authority: as a server's
/// and as a client's certificate.
pub(super) fn check_chain(ca_pem: &str, cert_pem: &str) -> Result<(), TlsError> {
    let (provider, roots) = (provider(), Arc::new(roots(ca_pem)?));
    let chain = host_chain(cert_pem)?;
    let Some((host, intermediates)) = chain.split_first() else { return Ok(()) };
    let now = UnixTime::now();
    let refused = |error| match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            TlsError::OtherAuthority
        }
        cause => TlsError::Unfit { cause },
    };
    let algorithms = provider.signature_verification_algorithms.all;
    let server = ParsedCertificate::try_from(host).map_err(refused)?;
    verify_server_cert_signed_by_trust_anchor(&server, &roots, intermediates, now, algorithms)
        .map_err(refused)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build()?;
    verifier.verify_client_cert(host, intermediates, now).map_err(refused)?;
    Ok(())
}

/// Checks that the private key `key_pem` belongs to the host's certificate.
pub(super) fn check_key(cert_pem: &str, key_pem: &str) -> Result<(), TlsError> {
    let key = provider()
        .key_provider
        .load_private_key(private_key(key_pem)?)
        .map_err(|cause| TlsError::BadKey { cause })?;
    match CertifiedKey::new(host_chain(cert_pem)?, key).keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => Err(TlsError::OtherKey),
        Err(error) => Err(TlsError::Malformed { cause: error.to_string() }),
    }
}

/// Reads the private key in `key_pem`.
pub(super) fn private_key(key_pem: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
        .map_err(|cause| TlsError::Pem { what: "the host's private key, host.key,", cause })
}

/// Returns the SHA-256 of each certificate in `ca_pem`, as `openssl x509 -fingerprint -sha256`
/// prints it.
pub(super) fn fingerprints(ca_pem: &str) -> Result<Vec<String>, TlsError> {
    Ok(authorities(ca_pem)?.iter().map(|der| fingerprint(der)).collect())
}

/// Returns the fingerprints of the authorities that a host with the certificates in `dir` trusts,
/// as [`Bundle::authorities`](super::bundle::Bundle::authorities) has them.
///
/// # Errors
/// [`TlsError::Read`] or [`TlsError::Pem`].
pub fn trusted_authorities(dir: &Path) -> Result<Vec<String>, TlsError> {
    fingerprints(&read(&dir.join(CA_CERT)).map_err(TlsError::Read)?)
}

fn fingerprint(der: &[u8]) -> String {
    let Some(suite) = cipher_suite::TLS13_AES_128_GCM_SHA256.tls13() else { return String::new() };
    let digest = suite.common.hash_provider.hash(der);
    digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
}

/// Returns the certificates of the authorities that are trusted.
pub(super) fn authorities(ca_pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    certificates(ca_pem, "the authority's certificate, ca.pem,")
}

/// Returns the host's certificate and the chain behind it.
pub(super) fn host_chain(cert_pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    certificates(cert_pem, "the host certificate, host.pem,")
}

fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|cause| TlsError::Pem { what, cause })?;
    if found.is_empty() {
        return Err(TlsError::Pem { what, cause: pem::Error::NoItemsFound });
    }
    Ok(found)
}
