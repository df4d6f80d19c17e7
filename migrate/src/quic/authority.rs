//! The certificate authority of a fleet, and the certificates of its hosts.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SerialNumber, date_time_ymd,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use uuid::Uuid;
use x509_parser::certificate::X509Certificate;
use x509_parser::parse_x509_certificate;

use super::certificate::{CLOCK_GRACE, calendar_time, is_host_name, is_shared_address, unix_s};
use super::files::{
    CA_CERT, CA_KEY, CertError, HOST_CERT, ISSUED, create_dir, is_there, read, read_if_there,
    refuse_existing, replace, replace_public,
};
use super::identity::Identity;

pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Validity of an authority's certificate, in days.
pub(super) const CA_DAYS: u32 = 3650;
/// Validity of a host's certificate, in days: a little over two years.
const HOST_DAYS: u32 = 825;

/// A certificate authority: the fleet's root of trust.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    cert_pem: String,
    /// End of its validity, in seconds since 1970.
    valid_until_unix_s: i64,
}

impl Authority {
    /// Creates an authority, valid for ten years.
    ///
    /// # Errors
    /// [`CertError::Make`] if the system provides no randomness.
    pub fn create() -> Result<Self, CertError> {
        let make = |cause| CertError::Make { subject: "an authority".to_owned(), cause };
        Self::with_key(KeyPair::generate().map_err(make)?)
    }

    /// Creates an authority with this key.
    fn with_key(key: KeyPair) -> Result<Self, CertError> {
        // A unique name, so that a certificate of another authority can be told from a forged one.
        let subject = format!("lighter authority {}", uuid::Uuid::new_v4().simple());
        let make = |cause| CertError::Make { subject: subject.clone(), cause };
        let mut params = params(&subject, CA_DAYS, &[]).map_err(make)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert_pem = params.self_signed(&key).map_err(make)?.pem();
        let valid_until_unix_s = params.not_after.unix_timestamp();
        Ok(Self { issuer: Issuer::new(params, key), cert_pem, valid_until_unix_s })
    }

    /// Reads the authority in `dir` whose own host has no certificate yet, since its creation was
    /// interrupted, and writes its `ca.pem` if that is still missing; none if no authority's key is
    /// there. The caller prevents concurrent calls.
    ///
    /// # Errors
    /// [`CertError::HasCertificate`] if the host has a certificate, [`CertError::AuthorityLost`] if
    /// `ca.pem` is missing although the authority has issued certificates; and as [`Self::load`].
    pub fn unfinished(dir: &Path) -> Result<Option<Self>, CertError> {
        let [host, cert, key] = [HOST_CERT, CA_CERT, CA_KEY].map(|name| dir.join(name));
        if is_there(&host) {
            return Err(CertError::HasCertificate { path: host });
        }
        if !is_there(&key) || is_there(&cert) {
            return Self::find(dir);
        }
        if is_there(&dir.join(ISSUED)) {
            return Err(CertError::AuthorityLost { path: cert });
        }
        let authority = Self::with_key(parse_key(&read(&key)?, &key)?)?;
        replace_public(&cert, &authority.cert_pem)?;
        Ok(Some(authority))
    }

