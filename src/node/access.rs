//! Access to metrics: with a password and TLS, only clients that send the password over TLS.
//! Without either, every client that can reach the address.

use std::path::Path;

use anyhow::{Context, Result, bail};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use subtle::ConstantTimeEq;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// Largest password file, in bytes.
const AUTH_BYTES_MAX: u64 = 4096;

/// What a client must send, and whether it must use HTTPS.
#[derive(Clone, Default)]
pub(super) struct Access {
    /// For HTTPS; replaced when the certificates change.
    pub(super) tls: Option<watch::Receiver<TlsAcceptor>>,
    /// The expected header `Authorization`.
    pub(super) authorization: Option<Authorization>,
}

/// The header with the expected user and password.
#[derive(Clone)]
pub(super) struct Authorization(Vec<u8>);

/// A connection, with TLS or without.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Access {
    /// Performs the TLS handshake, if metrics are served over HTTPS.
    ///
    /// # Errors
    /// If the handshake fails.
    pub(super) async fn accept(&self, stream: TcpStream) -> std::io::Result<Box<dyn Stream>> {
        let acceptor = self.tls.as_ref().map(|tls| tls.borrow().clone());
        Ok(match acceptor {
            Some(acceptor) => Box::new(acceptor.accept(stream).await?),
            None => Box::new(stream),
        })
    }
}

impl Authorization {
    /// Reads a file that contains `USER:PASSWORD` and that only its owner may read.
    ///
    /// # Errors
    /// If the file cannot be read, others may read it, or it contains something else.
    pub(super) fn read(file: &Path) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let shown = file.display();
        let read = || {
            let mode = std::fs::metadata(file)?.permissions().mode();
            Ok::<_, std::io::Error>((mode, regular_file::read_text(file, AUTH_BYTES_MAX)?))
        };
        let (mode, text) = read().with_context(|| format!("cannot read {shown}"))?;
        if mode & 0o077 != 0 {
            bail!("others may read the password in {shown}: `chmod 600 {shown}`");
        }
        match text.trim_end_matches(['\r', '\n']) {
            line if line.lines().count() == 1 && line.contains(':') && !line.ends_with(':') => {
                Ok(Self(format!("Basic {}", BASE64_STANDARD.encode(line)).into_bytes()))
            }
            _ => bail!("{shown} does not hold one line USER:PASSWORD"),
        }
    }

    fn allows(&self, shown: Option<&HeaderValue>) -> bool {
        shown.is_some_and(|shown| shown.as_bytes().ct_eq(&self.0).into())
    }
}

/// Serves only requests with the right password (RFC 7617).
pub(super) async fn check(
    State(wanted): State<Option<Authorization>>,
    request: Request,
    next: Next,
) -> Response {
    let shown = request.headers().get(header::AUTHORIZATION);
    if wanted.is_none_or(|wanted| wanted.allows(shown)) {
        return next.run(request).await;
    }
    let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"lighter\", charset=\"UTF-8\"")];
    (StatusCode::UNAUTHORIZED, challenge, "user name and password required\n").into_response()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn read(text: &str, mode: u32) -> Result<Authorization> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("auth");
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
        Authorization::read(&file)
    }

    #[test]
    fn only_the_password_is_accepted() {
        // RFC 7617 §2.
        let wanted = read("Aladdin:open sesame\n", 0o600).unwrap();
        let shows = |text: &'static str| wanted.allows(Some(&HeaderValue::from_static(text)));
        assert!(shows("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="));
        assert!(!shows("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ"));
        assert!(!shows("QWxhZGRpbjpvcGVuIHNlc2FtZQ==") && !shows("") && !wanted.allows(None));
    }

    #[test]
    fn a_file_that_others_may_read_or_that_holds_something_else_is_refused() {
        for (text, mode) in [
            ("a:b", 0o640),
            ("a:b", 0o604),
            ("", 0o600),
            ("a", 0o600),
            ("a:", 0o600),
            ("a:b\nc:d", 0o600),
        ] {
            assert!(read(text, mode).is_err(), "{text:?} {mode:o}");
        }
    }
}
