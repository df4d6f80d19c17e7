//! The certificates and the key of a host, or of a guest's process on it.

use std::path::Path;
use std::time::SystemTime;

use rustls_pki_types::CertificateRevocationListDer;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::certificate::{HostCertificate, TlsError};
use super::chain::{check_chain, check_key};
use super::files::{
    CA_CERT, CA_KEY, CRL, CertError, HOST_CERT, HOST_KEY, HOST_KEY_NEW, Mode, create_dir,
    holds_certificate, is_there, read, read_if_there, refuse_existing, write_new,
};
use super::lists::checked;

/// The certificates and the key of a host, or of the process of one guest on it, in PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The certificate of the authority.
    pub ca_pem: String,
    /// Its certificate; for a guest's process, followed by the certificate of its host.
    pub cert_pem: String,
    /// Its private key.
    pub key_pem: String,
    /// The lists of revoked certificates that the host has; none if it has no `crl.pem`. It is then
    /// omitted from JSON: a guest's process that was started by a version without this field
    /// refuses an identity that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crl_pem: Option<String>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads `ca.pem`, `host.pem`, `host.key` and, if it exists, `crl.pem` from `dir`. If a new
    /// certificate was being installed when the host lost power, its key is still `host.key.new`.
    ///
    /// # Errors
    /// [`TlsError`], naming the file or certificate that is wrong. A certificate that is not valid
    /// now, or that another authority issued, is an error here because other hosts would refuse it
    /// with a less helpful message. A `crl.pem` is an error if it holds no list, two lists of one
    /// authority, a list of an authority that is not in `ca.pem`, or one with a wrong signature.
    pub fn load(dir: &Path) -> Result<Self, TlsError> {
        // `certs install` may replace the files while they are read; a second attempt finds all of
        // them replaced.
        Self::read(dir).or_else(|_| Self::read(dir)).map_err(|error| match error {
            TlsError::Read(cause) if cause.is_missing() && is_requested(dir) => TlsError::Requested,
            error => error,
        })
    }

    fn read(dir: &Path) -> Result<Self, TlsError> {
        let read = |name| read(&dir.join(name)).map_err(TlsError::Read);
        let (ca_pem, cert_pem) = (read(CA_CERT)?, read(HOST_CERT)?);
        let key_pem = key_of(dir, &cert_pem)?;
        HostCertificate::from_pem(&cert_pem)?.check(SystemTime::now())?;
        // All peers receive the content of this file.
        if cert_pem.contains("PRIVATE KEY") {
            let cause = "host.pem holds a private key, which belongs in host.key".to_owned();
            return Err(TlsError::Malformed { cause });
        }
        let crl_pem = read_if_there(&dir.join(CRL)).map_err(TlsError::ReadList)?;
        let identity = Self { ca_pem, cert_pem, key_pem, crl_pem };
        check_chain(&identity.ca_pem, &identity.cert_pem)?;
        identity.lists()?;
        Ok(identity)
    }

    /// Returns the lists of revoked certificates; all of them apply.
    ///
    /// # Errors
    /// [`TlsError::Revocation`].
    pub(super) fn lists(&self) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
        let Some(lists) = &self.crl_pem else { return Ok(Vec::new()) };
        checked(lists, &self.ca_pem).map_err(TlsError::Revocation)
    }

    /// Writes `host.pem` and `host.key` to `dir`, and `ca.pem` if it does not exist. An existing
    /// one may hold further authorities.
    ///
    /// # Errors
    /// [`CertError::Exists`] if the host has a certificate already, [`CertError::OtherAuthority`]
    /// if `ca.pem` exists and holds only other authorities, [`CertError::File`] for other errors.
    /// Unless a file cannot be written, nothing has been written then.
    pub fn save(&self, dir: &Path) -> Result<(), CertError> {
        let needs_authority = self.needs_authority(dir)?;
        write_new(&dir.join(HOST_KEY), &self.key_pem, Mode::Secret)?;
        write_new(&dir.join(HOST_CERT), &self.cert_pem, Mode::Public)?;
        let ca = dir.join(CA_CERT);
        if needs_authority { write_new(&ca, &self.ca_pem, Mode::Public) } else { Ok(()) }
    }

    /// Checks that no file in `dir` would make [`Self::save`] fail. `dir` is created if it does not
    /// exist.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub fn check_folder(&self, dir: &Path) -> Result<(), CertError> {
        self.needs_authority(dir).map(drop)
    }

    /// Checks the files in `dir`; returns whether `ca.pem` does not exist.
    fn needs_authority(&self, dir: &Path) -> Result<bool, CertError> {
        create_dir(dir)?;
        let ca = dir.join(CA_CERT);
        let is_missing = match read(&ca) {
            Ok(pem) if holds_certificate(&pem, &self.ca_pem) => false,
            Ok(_) => return Err(CertError::OtherAuthority { path: ca }),
            Err(error) if error.is_missing() => true,
            Err(error) => return Err(error),
        };
        refuse_existing(&dir.join(HOST_CERT))?;
        refuse_existing(&dir.join(HOST_KEY))?;
        Ok(is_missing)
    }
}

/// Returns whether the host has only a key, for the first certificate that it has requested. Beside
/// an authority's key, the creation of that authority was interrupted.
fn is_requested(dir: &Path) -> bool {
    let [key, cert, authority] =
        [HOST_KEY, HOST_CERT, CA_KEY].map(|name| is_there(&dir.join(name)));
    key && !cert && !authority
}

/// Returns the key in `dir` that belongs to the certificate `cert_pem`.
fn key_of(dir: &Path, cert_pem: &str) -> Result<String, TlsError> {
    let installed = read(&dir.join(HOST_KEY)).map_err(TlsError::Read).and_then(|key_pem| {
        check_key(cert_pem, &key_pem)?;
        Ok(key_pem)
    });
    installed.or_else(|error| match read(&dir.join(HOST_KEY_NEW)) {
        Ok(next) if check_key(cert_pem, &next).is_ok() => Ok(next),
        _ => Err(error),
    })
}
