//! Renews this host's certificate before it expires. Where the authority is on another host, only
//! an operator can do that: the node warns in its log.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use migrate::quic::{Authority, Expiry, HostCertificate, Limit, calendar_time};

use crate::host_certificate::{
    REPLACE_AUTHORITY, described, is_due, lock_changes, own_authority, renew,
};

/// How long a warning is not repeated.
const REMINDER: Duration = Duration::from_hours(24);

/// How long a failed renewal is not tried again. Each attempt may record a certificate.
const RETRY: Duration = Duration::from_hours(1);

/// The renewal of this host's certificate.
#[derive(Debug)]
pub(super) struct Renewal {
    certs: PathBuf,
    /// Nothing is done before this time.
    not_before: Option<Instant>,
}

/// The result of checking whether to renew the certificate.
#[derive(Debug, PartialEq, Eq)]
enum Attempt {
    /// The certificate does not expire soon, or cannot be read, which others report.
    NotDue,
    /// The certificate has been replaced by this one.
    Renewed(HostCertificate),
    /// The certificate expires soon, and its authority is elsewhere.
    Elsewhere(Expiry),
    /// The certificate expires soon and is revoked: only an operator may replace it.
    Revoked(Expiry),
    /// The authority expires soon: a new certificate would not be valid for longer.
    AuthorityExpires(Expiry),
}

impl Renewal {
    /// Creates the renewal of the certificate in the folder `certs`.
    pub(super) fn new(certs: PathBuf) -> Self {
        Self { certs, not_before: None }
    }

    /// Renews the certificate if it expires soon, or logs why not. Blocks.
    pub(super) fn check(&mut self) {
        if self.not_before.is_some_and(|time| Instant::now() < time) {
            return;
        }
        let now = SystemTime::now();
        let pause = match attempt(&self.certs, now) {
            Ok(Attempt::NotDue) => return,
            Ok(Attempt::Renewed(new)) => {
                let until = calendar_time(new.valid_until_unix_s);
                tracing::info!(serial = new.serial, until, "this host's certificate was renewed");
                return;
            }
            Ok(Attempt::Elsewhere(expiry)) => {
                tracing::warn!(
                    "{}; its authority is not on this host: run `lighter certs renew --out FILE` here, \
                     `lighter certs sign FILE` where the authority is, and `lighter certs install` here",
                    described(&expiry, now)
                );
                REMINDER
            }
            Ok(Attempt::Revoked(expiry)) => {
                tracing::warn!(
                    "{}; it is revoked, so it is not renewed automatically: run `lighter certs renew`",
                    described(&expiry, now)
                );
                REMINDER
            }
            Ok(Attempt::AuthorityExpires(expiry)) => {
                tracing::warn!("{}: {REPLACE_AUTHORITY}", described(&expiry, now));
                REMINDER
            }
            Err(error) => {
                tracing::error!("cannot renew this host's certificate: {error:#}");
                RETRY
            }
        };
        self.not_before = Some(Instant::now() + pause);
    }
}

/// Renews the certificate in `certs` if it is due at `now` and its authority is there, too.
fn attempt(certs: &Path, now: SystemTime) -> Result<Attempt> {
    let Some((current, expiry)) = due(certs, now) else { return Ok(Attempt::NotDue) };
    if expiry.limit == Limit::Authority {
        return Ok(Attempt::AuthorityExpires(expiry));
    }
    let Some(authority) = own_authority(certs)? else { return Ok(Attempt::Elsewhere(expiry)) };
    if Authority::has_revoked(certs, &current)? {
        return Ok(Attempt::Revoked(expiry));
    }
    let _lock = lock_changes(certs)?;
    // Another process may have renewed it meanwhile.
    let Some((current, _)) = due(certs, now) else { return Ok(Attempt::NotDue) };
    renew(certs, &authority, &current).map(Attempt::Renewed)
}

