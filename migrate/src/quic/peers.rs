//! Verifies which peers are accepted: hosts with a certificate of the authority, and guests'
//! processes with a certificate of such a host.
//!
//! A guest's process presents its own certificate, which names the guest and was issued by its
//! host, followed by that host's certificate. The host's is verified as if the host had presented
//! it (issuer, time, and the name that was dialled), then the guest's with the host's as its only
//! issuer.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use quinn::Connection;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use uuid::Uuid;

use super::certificate::{HostCertificate, TlsError, guest_of, is_host_name, issued_at};

/// The peer is the process of another guest than the one this connection is for.
#[derive(thiserror::Error)]
#[error("it is of the process of guest {shown}, which may not speak for others")]
struct OtherGuest {
    shown: Uuid,
}

/// rustls prints this in its messages.
impl fmt::Debug for OtherGuest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Verifies the certificates of peers.
#[derive(Debug)]
pub(super) struct Peers {
    servers: Arc<WebPkiServerVerifier>,
    clients: Arc<dyn ClientCertVerifier>,
    provider: Arc<CryptoProvider>,
    /// The guest of this process; none for a host.
    own_guest: Option<Uuid>,
}

/// A peer's certificate chain, by kind of peer.
enum Shown<'a> {
    Host,
    Guest { guest: Uuid, host: &'a CertificateDer<'a>, issuers: &'a [CertificateDer<'a>] },
}

impl<'a> Shown<'a> {
    fn new(shown: &CertificateDer<'_>, behind: &'a [CertificateDer<'a>]) -> Result<Self, Error> {
        let Some(guest) = guest_of(shown) else { return Ok(Self::Host) };
        let (host, issuers) = behind.split_first().ok_or(CertificateError::UnknownIssuer)?;
        // Whatever is among the authorities, a guest's process cannot issue certificates.
        if guest_of(host).is_some() {
            return Err(CertificateError::UnknownIssuer.into());
        }
        Ok(Self::Guest { guest, host, issuers })
    }
}

impl Peers {
    pub(super) fn new(
        (roots, revoked): (RootCertStore, Vec<CertificateRevocationListDer<'static>>),
        own_guest: Option<Uuid>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, TlsError> {
        let (roots, provider) = (Arc::new(roots), Arc::clone(provider));
        let mut servers =
            WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone());
        let mut clients = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
        if !revoked.is_empty() {
            // Revocation is checked for the host's certificate and those of intermediate
            // authorities, each only if there is a list of its issuer. The date by which a list
            // should be replaced (nextUpdate) is ignored: operators copy lists by hand, and an old
            // one is better than none.
            servers = servers.with_crls(revoked.clone()).allow_unknown_revocation_status();
            clients = clients.with_crls(revoked).allow_unknown_revocation_status();
        }
        Ok(Self { servers: servers.build()?, clients: clients.build()?, provider, own_guest })
    }
}

/// Returns the host's certificate, which has been verified, as the only issuer.
fn only(host: &CertificateDer<'_>) -> Result<RootCertStore, Error> {
    let mut issuers = RootCertStore::empty();
    issuers.add(host.clone().into_owned())?;
    Ok(issuers)
}

fn other_guest(shown: Uuid) -> Error {
    CertificateError::Other(OtherError(Arc::new(OtherGuest { shown }))).into()
}

impl ServerCertVerifier for Peers {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        behind: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match Shown::new(shown, behind)? {
            Shown::Host => self.servers.verify_server_cert(shown, behind, name, ocsp, now),
            Shown::Guest { guest, host, issuers } => {
                let verified = self.servers.verify_server_cert(host, issuers, name, &[], now)?;
                // Another guest's process may listen where a node or this guest's process did
                // before.
                if self.own_guest != Some(guest) {
                    return Err(other_guest(guest));
                }
                let algorithms = self.provider.signature_verification_algorithms.all;
                let shown = ParsedCertificate::try_from(shown)?;
                verify_server_cert_signed_by_trust_anchor(
                    &shown,
                    &only(host)?,
                    &[],
                    now,
                    algorithms,
                )?;
                Ok(verified)
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.servers.verify_tls12_signature(message, shown, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.servers.verify_tls13_signature(message, shown, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.servers.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Peers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A client that picks its certificate by the authorities listed here would need its host's
        // name in the list as well.
        &[]
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        behind: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match Shown::new(shown, behind)? {
            Shown::Host => self.clients.verify_client_cert(shown, behind, now),
            Shown::Guest { guest, host, issuers } => {
                self.clients.verify_client_cert(host, issuers, now)?;
                if self.own_guest.is_some_and(|own| own != guest) {
                    return Err(other_guest(guest));
                }
                let issuers = Arc::new(only(host)?);
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(issuers, self.provider.clone())
                        .build()
                        .map_err(|error| Error::General(error.to_string()))?;
                verifier.verify_client_cert(shown, &[], now)
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.clients.verify_tls12_signature(message, shown, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.clients.verify_tls13_signature(message, shown, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.clients.supported_verify_schemes()
    }
}

/// A guest's process, as named by its certificate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GuestProcess {
    /// The guest of this process.
    pub(crate) guest: Uuid,
    /// When its host issued its certificate, by that host's clock.
    pub(crate) issued: SystemTime,
}

/// Returns the guest's process at the other end; none for a host.
pub(crate) fn process_at(connection: &Connection) -> Option<GuestProcess> {
    let shown = shown_by(connection)?;
    let guest = guest_of(shown.first()?)?;
    // A certificate without a time counts as infinitely old.
    let issued = issued_at(shown.first()?).unwrap_or(SystemTime::UNIX_EPOCH);
    Some(GuestProcess { guest, issued })
}

/// Returns a name that the certificate of the host at the other end is valid for.
pub(crate) fn host_name_at(connection: &Connection) -> Option<String> {
    let shown = shown_by(connection)?;
    let host = shown.iter().find(|certificate| guest_of(certificate).is_none())?;
    let names = HostCertificate::from_der(host).ok()?.names;
    names.into_iter().find(|name| is_host_name(name))
}

fn shown_by(connection: &Connection) -> Option<Vec<CertificateDer<'static>>> {
    let shown = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    Some(*shown)
}
