//! Reloads the node's certificates and the list of revoked ones while the node serves.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use migrate::quic::endpoint::Endpoint;
use migrate::quic::{Expiry, Identity, Tls, TlsError, endpoint, web_server};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

use super::renewal::Renewal;
use super::service::Node;

/// How often the files are read.
const ROUND: Duration = Duration::from_secs(20);

/// Makes `endpoint` and the receivers of `web` use the node's certificates, whenever those differ
/// from `identity`, which the caller has read. Renews the host's certificate before it expires.
/// Files that cannot be used are logged once and change nothing. Open connections continue.
pub(super) fn keep(
    node: Arc<Node>,
    endpoint: Endpoint,
    web: watch::Sender<TlsAcceptor>,
    mut renewal: Renewal,
    mut identity: Identity,
) -> JoinHandle<()> {
    let certs = node.state().certs();
    node.set_certificate_expiry(expiry(&identity));
    tokio::spawn(async move {
        let mut reported = None;
        loop {
            sleep(ROUND).await;
            let found = tokio::task::block_in_place(|| {
                renewal.check();
                changed(&certs, &identity)
            });
            match found {
                Ok(None) => reported = None,
                Ok(Some((new, tls, acceptor))) => {
                    endpoint::renew(&endpoint, &tls);
                    web.send_replace(acceptor);
                    tracing::info!("new certificates or revocation lists are in force");
                    if identity.crl_pem.is_some() && new.crl_pem.is_none() {
                        tracing::warn!(
                            "crl.pem is gone: no certificate counts as revoked any more"
                        );
                    }
                    node.set_certificate_expiry(expiry(&new));
                    (identity, reported) = (new, None);
                }
                Err(error) => {
                    let error = error.to_string();
                    if reported.as_ref() != Some(&error) {
                        tracing::error!(
                            "the certificates and lists read before stay in force: {error}"
                        );
                    }
                    reported = Some(error);
                }
            }
        }
    })
}

/// Returns when the host's certificate expires, or its authority's if that is earlier, in seconds
/// since 1970.
fn expiry(identity: &Identity) -> Option<u64> {
    let expiry = Expiry::new(&identity.ca_pem, &identity.cert_pem).ok()?;
    u64::try_from(expiry.until_unix_s).ok()
}

/// Returns an acceptor of HTTPS connections to this host.
///
/// # Errors
/// If the host's certificates cannot be used.
pub(super) fn acceptor(identity: &Identity) -> Result<TlsAcceptor, TlsError> {
    Ok(TlsAcceptor::from(Arc::new(web_server(identity)?)))
}

type Changed = (Identity, Tls, TlsAcceptor);

fn changed(certs: &Path, before: &Identity) -> Result<Option<Changed>, TlsError> {
    let identity = Identity::load(certs)?;
    if identity == *before {
        return Ok(None);
    }
    let (tls, acceptor) = (Tls::new(&identity)?, acceptor(&identity)?);
    Ok(Some((identity, tls, acceptor)))
}

#[cfg(test)]
mod tests {
    use migrate::quic::Authority;

    use super::*;

    /// [`keep`] applies a change; it keeps what it has if nothing changed, or on an error.
    #[test]
    fn a_list_that_cannot_be_used_changes_nothing() {
        let certs = tempfile::tempdir().unwrap();
        let (certs, list) = (certs.path(), certs.path().join("crl.pem"));
        let authority = Authority::create().unwrap();
        authority.issue(&["host-a".into()]).unwrap().save(certs).unwrap();
        let before = Identity::load(certs).unwrap();
        assert!(changed(certs, &before).unwrap().is_none());

        authority.revoke(certs, &[]).unwrap();
        let (with_list, ..) = changed(certs, &before).unwrap().expect("a list");
        assert!(with_list.crl_pem.is_some());
        let good = std::fs::read(&list).unwrap();
        for half in [0, good.len() / 2] {
            std::fs::write(&list, &good[..half]).unwrap();
            let error = changed(certs, &with_list).map(drop).unwrap_err();
            assert!(error.to_string().contains("crl.pem"), "{error}");
        }
        std::fs::write(&list, &good).unwrap();
        assert!(changed(certs, &with_list).unwrap().is_none());
        std::fs::remove_file(&list).unwrap();
        let (without, ..) = changed(certs, &with_list).unwrap().expect("no list");
        assert!(without.crl_pem.is_none());
    }
}
