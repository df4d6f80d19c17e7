//! The content of a host's certificate: its names and its validity; and why it cannot be used.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::server::VerifierBuilderError;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, pem};
use uuid::Uuid;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;
use x509_parser::time::ASN1Time;

use super::files::{CertError, HOST_CERT, read};
use super::lists::ListError;

/// Certificates are valid from this long before they are made, for hosts whose clocks differ.
pub(super) const CLOCK_GRACE: Duration = Duration::from_hours(24);

/// Why a host's certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file does not exist or cannot be read.
    #[error("{}", unreadable(.0))]
    Read(CertError),
    /// The host has requested its first certificate, and not installed it yet.
    #[error(
        "this host has no certificate yet: sign the request that it made where the authority is (`lighter certs sign`), and \
         install the result here (`lighter certs install`)"
    )]
    Requested,
    /// A file is not PEM, or has no section of the expected kind.
    #[error("{what} is not usable: {cause}")]
    Pem {
        /// The file's role.
        what: &'static str,
        /// The parser's error.
        cause: pem::Error,
    },
    /// The host's certificate is not a valid certificate.
    #[error("the host certificate, host.pem, is not usable: {cause}")]
    Malformed {
        /// The parser's error.
        cause: String,
    },
    /// The host's private key cannot be used.
    #[error("the host's private key, host.key, is not usable: {cause}")]
    BadKey {
        /// The library's error.
        cause: rustls::Error,
    },
    /// The host's private key belongs to another certificate.
    #[error(
        "host.key is not the key of this host's certificate, host.pem: put the key there that came with it, or make both \
         again with `lighter certs renew`"
    )]
    OtherKey,
    /// The authority's certificate cannot be used.
    #[error("the authority's certificate, ca.pem, is not usable: {cause}")]
    BadAuthority {
        /// The library's error.
        cause: rustls::Error,
    },
    /// The host's certificate has expired.
    #[error("this host's certificate expired at {until}: replace it with `lighter certs renew`")]
    Expired {
        /// The end of its validity.
        until: String,
    },
    /// The host's certificate is not valid yet.
    #[error("this host's certificate is not valid before {from}: check this host's clock")]
    NotYetValid {
        /// The start of its validity.
        from: String,
    },
    /// The host's certificate was issued by another authority.
    #[error(
        "this host's certificate was not issued by the authority in ca.pem, and every host would refuse it: put the ca.pem here \
         that came with it, or get a new certificate: `lighter certs request` here, `lighter certs sign` where that authority is"
    )]
    OtherAuthority,
    /// Other hosts would refuse the host's certificate.
    #[error("other hosts would refuse this host's certificate: {cause}")]
    Unfit {
        /// The reason that they would give.
        cause: rustls::Error,
    },
    /// Certificate and key do not belong together, or the authority is not one.
    #[error("the host certificate and its authority cannot be used: {0}")]
    Config(rustls::Error),
    /// The list of revoked certificates cannot be read.
    #[error("{0}; no migration begins until it can be read or is removed")]
    ReadList(CertError),
    /// The list of revoked certificates cannot be used.
    #[error("the list of revoked certificates, crl.pem, cannot be used: {0}")]
    Revocation(ListError),
    /// No certificate can be made for the process of a guest.
    #[error("cannot make a certificate for the process of guest {guest}: {cause}")]
    Guest {
        /// The guest's identity.
        guest: Uuid,
        /// The library's error.
        cause: rcgen::Error,
    },
    /// The authority cannot verify peers.
    #[error("the authority's certificate cannot verify peers: {0}")]
    Verifier(VerifierBuilderError),
}

/// Describes an error of reading a host's certificates, and what to do.
fn unreadable(error: &CertError) -> String {
    let way_out = match error {
        CertError::File { cause, .. } if cause.kind() == io::ErrorKind::NotFound => {
            "; on the first host `lighter certs init` makes the certificates, on any other host begin with `lighter certs request`"
        }
        CertError::File { cause, .. } if cause.kind() == io::ErrorKind::PermissionDenied => {
            "; only the owner of the state folder may read its certificates"
        }
        _ => "",
    };
    format!("{error}{way_out}")
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        Self::Config(error)
    }
}

impl From<VerifierBuilderError> for TlsError {
    fn from(error: VerifierBuilderError) -> Self {
        match error {
            VerifierBuilderError::InvalidCrl(cause) => {
                Self::Revocation(ListError::Unsupported(format!("{cause:?}")))
            }
            error => Self::Verifier(error),
        }
    }
}

