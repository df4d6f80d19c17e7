//! The node's certificates, which may be renewed, and others' revoked, while it serves.

use std::path::{Path, PathBuf};
use std::time::Duration;

use migrate::quic::endpoint::Endpoint;
use migrate::quic::{Identity, Tls, TlsError, endpoint};
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// How often the files are looked at.
const ROUND: Duration = Duration::from_secs(20);

/// Has `endpoint` serve with what is in the folder `certs`, where it found `identity` before. What cannot be used is told once, and
/// changes nothing. Connections that there are go on.
pub(super) fn keep(endpoint: Endpoint, certs: PathBuf, mut identity: Identity) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut told = None;
        loop {
            sleep(ROUND).await;
            match tokio::task::block_in_place(|| changed(&certs, &identity)) {
                Ok(None) => told = None,
                Ok(Some((new, tls))) => {
                    endpoint::renew(&endpoint, &tls);
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

fn changed(certs: &Path, before: &Identity) -> Result<Option<(Identity, Tls)>, TlsError> {
    let identity = Identity::load(certs)?;
    if identity == *before {
        return Ok(None);
    }
    let tls = Tls::new(&identity)?;
    Ok(Some((identity, tls)))
}
