//! What an authority hands out for a request: one PEM file with the host's certificate and the
//! authority's, and no key. A host checks it against the key that it kept, and installs it.
//!
//! Installing replaces several files. They are replaced in an order in which a host that loses
//! power between any two of them can use either the old certificate or the new one:
//! [`Identity::load`] takes the key that belongs to `host.pem` from `host.key` or `host.key.new`,
//! and while the authority is replaced `ca.pem` holds both.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::certificate::{HostCertificate, TlsError};
use super::chain::{check_chain, check_key, fingerprints};
use super::expiry::Expiry;
use super::files::{
    CA_CERT, CA_KEY, CRL, CertError, HOST_CERT, HOST_KEY, HOST_KEY_NEW, PEM_BYTES_MAX, create_dir,
    is_there, read_if_there, remove, rename, replace, replace_public, sections,
};
use super::identity::Identity;
use super::lists::{ListError, checked, texts};
use super::pending::finish_install;
use super::tls::Tls;

#[cfg(test)]
mod tests;

/// Longest bundle that is read, in bytes: `ca.pem` may hold several authorities.
pub const BUNDLE_BYTES_MAX: u64 = PEM_BYTES_MAX / 2;

/// Why a certificate cannot be installed.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file cannot be read or written, or a certificate cannot be made.
    #[error(transparent)]
    File(#[from] CertError),
    /// The bundle or the resulting `ca.pem` is too long.
    #[error("the certificates are longer than {0} bytes")]
    TooLarge(u64),
    /// The file holds a private key.
    #[error(
        "the file holds a private key, which no other host should have: install what `lighter certs sign` wrote"
    )]
    HoldsKey,
    /// The file does not hold the certificates of a host and of an authority.
    #[error(
        "the file holds {0} certificates: a host's, followed by its authority's, is what `lighter certs sign` writes"
    )]
    Incomplete(usize),
    /// The certificate is not usable on any host.
    #[error("the certificate is not usable: {0}")]
    Unusable(TlsError),
    /// The host's certificate in the file cannot be parsed.
    #[error("the host's certificate in the file is not usable: {0}")]
    Malformed(String),
    /// The certificate was issued too long ago.
    #[error(
        "the certificate expired at {until}: sign the request again where the authority is (`lighter certs sign`), and install the \
         result"
    )]
    Expired {
        /// The end of its validity.
        until: String,
    },
    /// No key on this host is waiting for a certificate.
    #[error("{} has no key for a certificate: begin with `lighter certs request`", dir.display())]
    NoKey {
        /// The folder of the certificates.
        dir: PathBuf,
    },
    /// The certificate was issued for a key that is not on this host.
    #[error(
        "the certificate is for another key than those in {}: sign the request that this host made last (`lighter certs request`)",
        dir.display()
    )]
    OtherKey {
        /// The folder of the certificates.
        dir: PathBuf,
    },
    /// The host trusts another authority.
    #[error(
        "{} is of another authority than this certificate, and hosts of two authorities do not trust each other: with \
         --replace-authority this host changes over",
        path.display()
    )]
    OtherAuthority {
        /// Path of the other authority's certificate.
        path: PathBuf,
    },
    /// The host has the key of the authority that would be replaced.
    #[error(
        "{} is the key of the authority that would be replaced: move it to a safe place first, or no host can get a \
         certificate of it any more",
        path.display()
    )]
    IsAuthority {
        /// Path of the authority's key.
        path: PathBuf,
    },
}

/// What to do if `ca.pem` does not hold the certificate's authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherAuthority {
    /// Refuse the certificate.
    Refuse,
    /// Trust the new authority in place of all that `ca.pem` holds.
    Replace,
}

/// The certificates of a host and of its authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    cert_pem: String,
    ca_pem: String,
    certificate: HostCertificate,
}