/// The parts of a host's certificate that users need. It is not verified: TLS does that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostCertificate {
    /// Serial number, unique among the certificates of its authority, in hexadecimal digits.
    pub serial: String,
    /// DNS names and IP addresses under which the host may be reached.
    pub names: Vec<String>,
    /// Start of its validity, in seconds since 1970.
    pub valid_from_unix_s: i64,
    /// End of its validity, in seconds since 1970.
    pub valid_until_unix_s: i64,
}

impl HostCertificate {
    /// Reads `host.pem` from `dir`.
    ///
    /// # Errors
    /// [`TlsError::Read`], [`TlsError::Pem`] or [`TlsError::Malformed`].
    pub fn load(dir: &Path) -> Result<Self, TlsError> {
        Self::from_pem(&read(&dir.join(HOST_CERT)).map_err(TlsError::Read)?)
    }

    /// Reads the first certificate in `pem`.
    ///
    /// # Errors
    /// [`TlsError::Pem`] or [`TlsError::Malformed`].
    pub fn from_pem(pem: &str) -> Result<Self, TlsError> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|cause| TlsError::Pem { what: "the host certificate, host.pem,", cause })?;
        Self::from_der(&der)
    }

    pub(super) fn from_der(der: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let malformed = |cause: String| TlsError::Malformed { cause };
        let (_, certificate) =
            parse_x509_certificate(der).map_err(|error| malformed(error.to_string()))?;
        let validity = certificate.validity();
        Ok(Self {
            serial: certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
            names: names(&certificate).map_err(malformed)?,
            valid_from_unix_s: validity.not_before.timestamp(),
            valid_until_unix_s: validity.not_after.timestamp(),
        })
    }

    /// Checks that the certificate is valid at `now`.
    ///
    /// # Errors
    /// [`TlsError::Expired`] or [`TlsError::NotYetValid`].
    pub fn check(&self, now: SystemTime) -> Result<(), TlsError> {
        let now = unix_s(now);
        if now > self.valid_until_unix_s {
            return Err(TlsError::Expired { until: calendar_time(self.valid_until_unix_s) });
        }
        if now < self.valid_from_unix_s {
            return Err(TlsError::NotYetValid { from: calendar_time(self.valid_from_unix_s) });
        }
        Ok(())
    }

    /// Returns whether the certificate is valid for `host`, a DNS name or an IP address.
    #[must_use]
    pub fn is_for(&self, host: &str) -> bool {
        let address = |name: &str| name.parse::<IpAddr>().map(|address| address.to_canonical());
        let host = host.trim_start_matches('[').trim_end_matches([']', '.']);
        self.names.iter().any(|name| match (address(name), address(host)) {
            (Ok(name), Ok(host)) => name == host,
            _ => name.eq_ignore_ascii_case(host),
        })
    }
}

/// Returns a time in seconds since 1970; zero for an earlier one.
pub(super) fn unix_s(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Returns the names in the certificate's subjectAltName (RFC 5280 §4.2.1.6).
fn names(certificate: &X509Certificate<'_>) -> Result<Vec<String>, String> {
    let listed = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
    let listed = listed.iter().flat_map(|extension| &extension.value.general_names);
    Ok(listed.filter_map(name).collect())
}

/// Returns a DNS name or an IP address; none for a name of another kind.
pub(super) fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
        _ => None,
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into());
    v4().or_else(|| Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()))
}

/// Returns the name of the guest `guest` in its process's certificate (RFC 9562 §4).
pub(super) fn guest_uri(guest: Uuid) -> String {
    guest.urn().to_string()
}

/// Returns the guest whose process presents the certificate `der`; none for a host's certificate.
pub(super) fn guest_of(der: &CertificateDer<'_>) -> Option<Uuid> {
    let (_, certificate) = parse_x509_certificate(der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix("urn:uuid:")?.parse().ok(),
        _ => None,
    })
}

/// Returns when the certificate `der` was made, by its issuer's clock: its validity starts
/// [`CLOCK_GRACE`] earlier.
pub(super) fn issued_at(der: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, certificate) = parse_x509_certificate(der).ok()?;
    let valid_from = u64::try_from(certificate.validity().not_before.timestamp()).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(valid_from) + CLOCK_GRACE)
}

/// Returns whether `name` is valid in a certificate: a DNS name or an IP address.
pub(super) fn is_host_name(name: &str) -> bool {
    ServerName::try_from(name).is_ok()
}

/// Returns whether `name` is an address that no host has for itself: unspecified, multicast or
/// broadcast.
pub(super) fn is_shared_address(name: &str) -> bool {
    let Ok(address) = name.parse::<IpAddr>() else { return false };
    let address = address.to_canonical();
    let is_broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    address.is_unspecified() || address.is_multicast() || is_broadcast
}

