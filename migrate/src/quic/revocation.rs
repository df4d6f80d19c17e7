//! Certificates that an authority revokes before they expire: making the lists.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::parse_x509_certificate;

use super::authority::{Authority, CA_DAYS, DAY};
use super::certificate::HostCertificate;
use super::files::{CA_CERT, CRL, CertError, PEM_BYTES_MAX, read_if_there, replace};
use super::issued::{Issued, record_revoked, revoked};
use super::lists::{ListError, checked, parse, sections, texts, verify};

#[cfg(test)]
mod tests;

/// Most certificates that an authority can have revoked. Each takes about 40 bytes of the file that
/// all hosts read.
const REVOKED_MAX: usize = 10_000;

/// Why certificates cannot be revoked.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// A file cannot be read or written.
    #[error("{0}")]
    File(CertError),
    /// A certificate cannot be parsed.
    #[error("the certificate is not usable: {0}")]
    Malformed(String),
    /// The existing list cannot be used.
    #[error(
        "cannot add to {}: {cause}. If it is removed, a new list is made from the records in issued/",
        path.display()
    )]
    List {
        /// Path of the list, `crl.pem` in the authority's folder.
        path: PathBuf,
        /// What is wrong with the list.
        cause: ListError,
    },
    /// Another authority has issued the certificate.
    #[error("the certificate was not issued by this authority, which cannot revoke it")]
    OtherAuthority,
    /// The certificate is the authority's own.
    #[error("this is the authority's own certificate: remove it from ca.pem on all hosts instead")]
    OwnCertificate,
    /// The list is full.
    #[error(
        "{REVOKED_MAX} certificates have been revoked, and no more can be: make a new authority"
    )]
    Full,
    /// The file would be too large for any host to read.
    #[error("crl.pem would be larger than {PEM_BYTES_MAX} bytes: remove other authorities' lists")]
    TooLarge,
    /// The list cannot be signed.
    #[error("cannot sign the list of revoked certificates: {0}")]
    Sign(rcgen::Error),
}

/// The result of [`Authority::revoke`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// Certificates revoked by this call.
    pub done: Vec<HostCertificate>,
    /// Certificates that had been revoked before.
    pub before: Vec<HostCertificate>,
    /// Path of the list, to be copied to all other hosts.
    pub list: PathBuf,
}

/// Returns the serial of a certificate issued by the authority with the name `own`.
fn serial(pem: &str, own: &[u8]) -> Result<Vec<u8>, RevokeError> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| RevokeError::Malformed(error.to_string()))?;
    let (_, certificate) =
        parse_x509_certificate(&der).map_err(|error| RevokeError::Malformed(error.to_string()))?;
    if certificate.issuer().as_raw() != own {
        return Err(RevokeError::OtherAuthority);
    }
    if certificate.subject().as_raw() == own {
        return Err(RevokeError::OwnCertificate);
    }
    Ok(certificate.raw_serial().to_vec())
}

/// The revocations that an authority knows of.
#[derive(Debug, Default)]
struct Known {
    /// Number of its last list.
    number: u64,
    /// When each serial was revoked, in seconds since 1970.
    revoked: BTreeMap<Vec<u8>, i64>,
    /// Lists of other authorities, in PEM.
    others: Vec<String>,
}

impl Known {
    /// Reads the lists in `pem` for the authority `own`, in PEM, with the name `subject`.
    fn read(pem: &str, own: &str, subject: &[u8]) -> Result<Self, ListError> {
        let mut known = Self::default();
        for (der, text) in sections(pem)?.iter().zip(texts(pem)) {
            let list = parse(der)?;
            if list.issuer().as_raw() != subject {
                known.others.push(format!("{text}\n"));
                continue;
            }
            verify(&list, own)?;
            let number = list.crl_number().and_then(|number| u64::try_from(number).ok());
            known.number = number.unwrap_or(0).max(known.number);
            for revoked in list.iter_revoked_certificates() {
                known.add(revoked.raw_serial(), revoked.revocation_date.timestamp());
            }
        }
        Ok(known)
    }

    /// Adds a serial; returns whether it was not revoked before.
    fn add(&mut self, serial: &[u8], at_s: i64) -> bool {
        match self.revoked.entry(serial.to_vec()) {
            Entry::Occupied(_) => false,
            Entry::Vacant(place) => {
                place.insert(at_s);
                true
            }
        }
    }
}

impl Authority {
    /// Revokes `certificates`: adds them to the list in `dir`, the authority's folder, and to its
    /// records. A lost list is made again from the records; lists of other authorities in the file
    /// are kept. The caller prevents concurrent calls.
    ///
    /// # Errors
    /// [`RevokeError`]; except for [`RevokeError::File`], nothing has been written then.
    pub fn revoke(&self, dir: &Path, certificates: &[Issued]) -> Result<Revocation, RevokeError> {
        let own = self.subject().map_err(RevokeError::Malformed)?;
        let path = dir.join(CRL);
        let mut known = match read_if_there(&path).map_err(RevokeError::File)? {
            None => Known::default(),
            Some(lists) => Known::read(&lists, self.cert_pem(), &own)
                .map_err(|cause| RevokeError::List { path: path.clone(), cause })?,
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_s = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let recorded = revoked(dir).map_err(RevokeError::File)?;
        for (serial, at_s) in &recorded {
            known.add(serial, at_s.unwrap_or(now_s));
        }
        let (mut done, mut before) = (Vec::new(), Vec::new());
        for issued in certificates {
            let is_new = known.add(&serial(&issued.pem, &own)?, now_s);
            if is_new { &mut done } else { &mut before }.push(issued.certificate.clone());
        }
        let list = self.list(&known, now)?;
        // A list that no host can use must not replace the one that they have.
        if let Some(authorities) = read_if_there(&dir.join(CA_CERT)).map_err(RevokeError::File)? {
            checked(&list, &authorities)
                .map_err(|cause| RevokeError::List { path: path.clone(), cause })?;
        }
        // The records first: if the list is not written, the next one is made from them.
        for (serial, at_s) in known.revoked.iter().filter(|it| !recorded.contains_key(it.0)) {
            record_revoked(dir, serial, *at_s).map_err(RevokeError::File)?;
        }
        replace(&path, &list).map_err(RevokeError::File)?;
        Ok(Revocation { done, before, list: path })
    }

    /// Returns the text of `crl.pem` for the known revocations.
    fn list(&self, known: &Known, now: Duration) -> Result<String, RevokeError> {
        if known.revoked.len() > REVOKED_MAX {
            return Err(RevokeError::Full);
        }
        let epoch = date_time_ymd(1970, 1, 1);
        let revoked_certs = known.revoked.iter().map(|(serial, at_s)| RevokedCertParams {
            serial_number: SerialNumber::from(serial.clone()),
            revocation_time: epoch + Duration::from_secs((*at_s).max(0).cast_unsigned()),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: epoch + now,
            // Hosts use a list until it is replaced; other programs may want a new one by that
            // time.
            next_update: epoch + now + DAY * CA_DAYS,
            crl_number: SerialNumber::from(known.number.saturating_add(1)),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let signed = list.signed_by(self.issuer()).map_err(RevokeError::Sign)?;
        let mut text = signed.pem().map_err(RevokeError::Sign)?;
        for other in &known.others {
            text.push_str(other);
        }
        if text.len() as u64 > PEM_BYTES_MAX {
            return Err(RevokeError::TooLarge);
        }
        Ok(text)
    }
}