/// One change to the files of a certificates folder; each is on disk before the next begins.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Replaces a file that everyone may read.
    Public(&'static str, String),
    /// Replaces a file that only its owner may read.
    Private(&'static str, String),
    /// Removes a file.
    Remove(&'static str),
    /// Moves the pending key into place.
    Key,
}

impl Step {
    fn run(&self, dir: &Path) -> Result<(), CertError> {
        match self {
            Self::Public(name, content) => replace_public(&dir.join(name), content),
            Self::Private(name, content) => replace(&dir.join(name), content),
            Self::Remove(name) => remove(&dir.join(name)),
            Self::Key => rename(&dir.join(HOST_KEY_NEW), &dir.join(HOST_KEY)),
        }
    }
}

impl Bundle {
    /// Joins a host's certificate and the content of the authority's `ca.pem`.
    pub(super) fn new(cert_pem: &str, ca_pem: &str) -> Result<Self, BundleError> {
        Self::from_pem(&format!("{cert_pem}\n{ca_pem}"))
    }

    /// Reads the text that [`Self::to_pem`] wrote.
    ///
    /// # Errors
    /// [`BundleError`] if it holds anything but certificates, or too few.
    pub fn from_pem(pem: &str) -> Result<Self, BundleError> {
        if pem.len() as u64 > BUNDLE_BYTES_MAX {
            return Err(BundleError::TooLarge(BUNDLE_BYTES_MAX));
        }
        if pem.contains("PRIVATE KEY") {
            return Err(BundleError::HoldsKey);
        }
        let found = sections(pem, "CERTIFICATE");
        let [host, authorities @ ..] = &found[..] else { return Err(BundleError::Incomplete(0)) };
        if authorities.is_empty() {
            return Err(BundleError::Incomplete(1));
        }
        let certificate = HostCertificate::from_pem(host).map_err(|error| match error {
            TlsError::Pem { cause, .. } => BundleError::Malformed(cause.to_string()),
            TlsError::Malformed { cause } => BundleError::Malformed(cause),
            error => BundleError::Unusable(error),
        })?;
        let ca_pem = authorities.iter().map(|text| format!("{text}\n")).collect();
        Ok(Self { cert_pem: format!("{host}\n"), ca_pem, certificate })
    }

    /// Returns both certificates in PEM, the host's first.
    #[must_use]
    pub fn to_pem(&self) -> String {
        format!("{}{}", self.cert_pem, self.ca_pem)
    }

    /// Returns the host's certificate in PEM.
    #[must_use]
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Returns the content of the host's certificate.
    #[must_use]
    pub fn certificate(&self) -> &HostCertificate {
        &self.certificate
    }

    /// Returns the SHA-256 fingerprints of the authorities, which `openssl x509 -fingerprint
    /// -sha256` prints as well.
    ///
    /// # Errors
    /// [`BundleError::Unusable`].
    pub fn authorities(&self) -> Result<Vec<String>, BundleError> {
        fingerprints(&self.ca_pem).map_err(BundleError::Unusable)
    }

    /// Returns the fingerprints of those authorities that a host with the certificates in `dir`
    /// does not trust yet, and will once this certificate is installed.
    ///
    /// # Errors
    /// [`BundleError::File`] or [`BundleError::Unusable`].
    pub fn new_authorities(
        &self,
        dir: &Path,
        other: OtherAuthority,
    ) -> Result<Vec<String>, BundleError> {
        let trusted = match read_if_there(&dir.join(CA_CERT))? {
            None => Vec::new(),
            // It is kept as it is, or the certificate is refused.
            Some(_) if other == OtherAuthority::Refuse => return Ok(Vec::new()),
            // What cannot be parsed is not trusted either.
            Some(existing) => fingerprints(&existing).unwrap_or_default(),
        };
        let mut new = self.authorities()?;
        new.retain(|it| !trusted.contains(it));
        Ok(new)
    }

    /// Returns how long the certificate can be used.
    ///
    /// # Errors
    /// [`BundleError::Unusable`].
    pub fn expiry(&self) -> Result<Expiry, BundleError> {
        Expiry::new(&self.ca_pem, &self.cert_pem).map_err(BundleError::Unusable)
    }

    /// Installs the certificate and its key in `dir`, and its authority if it is not there. Calling
    /// it again finishes what a loss of power interrupted. The caller prevents concurrent calls.
    ///
    /// # Errors
    /// [`BundleError`]; unless a file cannot be written, nothing has changed then.
    pub fn install(&self, dir: &Path, other: OtherAuthority) -> Result<(), BundleError> {
        create_dir(dir)?;
        finish_install(dir)?;
        for step in self.steps(dir, other)? {
            step.run(dir)?;
        }
        Ok(())
    }

    /// Checks the certificate and returns what has to be done to install it, in this order.
    fn steps(&self, dir: &Path, other: OtherAuthority) -> Result<Vec<Step>, BundleError> {
        self.certificate.check(SystemTime::now()).map_err(|error| match error {
            TlsError::Expired { until } => BundleError::Expired { until },
            error => BundleError::Unusable(error),
        })?;
        check_chain(&self.ca_pem, &self.cert_pem).map_err(BundleError::Unusable)?;
        let (key, key_pem) = self.key(dir)?;
        let authority = self.authority(dir, other)?;
        let lists = read_if_there(&dir.join(CRL))?;
        let kept = match &lists {
            Some(lists) if authority.last.is_some() => self.kept_lists(lists)?,
            lists => lists.clone(),
        };
        let identity = Identity {
            ca_pem: authority.result,
            cert_pem: self.cert_pem.clone(),
            key_pem,
            crl_pem: kept.clone(),
        };
        Tls::new(&identity).map_err(BundleError::Unusable)?;

        let mut steps = Vec::new();
        steps.extend(authority.first.map(|pem| Step::Public(CA_CERT, pem)));
        steps.push(Step::Public(HOST_CERT, self.cert_pem.clone()));
        steps.extend((key == HOST_KEY_NEW).then_some(Step::Key));
        if kept != lists {
            steps.push(kept.map_or(Step::Remove(CRL), |kept| Step::Private(CRL, kept)));
        }
        steps.extend(authority.last.map(|pem| Step::Public(CA_CERT, pem)));
        Ok(steps)
    }

    /// Returns the name and content of the file in `dir` that holds this certificate's key.
    fn key(&self, dir: &Path) -> Result<(&'static str, String), BundleError> {
        let mut error = BundleError::NoKey { dir: dir.to_owned() };
        for name in [HOST_KEY_NEW, HOST_KEY] {
            let Some(pem) = read_if_there(&dir.join(name))? else { continue };
            match check_key(&self.cert_pem, &pem) {
                Ok(()) => return Ok((name, pem)),
                Err(TlsError::OtherKey) => error = BundleError::OtherKey { dir: dir.to_owned() },
                Err(cause) => {
                    let (path, cause) = (dir.join(name), cause.to_string());
                    error = BundleError::File(CertError::NotAKey { path, cause });
                }
            }
        }
        Err(error)
    }

    /// Returns how `ca.pem` in `dir` has to change.
    fn authority(&self, dir: &Path, other: OtherAuthority) -> Result<Change, BundleError> {
        let path = dir.join(CA_CERT);
        let own = self.ca_pem.clone();
        let Some(existing) = read_if_there(&path)? else {
            return Ok(Change { first: Some(own.clone()), last: None, result: own });
        };
        if existing == own {
            return Ok(Change { first: None, last: None, result: own });
        }
        if other == OtherAuthority::Refuse {
            return match check_chain(&existing, &self.cert_pem) {
                Ok(()) => Ok(Change { first: None, last: None, result: existing }),
                Err(TlsError::OtherAuthority) => Err(BundleError::OtherAuthority { path }),
                Err(error) => Err(BundleError::Unusable(error)),
            };
        }
        let key = dir.join(CA_KEY);
        if is_there(&key) {
            return Err(BundleError::IsAuthority { path: key });
        }
        // The old certificate stays usable until the new one is in place.
        let both = format!("{own}{existing}");
        if both.len() as u64 > PEM_BYTES_MAX {
            return Err(BundleError::TooLarge(PEM_BYTES_MAX));
        }
        let is_trusted = check_chain(&existing, &self.cert_pem).is_ok();
        let first = if is_trusted { None } else { Some(both) };
        Ok(Change { first, last: Some(own.clone()), result: own })
    }

    /// Returns those of the lists in `crl.pem` that an authority of this bundle has made: others
    /// would be an error. None if there are none.
    fn kept_lists(&self, lists: &str) -> Result<Option<String>, BundleError> {
        let mut kept = String::new();
        for text in texts(lists) {
            match checked(text, &self.ca_pem) {
                Ok(_) => kept.push_str(&format!("{text}\n")),
                Err(ListError::OtherAuthority { .. }) => {}
                Err(error) => return Err(BundleError::Unusable(TlsError::Revocation(error))),
            }
        }
        Ok(if kept.is_empty() { None } else { Some(kept) })
    }
}

/// How `ca.pem` changes.
struct Change {
    /// Its content before the certificate is replaced, if it changes then.
    first: Option<String>,
    /// Its content after that, if it changes again.
    last: Option<String>,
    /// Its content in the end.
    result: String,
}
