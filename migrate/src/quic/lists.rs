//! Lists of certificates revoked before they expire (RFC 5280 §5), checked when they are read.

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, pem};
use x509_parser::oid_registry::OID_X509_EXT_ISSUER_DISTRIBUTION_POINT;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::{parse_x509_certificate, parse_x509_crl};

use super::files;

/// Why the lists in a `crl.pem` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The file holds no list.
    #[error("it holds no list: copy it again, or remove it if nothing is revoked")]
    Empty,
    /// It is not PEM.
    #[error("{0}; copy it again")]
    Pem(pem::Error),
    /// A list, or an authority that may have made it, cannot be parsed.
    #[error("{0}; copy it again")]
    Malformed(String),
    /// The list covers only some certificates; rustls would ignore the others without an error.
    #[error(
        "the list of the authority {authority} is for some of its certificates only (issuingDistributionPoint): put a list of all here"
    )]
    Partial {
        /// Name of the authority.
        authority: String,
    },
    /// rustls does not support such a list.
    #[error("{0}: put a complete list of version 2 here, with a time for the next update")]
    Unsupported(String),
    /// The file holds two lists of one authority, of which only one would be used.
    #[error("it holds two lists of the authority {authority}: keep the one that was made last")]
    Twice {
        /// Name of the authority.
        authority: String,
    },
    /// A list is of an authority that is not trusted here, so it has no effect.
    #[error(
        "it holds a list of the authority {authority}, which is not in ca.pem: remove that list, or add the authority to ca.pem"
    )]
    OtherAuthority {
        /// Name of the authority.
        authority: String,
    },
    /// The authority may not sign lists, so TLS would refuse every certificate of that authority
    /// (RFC 5280 §4.2.1.3).
    #[error(
        "the authority {authority} may not sign lists (its keyUsage has no cRLSign): remove its list; nothing that it has \
         issued can be revoked"
    )]
    NoSigner {
        /// Name of the authority.
        authority: String,
    },
    /// A list is signed with another key, or was changed after it was signed.
    #[error(
        "the list of the authority {authority} is not signed with that authority's key: copy it again"
    )]
    Signature {
        /// Name of the authority.
        authority: String,
    },
}

/// Returns the lists in the PEM text `lists`, after checking that each takes effect: it is signed
/// by one of `authorities`, in PEM, and is the only list of that authority.
///
/// # Errors
/// If a list would have no effect or cannot be used; [`ListError`] says why.
pub(super) fn checked(
    lists: &str,
    authorities: &str,
) -> Result<Vec<CertificateRevocationListDer<'static>>, ListError> {
    let lists = sections(lists)?;
    let mut issuers = Vec::new();
    for der in &lists {
        let list = parse(der)?;
        let issuer = list.issuer().as_raw().to_vec();
        if issuers.contains(&issuer) {
            return Err(ListError::Twice { authority: list.issuer().to_string() });
        }
        verify(&list, authorities)?;
        if list.extensions().iter().any(|it| it.oid == OID_X509_EXT_ISSUER_DISTRIBUTION_POINT) {
            return Err(ListError::Partial { authority: list.issuer().to_string() });
        }
        issuers.push(issuer);
    }
    Ok(lists)
}

/// Returns the lists in `pem`; at least one.
pub(super) fn sections(pem: &str) -> Result<Vec<CertificateRevocationListDer<'static>>, ListError> {
    let found: Vec<_> = CertificateRevocationListDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(ListError::Pem)?;
    if found.is_empty() { Err(ListError::Empty) } else { Ok(found) }
}

/// Returns the text of each list in `pem`, which [`sections`] has accepted.
pub(super) fn texts(pem: &str) -> Vec<&str> {
    files::sections(pem, "X509 CRL")
}

pub(super) fn parse(der: &[u8]) -> Result<CertificateRevocationList<'_>, ListError> {
    let parsed = parse_x509_crl(der).map_err(|error| ListError::Malformed(error.to_string()))?;
    Ok(parsed.1)
}

/// Checks that `list` is signed by the authority among `authorities`, in PEM, whose name it has. If
/// several have that name, all must have signed it: rustls applies a list to each of them.
pub(super) fn verify(
    list: &CertificateRevocationList<'_>,
    authorities: &str,
) -> Result<(), ListError> {
    let name = || list.issuer().to_string();
    let mut is_known = false;
    for der in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
        let der = der.map_err(ListError::Pem)?;
        let parsed = parse_x509_certificate(&der);
        let (_, authority) = parsed.map_err(|error| ListError::Malformed(error.to_string()))?;
        if authority.subject().as_raw() == list.issuer().as_raw() {
            is_known = true;
            let usage = authority.key_usage();
            let usage = usage.map_err(|error| ListError::Malformed(error.to_string()))?;
            if usage.is_some_and(|usage| !usage.value.crl_sign()) {
                return Err(ListError::NoSigner { authority: name() });
            }
            list.verify_signature(authority.public_key())
                .map_err(|_| ListError::Signature { authority: name() })?;
        }
    }
    if is_known { Ok(()) } else { Err(ListError::OtherAuthority { authority: name() }) }
}