/// Returns the certificate in `certs` with its expiry, if it is due for renewal at `now`.
fn due(certs: &Path, now: SystemTime) -> Option<(HostCertificate, Expiry)> {
    let (current, expiry) = (HostCertificate::load(certs).ok()?, Expiry::load(certs).ok()?);
    is_due(&current, &expiry, now).then_some((current, expiry))
}

#[cfg(test)]
mod tests {
    use migrate::quic::{Identity, Tls};

    use super::*;
    use crate::host_certificate::tests::with_authority_for;

    const DAY: Duration = Duration::from_hours(24);
    const YEAR: Duration = Duration::from_hours(365 * 24);

    /// Creates the certificates of a host with its authority, valid for more than two years.
    fn host() -> (tempfile::TempDir, Authority, HostCertificate) {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create().unwrap();
        authority.save(dir.path()).unwrap();
        authority.issue(&["host-a".into()]).unwrap().save(dir.path()).unwrap();
        let current = HostCertificate::load(dir.path()).unwrap();
        (dir, authority, current)
    }

    #[test]
    fn a_certificate_is_renewed_before_and_after_it_expires() {
        let now = SystemTime::now();
        let (dir, _, current) = host();
        assert_eq!(attempt(dir.path(), now + 2 * YEAR).unwrap(), Attempt::NotDue);
        assert_eq!(HostCertificate::load(dir.path()).unwrap(), current);
        for late in [Duration::from_hours(800 * 24), 3 * YEAR] {
            let before = Identity::load(dir.path()).unwrap();
            let Attempt::Renewed(new) = attempt(dir.path(), now + late).unwrap() else {
                panic!("not renewed")
            };
            assert_eq!(HostCertificate::load(dir.path()).unwrap(), new);
            let after = Identity::load(dir.path()).unwrap();
            assert!(after.key_pem != before.key_pem && after.ca_pem == before.ca_pem);
            Tls::new(&after).unwrap();
        }
    }

    #[test]
    fn without_the_authoritys_key_nothing_changes() {
        let (dir, ..) = host();
        std::fs::remove_file(dir.path().join("ca.key")).unwrap();
        let before = Identity::load(dir.path()).unwrap();
        let late = attempt(dir.path(), SystemTime::now() + 3 * YEAR).unwrap();
        assert!(matches!(late, Attempt::Elsewhere(_)), "{late:?}");
        assert_eq!(Identity::load(dir.path()).unwrap(), before);
        let nothing = tempfile::tempdir().unwrap();
        assert_eq!(attempt(nothing.path(), SystemTime::now()).unwrap(), Attempt::NotDue);
    }

    #[test]
    fn a_revoked_certificate_is_not_renewed_automatically() {
        let (dir, authority, current) = host();
        authority.record(dir.path(), &Identity::load(dir.path()).unwrap().cert_pem).unwrap();
        let issued = Authority::issued_to(dir.path(), &current.serial).unwrap();
        authority.revoke(dir.path(), &issued).unwrap();
        let late = attempt(dir.path(), SystemTime::now() + 3 * YEAR).unwrap();
        assert_eq!(late, Attempt::Revoked(Expiry::of(&current)));
    }

    /// Otherwise the node would renew in each round, for no more time.
    #[test]
    fn a_certificate_is_not_renewed_if_its_authority_expires_first() {
        let (dir, _) = with_authority_for(10);
        let before = Identity::load(dir.path()).unwrap();
        let expiry = Expiry::load(dir.path()).unwrap();
        let soon = attempt(dir.path(), SystemTime::now()).unwrap();
        assert_eq!(soon, Attempt::NotDue, "more than a third of its validity is left");
        let later = attempt(dir.path(), SystemTime::now() + 8 * DAY).unwrap();
        assert_eq!(later, Attempt::AuthorityExpires(expiry));
        std::fs::remove_file(dir.path().join("ca.key")).unwrap();
        let elsewhere = attempt(dir.path(), SystemTime::now() + 20 * DAY).unwrap();
        assert_eq!(elsewhere, Attempt::AuthorityExpires(expiry));
        assert_eq!(Identity::load(dir.path()).unwrap(), before);
    }
}
