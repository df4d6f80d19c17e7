//! Mutual TLS 1.3.

use std::path::Path;
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::server::NoServerSessionStorage;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};

use super::certificate::{TlsError, guest_of};
use super::chain::{check_key, host_chain, private_key, provider, roots};
use super::identity::Identity;
use super::peers::Peers;

/// The protocol's name in the TLS handshake.
pub const ALPN: &[u8] = b"lighter/1";

/// An [`Identity`], ready to use for connections in both directions.
#[derive(Clone)]
pub struct Tls {
    pub(super) client: Arc<QuicClientConfig>,
    pub(super) server: Arc<QuicServerConfig>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Loads the [`Identity`] of the host from `dir`.
    ///
    /// # Errors
    /// As [`Identity::load`] and [`Tls::new`].
    pub fn load(dir: &Path) -> Result<Self, TlsError> {
        Self::new(&Identity::load(dir)?)
    }

    /// Prepares certificates that are in memory.
    ///
    /// # Errors
    /// [`TlsError`], naming the certificate that is wrong.
    pub fn new(identity: &Identity) -> Result<Self, TlsError> {
        Self::with_alpn(identity, ALPN)
    }

    /// As [`Tls::new`], with another protocol name.
    pub(crate) fn with_alpn(identity: &Identity, alpn: &[u8]) -> Result<Self, TlsError> {
        let provider = provider();
        check_key(&identity.cert_pem, &identity.key_pem)?;
        let chain = host_chain(&identity.cert_pem)?;
        let key = private_key(&identity.key_pem)?;
        let own_guest = chain.first().and_then(guest_of);
        let trust = (roots(&identity.ca_pem)?, identity.lists()?);
        let peers = Arc::new(Peers::new(trust, own_guest, &provider)?);

        // rustls calls any verifier other than its own dangerous; this one wraps rustls' own.
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(peers.clone())
            .with_client_auth_cert(chain.clone(), key.clone_key())?;
        client.alpn_protocols = vec![alpn.to_vec()];
        // No session tickets: every connection proves its certificate again.
        client.resumption = Resumption::disabled();

        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(peers)
            .with_single_cert(chain, key)?;
        server.alpn_protocols = vec![alpn.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let unfit = |_| rustls::Error::General("QUIC needs TLS13_AES_128_GCM_SHA256".into());
        Ok(Self {
            client: Arc::new(QuicClientConfig::try_from(client).map_err(unfit)?),
            server: Arc::new(QuicServerConfig::try_from(server).map_err(unfit)?),
        })
    }
}

/// Returns the TLS 1.3 settings of a web server with a host's certificate; clients that trust the
/// authority can verify the host.
///
/// # Errors
/// As [`Tls::new`].
pub fn web_server(identity: &Identity) -> Result<ServerConfig, TlsError> {
    let chain = host_chain(&identity.cert_pem)?;
    let mut server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, private_key(&identity.key_pem)?)?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(server)
}

#[cfg(test)]
mod tests {
    use super::super::authority::Authority;
    use super::super::files::CA_CERT;
    use super::*;

    #[test]
    fn names_the_missing_file_and_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let message = Tls::load(dir.path()).unwrap_err().to_string();
        assert!(message.contains("ca.pem") && message.contains("lighter certs"), "{message}");
    }

    #[test]
    fn a_folder_or_a_pipe_in_place_of_a_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create().unwrap();
        authority.issue(&["a".into()]).unwrap().save(dir.path()).unwrap();
        let ca = dir.path().join(CA_CERT);
        std::fs::remove_file(&ca).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&ca).status().unwrap();
        assert!(made.success());
        let message = Tls::load(dir.path()).unwrap_err().to_string();
        assert!(message.contains("ca.pem: it is a pipe, not a file"), "{message}");

        std::fs::remove_file(&ca).unwrap();
        std::fs::create_dir(&ca).unwrap();
        let message = Tls::load(dir.path()).unwrap_err().to_string();
        assert!(message.contains("ca.pem: it is a folder, not a file"), "{message}");
    }

    #[test]
    fn refuses_a_key_of_another_certificate() {
        let authority = Authority::create().unwrap();
        let mut identity = authority.issue(&["a".into()]).unwrap();
        identity.key_pem = authority.issue(&["b".into()]).unwrap().key_pem;
        assert!(matches!(Tls::new(&identity), Err(TlsError::OtherKey)));
    }

    #[test]
    fn refuses_a_certificate_of_another_authority() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (Authority::create().unwrap(), Authority::create().unwrap());
        ours.issue(&["a".into()]).unwrap().save(dir.path()).unwrap();
        Tls::load(dir.path()).unwrap();
        let ca = dir.path().join(CA_CERT);
        std::fs::write(&ca, theirs.issue(&["a".into()]).unwrap().ca_pem).unwrap();
        let refused = Tls::load(dir.path()).unwrap_err();
        assert!(matches!(refused, TlsError::OtherAuthority), "{refused}");
    }

    #[test]
    fn names_the_damaged_file() {
        let dir = tempfile::tempdir().unwrap();
        Authority::create().unwrap().issue(&["a".into()]).unwrap().save(dir.path()).unwrap();
        let empty = |label| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
        for (file, label) in
            [("ca.pem", "CERTIFICATE"), ("host.pem", "CERTIFICATE"), ("host.key", "PRIVATE KEY")]
        {
            let path = dir.path().join(file);
            let good = std::fs::read_to_string(&path).unwrap();
            for bad in [empty(label), good[..good.len() / 2].to_owned(), "text".to_owned()] {
                std::fs::write(&path, &bad).unwrap();
                let message = Tls::load(dir.path()).unwrap_err().to_string();
                assert!(message.contains(file), "{bad}: {message}");
            }
            std::fs::write(&path, &good).unwrap();
        }
        Tls::load(dir.path()).unwrap();
    }

    #[test]
    fn refuses_files_without_certificates() {
        let mut identity = Authority::create().unwrap().issue(&["a".into()]).unwrap();
        identity.ca_pem = "nothing".into();
        let message = Tls::new(&identity).unwrap_err().to_string();
        assert!(message.contains("the authority's certificate"), "{message}");
    }
}
