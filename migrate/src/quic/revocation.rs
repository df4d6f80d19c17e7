//! Certificates that are no longer good though their time is not over: the authority's list of them (RFC 5280 §5).

use std::time::{SystemTime, UNIX_EPOCH};

use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::parse_x509_certificate;
use x509_parser::parse_x509_crl;

use super::authority::{Authority, CA_DAYS, DAY};
use super::certificate::TlsError;

/// Most certificates that an authority can have revoked. Each takes some 40 bytes of the file that all hosts read.
const REVOKED_MAX: usize = 10_000;

/// Why certificates cannot be revoked.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// A certificate, or the list, is not one.
    #[error("{what} is not usable: {cause}")]
    Malformed {
        /// Which one.
        what: &'static str,
        /// What the parser said.
        cause: String,
    },
    /// Another authority has issued it.
    #[error("the certificate was not issued by this authority, which cannot revoke it")]
    OtherAuthority,
    /// The list is full.
    #[error(
        "{REVOKED_MAX} certificates have been revoked, and no more can be: make a new authority"
    )]
    Full,
    /// The list cannot be signed.
    #[error("cannot sign the list of revoked certificates: {0}")]
    Sign(rcgen::Error),
}

/// The lists in `pem`, of one authority or several.
pub(super) fn lists(pem: &str) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    CertificateRevocationListDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(
        |cause| TlsError::Pem { what: "the list of revoked certificates, crl.pem,", cause },
    )
}

/// The number of a certificate that `authority` has issued.
fn serial(pem: &str, authority: &[u8]) -> Result<Vec<u8>, RevokeError> {
    let malformed = |cause: String| RevokeError::Malformed { what: "the certificate", cause };
    let der = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| malformed(error.to_string()))?;
    let (_, certificate) =
        parse_x509_certificate(&der).map_err(|error| malformed(error.to_string()))?;
    if certificate.issuer().as_raw() != authority {
        return Err(RevokeError::OtherAuthority);
    }
    Ok(certificate.raw_serial().to_vec())
}

/// What a list of `authority` among `lists` says: its number, and what it has revoked when.
type Known = (u64, Vec<(Vec<u8>, i64)>);

fn known(lists: &str, authority: &[u8]) -> Result<Known, RevokeError> {
    let malformed = |cause: String| RevokeError::Malformed { what: "crl.pem", cause };
    let mut known = (0, Vec::new());
    for list in CertificateRevocationListDer::pem_slice_iter(lists.as_bytes()) {
        let list = list.map_err(|error| malformed(error.to_string()))?;
        let (_, list) = parse_x509_crl(&list).map_err(|error| malformed(error.to_string()))?;
        if list.issuer().as_raw() != authority {
            let cause =
                "it holds a list of another authority: keep that one in a crl.pem of its own";
            return Err(malformed(cause.to_owned()));
        }
        let number = list.crl_number().and_then(|number| u64::try_from(number).ok());
        known.0 = number.unwrap_or(0).max(known.0);
        known.1.extend(
            list.iter_revoked_certificates().map(|revoked| {
                (revoked.raw_serial().to_vec(), revoked.revocation_date.timestamp())
            }),
        );
    }
    Ok(known)
}