    /// Reads the authority in `dir`; none if its key is not there.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn find(dir: &Path) -> Result<Option<Self>, CertError> {
        read_if_there(&dir.join(CA_KEY))?.map(|_key| Self::load(dir)).transpose()
    }

    /// Reads the authority that [`Authority::save`] wrote to `dir`.
    ///
    /// # Errors
    /// [`CertError::File`] if `ca.pem` or `ca.key` cannot be read, [`CertError::NotACertificate`]
    /// or [`CertError::NotAKey`] if they are damaged, and [`CertError::OtherKey`] if they do not
    /// belong together.
    pub fn load(dir: &Path) -> Result<Self, CertError> {
        let (cert_path, key_path) = (dir.join(CA_CERT), dir.join(CA_KEY));
        let (cert_pem, key_pem) = (read(&cert_path)?, read(&key_path)?);
        let key = parse_key(&key_pem, &key_path)?;
        let of_key = key.public_key_raw().to_vec();
        let issuer = Issuer::from_ca_cert_pem(&cert_pem, key).map_err(|cause| {
            CertError::NotACertificate { path: cert_path, cause: cause.to_string() }
        })?;
        let authority = Self { issuer, cert_pem, valid_until_unix_s: 0 };
        let found = authority.read(|certificate| {
            let is_its_key = certificate.public_key().subject_public_key.data == of_key.as_slice();
            (is_its_key, certificate.validity().not_after.timestamp())
        });
        match found {
            Ok((true, valid_until_unix_s)) => Ok(Self { valid_until_unix_s, ..authority }),
            _ => Err(CertError::OtherKey { path: dir.join(CA_KEY) }),
        }
    }

    /// Writes `ca.pem` and `ca.key` to `dir`, which is created if it does not exist.
    ///
    /// # Errors
    /// [`CertError::Exists`] if an authority exists there already, [`CertError::File`] if a file
    /// cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), CertError> {
        create_dir(dir)?;
        let (key, certificate) = (dir.join(CA_KEY), dir.join(CA_CERT));
        // Checked before anything is written: a key beside the certificate of another authority
        // would look like that authority's key.
        refuse_existing(&certificate)?;
        refuse_existing(&key)?;
        // Written whole or not at all, even if power is lost: half a key could not be used.
        replace(&key, &self.issuer.key().serialize_pem())?;
        replace_public(&certificate, &self.cert_pem)
    }

    /// Issues a certificate for a host with the names `names`: DNS names and IP addresses.
    ///
    /// # Errors
    /// [`CertError::Name`] or [`CertError::SharedAddress`] for a name that no host can have,
    /// [`CertError::AuthorityExpired`] if this authority has expired, [`CertError::Make`] if the
    /// system provides no randomness.
    pub fn issue(&self, names: &[String]) -> Result<Identity, CertError> {
        self.issue_with(names, |_| {})
    }

    /// As [`Self::issue`]; `change` may change the certificate's parameters last.
    pub(super) fn issue_with(
        &self,
        names: &[String],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Result<Identity, CertError> {
        let make = |cause| CertError::Make { subject: names.join(", "), cause };
        let key = KeyPair::generate().map_err(make)?;
        let cert_pem = self.certify(names, &key, change)?;
        let key_pem = key.serialize_pem();
        Ok(Identity { ca_pem: self.cert_pem.clone(), cert_pem, key_pem, crl_pem: None })
    }

    /// Issues a certificate, in PEM, for the host with the names `names` that has this public key.
    /// It does not outlive the authority's own. `change` may change the certificate's parameters
    /// last.
    pub(super) fn certify(
        &self,
        names: &[String],
        key: &impl PublicKeyData,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Result<String, CertError> {
        check_names(names)?;
        if unix_s(SystemTime::now()) > self.valid_until_unix_s {
            let until = calendar_time(self.valid_until_unix_s);
            return Err(CertError::AuthorityExpired { until });
        }
        let end = Duration::from_secs(self.valid_until_unix_s.max(0).cast_unsigned());
        let subject = names.first().map_or("lighter host", String::as_str);
        let make = |cause| CertError::Make { subject: names.join(", "), cause };
        let mut params = params_of_peer(subject, HOST_DAYS, names).map_err(make)?;
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(new_serial());
        params.not_after = params.not_after.min(date_time_ymd(1970, 1, 1) + end);
        change(&mut params);
        Ok(params.signed_by(key, &self.issuer).map_err(make)?.pem())
    }

    /// Returns whether this authority issued the first certificate in `cert_pem`, by its name,
    /// which is unique.
    #[must_use]
    pub fn has_issued(&self, cert_pem: &str) -> bool {
        let Ok(der) = CertificateDer::from_pem_slice(cert_pem.as_bytes()) else { return false };
        let Ok((_, certificate)) = parse_x509_certificate(&der) else { return false };
        self.subject().is_ok_and(|subject| subject == certificate.issuer().as_raw())
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// Returns the authority's certificate, in PEM.
    pub(super) fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Returns the authority's name, encoded as in the certificates that it has issued.
    pub(super) fn subject(&self) -> Result<Vec<u8>, String> {
        self.read(|certificate| certificate.subject().as_raw().to_vec())
    }

    fn read<T>(&self, read: impl FnOnce(&X509Certificate<'_>) -> T) -> Result<T, String> {
        let der = CertificateDer::from_pem_slice(self.cert_pem.as_bytes())
            .map_err(|error| error.to_string())?;
        let (_, certificate) = parse_x509_certificate(&der).map_err(|error| error.to_string())?;
        Ok(read(&certificate))
    }
}

/// Returns a serial number that no other certificate has, also of the same key (RFC 5280, section
/// 4.1.2.2): random, positive, without a leading zero.
fn new_serial() -> SerialNumber {
    let mut bytes = Uuid::new_v4().into_bytes();
    bytes[0] = bytes[0] & 0x3f | 0x40;
    SerialNumber::from(bytes.to_vec())
}

/// Checks that each of `names` is a DNS name or an IP address that one host can have.
///
/// # Errors
/// [`CertError::Name`] or [`CertError::SharedAddress`].
pub fn check_names(names: &[String]) -> Result<(), CertError> {
    names.iter().try_for_each(|name| {
        if !is_host_name(name) {
            return Err(CertError::Name { name: name.escape_debug().to_string() });
        }
        if is_shared_address(name) {
            return Err(CertError::SharedAddress { name: name.clone() });
        }
        Ok(())
    })
}

/// Reads the private key `pem`, the content of the file at `path`.
pub(super) fn parse_key(pem: &str, path: &Path) -> Result<KeyPair, CertError> {
    let damaged = |cause: rcgen::Error| CertError::NotAKey {
        path: path.to_owned(),
        cause: cause.to_string(),
    };
    KeyPair::from_pem(pem).map_err(damaged)
}

/// Returns the parameters of a certificate that is used both to connect and to accept connections.
pub(super) fn params_of_peer(
    subject: &str,
    days: u32,
    names: &[String],
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = params(subject, days, names)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn params(subject: &str, days: u32, names: &[String]) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, subject);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let today = date_time_ymd(1970, 1, 1) + now;
    params.not_before = today - CLOCK_GRACE;
    params.not_after = today + DAY * days;
    Ok(params)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::certificate::HostCertificate;
    use super::super::expiry::{Expiry, Limit};
    use super::super::files::HOST_KEY;
    use super::*;

    #[test]
    fn an_authority_read_back_issues_certificates_that_it_signed() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create().unwrap();
        authority.save(dir.path()).unwrap();
        let loaded = Authority::load(dir.path()).unwrap();
        loaded.issue(&["localhost".into()]).unwrap().save(dir.path()).unwrap();
        crate::quic::Tls::load(dir.path()).unwrap();
    }

    #[test]
    fn keys_are_readable_by_their_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create().unwrap();
        authority.save(dir.path()).unwrap();
        authority.issue(&["host-a".into()]).unwrap().save(dir.path()).unwrap();
        for key in [CA_KEY, HOST_KEY] {
            let mode = std::fs::metadata(dir.path().join(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
    }

    #[test]
    fn a_name_that_no_host_can_have_is_refused() {
        let refused = Authority::create().unwrap().issue(&["host-a".into(), "bad name".into()]);
        let message = refused.unwrap_err().to_string();
        assert_eq!(message, "`bad name` is neither a DNS name nor an IP address");
    }

    #[test]
    fn never_overwrites_keys() {
        let dir = tempfile::tempdir().unwrap();
        Authority::create().unwrap().save(dir.path()).unwrap();
        let again = Authority::create().unwrap().save(dir.path());
        assert!(matches!(again, Err(CertError::Exists { .. })), "{again:?}");
    }

    #[test]
    fn an_authority_whose_creation_was_interrupted_is_completed() {
        let dir = tempfile::tempdir().unwrap();
        let [cert, key, host] = [CA_CERT, CA_KEY, HOST_CERT].map(|name| dir.path().join(name));
        assert!(Authority::unfinished(dir.path()).unwrap().is_none());
        Authority::create().unwrap().save(dir.path()).unwrap();
        let key_pem = std::fs::read(&key).unwrap();
        // Power was lost before ca.pem was written.
        std::fs::remove_file(&cert).unwrap();
        let completed = Authority::unfinished(dir.path()).unwrap().expect("it is completed");
        assert_eq!(std::fs::read(&key).unwrap(), key_pem);
        assert_eq!(std::fs::read_to_string(&cert).unwrap(), completed.cert_pem);
        let again = Authority::unfinished(dir.path()).unwrap().expect("it is complete");
        assert_eq!(again.cert_pem, completed.cert_pem);

        std::fs::write(&host, "").unwrap();
        let refused = Authority::unfinished(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("host.pem") && refused.contains("certs renew"), "{refused}");
        std::fs::remove_file(&host).unwrap();
        std::fs::create_dir(dir.path().join(ISSUED)).unwrap();
        std::fs::remove_file(&cert).unwrap();
        let lost = Authority::unfinished(dir.path()).unwrap_err();
        assert!(matches!(lost, CertError::AuthorityLost { .. }), "{lost}");
    }

    /// Creates an authority that is valid until `days` from now.
    fn valid_for(days: u32) -> (tempfile::TempDir, Authority) {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = params("lighter authority", days, &[]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.not_before -= DAY * 2;
        if days == 0 {
            params.not_after -= DAY;
        }
        let cert_pem = params.self_signed(&key).unwrap().pem();
        std::fs::write(dir.path().join(CA_CERT), cert_pem).unwrap();
        std::fs::write(dir.path().join(CA_KEY), key.serialize_pem()).unwrap();
        let authority = Authority::load(dir.path()).unwrap();
        (dir, authority)
    }

    #[test]
    fn no_certificate_outlives_its_authority() {
        let (dir, authority) = valid_for(20);
        let identity = authority.issue(&["host-a".into()]).unwrap();
        let issued = HostCertificate::from_pem(&identity.cert_pem).unwrap();
        assert_eq!(issued.valid_until_unix_s, authority.valid_until_unix_s);
        identity.save(dir.path()).unwrap();
        crate::quic::Tls::load(dir.path()).unwrap();
        let expiry = Expiry::load(dir.path()).unwrap();
        assert_eq!(expiry.limit, Limit::Authority);
        assert_eq!(expiry.until_unix_s, authority.valid_until_unix_s);

        let own = Authority::create().unwrap().issue(&["host-a".into()]).unwrap();
        let expiry = Expiry::new(&own.ca_pem, &own.cert_pem).unwrap();
        let certificate = HostCertificate::from_pem(&own.cert_pem).unwrap();
        assert_eq!(expiry, Expiry::of(&certificate));

        let (_dir, expired) = valid_for(0);
        let refused = expired.issue(&["host-a".into()]).unwrap_err().to_string();
        assert!(refused.contains("authority expired at"), "{refused}");
    }

    #[test]
    fn a_certificate_does_not_join_those_of_another_authority() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (Authority::create().unwrap(), Authority::create().unwrap());
        let ca = dir.path().join(CA_CERT);
        std::fs::write(&ca, &theirs.cert_pem).unwrap();
        let identity = ours.issue(&["host-a".into()]).unwrap();

        let refused = identity.save(dir.path()).unwrap_err();
        assert!(matches!(refused, CertError::OtherAuthority { .. }), "{refused:?}");
        assert!(matches!(ours.save(dir.path()), Err(CertError::Exists { .. })));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing but ca.pem");

        std::fs::write(&ca, format!("{}{}", theirs.cert_pem, ours.cert_pem)).unwrap();
        identity.save(dir.path()).unwrap();
        crate::quic::Tls::load(dir.path()).unwrap();
    }

    #[test]
    fn a_key_of_another_authority_issues_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (Authority::create().unwrap(), Authority::create().unwrap());
        ours.save(dir.path()).unwrap();
        std::fs::write(dir.path().join(CA_CERT), &theirs.cert_pem).unwrap();
        let refused = Authority::load(dir.path()).unwrap_err();
        assert!(matches!(refused, CertError::OtherKey { .. }), "{refused}");
    }

    #[test]
    fn a_missing_or_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let message = Authority::load(dir.path()).unwrap_err().to_string();
        assert!(message.contains("ca.pem"), "{message}");
        assert!(Authority::find(dir.path()).unwrap().is_none());

        Authority::create().unwrap().save(dir.path()).unwrap();
        assert!(Authority::find(dir.path()).unwrap().is_some());
        for file in [CA_CERT, CA_KEY] {
            let path = dir.path().join(file);
            let good = std::fs::read(&path).unwrap();
            std::fs::write(&path, &good[..good.len() / 2]).unwrap();
            let message = Authority::find(dir.path()).unwrap_err().to_string();
            assert!(message.contains(file) && message.contains("does not hold"), "{message}");
            std::fs::write(&path, &good).unwrap();
        }
    }

    #[test]
    fn an_authority_recognises_the_certificates_that_it_issued() {
        let (ours, theirs) = (Authority::create().unwrap(), Authority::create().unwrap());
        let issued = ours.issue(&["host-a".into()]).unwrap().cert_pem;
        assert!(ours.has_issued(&issued) && !theirs.has_issued(&issued));
        assert!(!ours.has_issued("nothing"));
    }
}
