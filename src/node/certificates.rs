//! The node's certificates, which may be renewed, and others' revoked, while it serves.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use migrate::quic::endpoint::Endpoint;
use migrate::quic::{Identity, Tls, TlsError, endpoint, web_server};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

/// How often the files are looked at.
const ROUND: Duration = Duration::from_secs(20);

/// Has `endpoint` and who listens to `web` serve with what is in the folder `certs`, where it found `identity` before. What cannot be
/// used is told once, and changes nothing. Connections that there are go on.
pub(super) fn keep(
    endpoint: Endpoint,
    web: watch::Sender<TlsAcceptor>,
    certs: PathBuf,
    mut identity: Identity,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut told = None;
        loop {
            sleep(ROUND).await;
            match tokio::task::block_in_place(|| changed(&certs, &identity)) {
                Ok(None) => told = None,
                Ok(Some((new, tls, acceptor))) => {
                    endpoint::renew(&endpoint, &tls);
                    web.send_replace(acceptor);
                    tracing::info!(
                        "the certificates, or what is revoked, have changed and hold from now on"
                    );
                    (identity, told) = (new, None);
                }
                Err(error) => {
                    let error = error.to_string();
                    if told.as_ref() != Some(&error) {
                        tracing::error!("the certificates that were read before hold on: {error}");
                    }
                    told = Some(error);
                }
            }
        }
    })
}

/// How to speak HTTPS as this host.
///
/// # Errors
/// Its certificates cannot be used.
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