/// Formats a time in seconds since 1970: `2029-02-22 12:30:00 UTC`.
pub fn calendar_time(unix_s: i64) -> String {
    match ASN1Time::from_timestamp(unix_s) {
        Ok(time) => {
            let time = time.to_datetime();
            let (date, (hour, minute, second)) = (time.date(), time.to_hms());
            format!("{date} {hour:02}:{minute:02}:{second:02} UTC")
        }
        Err(_) => format!("{unix_s} s after 1970"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::authority::Authority;
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    #[test]
    fn reads_names_and_times() {
        let names = ["host-a.example", "192.0.2.5", "2001:db8::5"].map(str::to_owned);
        let identity = Authority::create().unwrap().issue(&names).unwrap();
        let certificate = HostCertificate::from_pem(&identity.cert_pem).unwrap();
        assert_eq!(certificate.names, names);
        let seconds = certificate.valid_until_unix_s - certificate.valid_from_unix_s;
        assert_eq!(seconds, 826 * DAY.as_secs() as i64);
        assert_eq!(calendar_time(1_867_494_600), "2029-03-06 12:30:00 UTC");
    }

    #[test]
    fn reads_when_a_certificate_was_issued() {
        let before = SystemTime::now() - Duration::from_secs(1);
        let identity = Authority::create().unwrap().issue(&["host-a".to_owned()]).unwrap();
        let der = CertificateDer::from_pem_slice(identity.cert_pem.as_bytes()).unwrap();
        let issued = issued_at(&der).unwrap();
        assert!((before..=SystemTime::now()).contains(&issued), "{issued:?}");
    }

    #[test]
    fn names_match_whatever_their_case_and_addresses_whatever_their_spelling() {
        let names = ["Host-A.example", "192.0.2.5", "2001:db8::5"].map(str::to_owned);
        let identity = Authority::create().unwrap().issue(&names).unwrap();
        let certificate = HostCertificate::from_pem(&identity.cert_pem).unwrap();
        for own in [
            "host-a.EXAMPLE",
            "host-a.example.",
            "192.0.2.5",
            "::ffff:192.0.2.5",
            "2001:DB8:0:0::5",
            "[2001:db8::5]",
        ] {
            assert!(certificate.is_for(own), "{own}");
        }
        for other in ["host-a", "192.0.2.50", "2001:db8::50", "", "."] {
            assert!(!certificate.is_for(other), "{other}");
        }
    }

    #[test]
    fn a_list_that_rustls_rejects_is_named() {
        let cause = rustls::CertRevocationListError::UnsupportedDeltaCrl;
        let error = TlsError::from(VerifierBuilderError::InvalidCrl(cause)).to_string();
        assert!(error.contains("crl.pem") && error.contains("UnsupportedDeltaCrl"), "{error}");
    }

    #[test]
    fn is_valid_between_its_times_only() {
        let identity = Authority::create().unwrap().issue(&["a".into()]).unwrap();
        let certificate = HostCertificate::from_pem(&identity.cert_pem).unwrap();
        let now = SystemTime::now();
        certificate.check(now).unwrap();
        let expired = certificate.check(now + 826 * DAY).unwrap_err().to_string();
        assert!(expired.contains("expired at") && expired.contains("lighter certs"), "{expired}");
        let early = certificate.check(now - 2 * DAY).unwrap_err().to_string();
        assert!(early.contains("not valid before") && early.contains("clock"), "{early}");
    }

    #[test]
    fn other_files_are_refused_as_certificates() {
        let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let refused = HostCertificate::from_pem(pem);
        assert!(matches!(refused, Err(TlsError::Malformed { .. })), "{refused:?}");
        assert!(matches!(HostCertificate::from_pem("nothing"), Err(TlsError::Pem { .. })));
    }

    #[test]
    fn a_host_name_is_a_dns_name_or_an_address() {
        for good in ["host-b", "a.example.net", "under_score", "192.0.2.7", "2001:db8::7"] {
            assert!(is_host_name(good), "{good}");
        }
        for bad in ["bad name", "", "a..b", "host:4950", "https://a", "ä", "fe80::1%eth0", "-a"] {
            assert!(!is_host_name(bad), "{bad}");
        }
    }

    #[test]
    fn addresses_that_are_not_of_one_host_are_told_from_others() {
        for shared in ["0.0.0.0", "::", "::ffff:0.0.0.0", "224.0.0.1", "ff02::1", "255.255.255.255"]
        {
            assert!(is_shared_address(shared), "{shared}");
        }
        for own in ["192.0.2.7", "2001:db8::7", "fe80::1", "127.0.0.1", "::1", "host-b"] {
            assert!(!is_shared_address(own), "{own}");
        }
    }
}