impl Authority {
    /// Adds `certificates`, each in PEM, to what is revoked by `lists`, which is the text of `crl.pem` or nothing. Returns its new text.
    ///
    /// # Errors
    /// [`RevokeError`].
    pub fn revoke(&self, lists: &str, certificates: &[String]) -> Result<String, RevokeError> {
        let own =
            self.subject().map_err(|cause| RevokeError::Malformed { what: "ca.pem", cause })?;
        let (number, mut revoked) = known(lists, &own)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_s = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        for certificate in certificates {
            let serial = serial(certificate, &own)?;
            if !revoked.iter().any(|(known, _)| *known == serial) {
                revoked.push((serial, now_s));
            }
        }
        if revoked.len() > REVOKED_MAX {
            return Err(RevokeError::Full);
        }
        let epoch = date_time_ymd(1970, 1, 1);
        let revoked_certs = revoked.into_iter().map(|(serial, at_s)| RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: epoch + std::time::Duration::from_secs(at_s.max(0).cast_unsigned()),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: epoch + now,
            // Its hosts take a list for good as long as there is no other.
            next_update: epoch + now + DAY * CA_DAYS,
            crl_number: SerialNumber::from(number + 1),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let signed = list.signed_by(self.issuer()).map_err(RevokeError::Sign)?;
        signed.pem().map_err(RevokeError::Sign)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quic::{Identity, LinkError, Tls};

    fn with_list(identity: &Identity, crl_pem: &str) -> Identity {
        Identity { crl_pem: crl_pem.to_owned(), ..identity.clone() }
    }

    /// Whether a host that listens and one that connects let each other in.
    async fn meet(listening: &Identity, connecting: &Identity) -> Result<(), LinkError> {
        use super::super::endpoint::{Peer, connect, dialer, listen};
        let listener =
            listen("127.0.0.1:0".parse().unwrap(), &Tls::new(listening).unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let dialer = dialer(address, &Tls::new(connecting).unwrap()).unwrap();
        let peer = Peer { address, name: "127.0.0.1".into() };
        let accept = async { listener.accept().await.unwrap().await };
        let (near, far) = tokio::join!(connect(&dialer, &peer), accept);
        let near = near?;
        far.map_err(|error| LinkError::explain(&error, address, &peer.name))?;
        drop(near);
        Ok(())
    }

    #[tokio::test]
    async fn a_host_whose_certificate_is_revoked_is_met_by_nobody_who_has_heard() {
        let authority = Authority::create().unwrap();
        let [a, b] = [(); 2].map(|()| authority.issue(&["127.0.0.1".into()]).unwrap());
        let list = authority.revoke("", std::slice::from_ref(&b.cert_pem)).unwrap();
        let a = with_list(&a, &list);
        meet(&a, &a).await.unwrap();
        let error = meet(&a, &b).await.unwrap_err().to_string();
        assert!(error.contains("revoked"), "{error}");
        let error = meet(&b, &a).await.unwrap_err().to_string();
        assert!(error.contains("revoked"), "{error}");
        meet(&b, &b).await.unwrap();
    }

    #[tokio::test]
    async fn the_process_of_a_guest_falls_with_its_host() {
        use crate::report::Role;
        let authority = Authority::create().unwrap();
        let [a, b] = [(); 2].map(|()| authority.issue(&["127.0.0.1".into()]).unwrap());
        let of_guest = b.vouch_for(uuid::Uuid::new_v4(), Role::Source).unwrap();
        meet(&a, &of_guest).await.unwrap();
        let list = authority.revoke("", &[b.cert_pem]).unwrap();
        meet(&with_list(&a, &list), &of_guest).await.unwrap_err();
    }

    #[test]
    fn what_was_revoked_stays_so_and_other_authorities_certificates_are_refused() {
        let (authority, other) = (Authority::create().unwrap(), Authority::create().unwrap());
        let issue = || authority.issue(&["a".into()]).unwrap().cert_pem;
        let [first, second] = [issue(), issue()];
        let list = authority.revoke("", std::slice::from_ref(&first)).unwrap();
        let list = authority.revoke(&list, &[second, first]).unwrap();
        let (number, revoked) = known(&list, &authority.subject().unwrap()).unwrap();
        assert_eq!((number, revoked.len()), (2, 2));
        let foreign = other.issue(&["a".into()]).unwrap().cert_pem;
        assert!(matches!(authority.revoke("", &[foreign]), Err(RevokeError::OtherAuthority)));
        assert!(other.revoke(&list, &[]).is_err(), "another's list is not replaced");
        for bad in ["", "nothing"] {
            let refused = authority.revoke("", &[bad.to_owned()]);
            assert!(matches!(refused, Err(RevokeError::Malformed { .. })), "{refused:?}");
        }
    }

    #[test]
    fn a_list_that_is_damaged_is_not_passed_over() {
        let identity = Authority::create().unwrap().issue(&["a".into()]).unwrap();
        let damaged = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
        for crl_pem in [damaged, "-----BEGIN X509 CRL-----\n!"] {
            assert!(Tls::new(&with_list(&identity, crl_pem)).is_err(), "{crl_pem}");
        }
    }
}
