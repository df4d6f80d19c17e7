//! The key of a host's next certificate. It is made on the host and never leaves it: only its
//! public half does, in a request.
//!
//! The key is `host.key` on a host without a certificate. Beside a certificate that is in use it is
//! `host.key.new`, until the new certificate is installed.

use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DnType, KeyPair};

use super::authority::{Authority, check_names, parse_key};
use super::bundle::{Bundle, BundleError};
use super::chain::check_key;
use super::files::{
    CertError, HOST_CERT, HOST_KEY, HOST_KEY_NEW, create_dir, is_there, read, read_if_there,
    rename, replace,
};

/// The key of a host's next certificate.
#[derive(Debug)]
pub struct PendingKey {
    key: KeyPair,
    path: PathBuf,
}

impl PendingKey {
    /// Reads the pending key in `dir`, or makes one if there is none: a request that was sent
    /// already stays good. The caller prevents concurrent calls.
    ///
    /// # Errors
    /// [`CertError::NotAKey`] if the file is damaged, [`CertError::File`] if it cannot be read or
    /// written, [`CertError::Make`] if the system provides no randomness.
    pub fn open(dir: &Path) -> Result<Self, CertError> {
        create_dir(dir)?;
        finish_install(dir)?;
        let new = dir.join(HOST_KEY_NEW);
        let path = if is_there(&dir.join(HOST_CERT)) { new.clone() } else { dir.join(HOST_KEY) };
        if let Some(pem) = read_if_there(&path)? {
            return Ok(Self { key: parse_key(&pem, &path)?, path });
        }
        let make = |cause| CertError::Make { subject: "this host".to_owned(), cause };
        let key = KeyPair::generate().map_err(make)?;
        // Written whole or not at all: half a key would be in the way of the next attempt.
        replace(&new, &key.serialize_pem())?;
        if path != new {
            rename(&new, &path)?;
        }
        Ok(Self { key, path })
    }

    /// Returns whether a key in `dir` waits for its certificate, which was requested and is not
    /// installed.
    #[must_use]
    pub fn is_waiting(dir: &Path) -> bool {
        match read_if_there(&dir.join(HOST_CERT)) {
            Ok(None) => is_there(&dir.join(HOST_KEY)),
            Ok(Some(cert_pem)) => read(&dir.join(HOST_KEY_NEW))
                .is_ok_and(|key_pem| check_key(&cert_pem, &key_pem).is_err()),
            Err(_) => false,
        }
    }

    /// Returns the path of the key.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns a request for a certificate with these names, in PEM.
    ///
    /// # Errors
    /// [`CertError::Name`] or [`CertError::SharedAddress`] for a name that no host can have,
    /// [`CertError::Make`].
    pub fn request(&self, names: &[String]) -> Result<String, CertError> {
        check_names(names)?;
        let make = |cause| CertError::Make { subject: names.join(", "), cause };
        let mut params = CertificateParams::new(names).map_err(make)?;
        let subject = names.first().map_or("lighter host", String::as_str);
        params.distinguished_name.push(DnType::CommonName, subject);
        params.serialize_request(&self.key).and_then(|request| request.pem()).map_err(make)
    }

    /// Returns a certificate for this key, issued by an authority on the same host.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn certified_by(
        &self,
        authority: &Authority,
        names: &[String],
    ) -> Result<Bundle, BundleError> {
        let cert_pem = authority.certify(names, &self.key, |_| {})?;
        Bundle::new(&cert_pem, authority.cert_pem())
    }
}

/// Moves the key of the certificate in `dir` into place, if the host lost power between the
/// certificate and the key.
pub(super) fn finish_install(dir: &Path) -> Result<(), CertError> {
    let [cert, key, new] = [HOST_CERT, HOST_KEY, HOST_KEY_NEW].map(|name| dir.join(name));
    let Some(new_pem) = read_if_there(&new)? else { return Ok(()) };
    let Some(cert_pem) = read_if_there(&cert)? else { return Ok(()) };
    let is_key = |pem: &str| check_key(&cert_pem, pem).is_ok();
    let is_installed = read(&key).is_ok_and(|pem| is_key(&pem));
    if !is_installed && is_key(&new_pem) { rename(&new, &key) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::request::Request;
    use super::*;

    #[test]
    fn the_same_key_waits_until_its_certificate_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["host-b".to_owned(), "192.0.2.7".to_owned()];
        assert!(!PendingKey::is_waiting(dir.path()));
        let first = PendingKey::open(dir.path()).unwrap();
        assert!(PendingKey::is_waiting(dir.path()));
        assert_eq!(first.path(), dir.path().join("host.key"));
        let mode = std::fs::metadata(first.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = PendingKey::open(dir.path()).unwrap();
        assert_eq!(first.key.serialize_pem(), again.key.serialize_pem());
        let request = first.request(&names).unwrap();
        assert!(!request.contains("PRIVATE"), "{request}");
        assert_eq!(Request::from_pem(&request).unwrap().names(), names);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing but the key");
        let refused = first.request(&["bad name".to_owned()]).unwrap_err().to_string();
        assert!(refused.contains("`bad name` is neither"), "{refused}");
        let refused = first.request(&["0.0.0.0".to_owned()]).unwrap_err().to_string();
        assert!(refused.contains("0.0.0.0 is not the address of one host"), "{refused}");
    }

    #[test]
    fn a_key_in_use_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        Authority::create().unwrap().issue(&["a".into()]).unwrap().save(dir.path()).unwrap();
        let in_use = std::fs::read(dir.path().join("host.key")).unwrap();
        assert!(!PendingKey::is_waiting(dir.path()));
        let pending = PendingKey::open(dir.path()).unwrap();
        assert!(PendingKey::is_waiting(dir.path()));
        assert_eq!(pending.path(), dir.path().join("host.key.new"));
        assert_eq!(std::fs::read(dir.path().join("host.key")).unwrap(), in_use);
        crate::quic::Tls::load(dir.path()).unwrap();
    }

    #[test]
    fn a_damaged_key_is_named_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("host.key");
        std::fs::write(&key, "half").unwrap();
        let error = PendingKey::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("host.key does not hold a private key"), "{error}");
        assert_eq!(std::fs::read(&key).unwrap(), b"half");
    }
}
