//! The certificate of this host: how long it can still be used, and how it is issued and renewed
//! where the authority is on the same host. `lighter certs`, the node and the listings use it.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use migrate::quic::{
    Authority, Bundle, Expiry, HostCertificate, Limit, OtherAuthority, PendingKey, calendar_time,
    check_names,
};

use crate::file_lock::FileLock;
use crate::output;
use crate::state_dir::StateDir;

/// Seconds of a day.
const DAY_S: i64 = 24 * 60 * 60;

/// A certificate that expires within this time is noted in listings; the alert rule
/// `LighterCertificateExpires` has the same limit.
const SOON_S: i64 = 14 * DAY_S;

/// A certificate is renewed when this time is left, or a third of its validity if that is shorter.
const RENEWAL_S: i64 = 30 * DAY_S;

/// How long a command waits for another to finish, and how often it retries.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Waits until no other process holds the lock `name` in the folder `certs`, and takes it.
///
/// # Errors
/// If that takes too long, or the file cannot be created.
pub(crate) fn lock(certs: &Path, name: &str) -> Result<FileLock> {
    let path = certs.join(name);
    let begin = Instant::now();
    loop {
        let lock = FileLock::try_acquire(&path);
        if let Some(lock) = lock.with_context(|| format!("cannot lock {}", path.display()))? {
            return Ok(lock);
        }
        if begin.elapsed() > LOCK_PATIENCE {
            bail!(
                "another `lighter certs` command is running ({} is locked): try again",
                path.display()
            );
        }
        sleep(LOCK_PAUSE);
    }
}

/// Takes the lock under which this host's key and certificate are changed.
///
/// # Errors
/// Like [`lock`].
pub(crate) fn lock_changes(certs: &Path) -> Result<FileLock> {
    lock(certs, "change.lock")
}

/// What to do about an authority that expires.
pub(crate) const REPLACE_AUTHORITY: &str =
    "replace the authority (\"An authority that expires\" in the user guide)";

/// Returns whether the certificate, which expires as `expiry` says, should be renewed at `now`.
pub(crate) fn is_due(certificate: &HostCertificate, expiry: &Expiry, now: SystemTime) -> bool {
    let HostCertificate { valid_from_unix_s, valid_until_unix_s, .. } = certificate;
    let third = valid_until_unix_s.saturating_sub(*valid_from_unix_s) / 3;
    expiry.left_s(now) <= third.min(RENEWAL_S)
}

/// Describes when a certificate expires or expired: `in 12 days`, `3 hours ago`.
pub(crate) fn when(left_s: i64) -> String {
    let amount = left_s.unsigned_abs();
    let (count, unit) = match amount {
        0..3600 => (amount / 60, "minute"),
        3600..172_800 => (amount / 3600, "hour"),
        _ => (amount / DAY_S.unsigned_abs(), "day"),
    };
    let plural = if count == 1 { "" } else { "s" };
    if left_s < 0 {
        format!("{count} {unit}{plural} ago")
    } else {
        format!("in {count} {unit}{plural}")
    }
}

/// Returns the warning about a certificate that has expired or soon will; none before that.
fn warning(expiry: &Expiry, now: SystemTime) -> Option<String> {
    let way_out = match expiry.limit {
        Limit::Host => "see `lighter certs renew`",
        Limit::Authority => REPLACE_AUTHORITY,
    };
    (expiry.left_s(now) <= SOON_S).then(|| format!("{}: {way_out}", described(expiry, now)))
}

/// Says which certificate expires or has expired first, and when.
pub(crate) fn described(expiry: &Expiry, now: SystemTime) -> String {
    let left_s = expiry.left_s(now);
    let verb = if left_s < 0 { "expired" } else { "expires" };
    let (when, until) = (when(left_s), calendar_time(expiry.until_unix_s));
    let what = match expiry.limit {
        Limit::Host => "this host's certificate",
        Limit::Authority => "the authority of this host's certificate",
    };
    format!("{what} {verb} {when} ({until})")
}

/// Prints a note on stderr if this host's certificate or its authority has expired or soon will. A
/// host without one, or with one that this user may not read, has no note: other commands report
/// that.
pub(crate) fn note_expiry(state: &StateDir) {
    let expiry = Expiry::load(&state.certs()).ok();
    if let Some(text) = expiry.and_then(|expiry| warning(&expiry, SystemTime::now())) {
        output::note(format_args!("lighter: {text}"));
    }
}

/// Returns the authority in the folder `certs`, if it is there and has issued this host's
/// certificate.
///
/// # Errors
/// If a file of the authority exists and cannot be used.
pub(crate) fn own_authority(certs: &Path) -> Result<Option<Authority>> {
    let Some(authority) = Authority::find(certs)? else { return Ok(None) };
    let path = certs.join("host.pem");
    let pem = regular_file::read_text(&path, migrate::quic::BUNDLE_BYTES_MAX)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(authority.has_issued(&pem).then_some(authority))
}

/// Replaces this host's certificate by one with a new key and the names of `current`, issued by the
/// authority on this host. The caller holds the lock of [`lock_changes`].
///
/// # Errors
/// If a file cannot be read or written; the old certificate is then still in place.
pub(crate) fn renew(
    certs: &Path,
    authority: &Authority,
    current: &HostCertificate,
) -> Result<HostCertificate> {
    issue(certs, authority, &names_to_renew(&current.names))
}

/// Returns the names that a renewed certificate keeps. Earlier versions also certified addresses
/// that no single host has.
pub(crate) fn names_to_renew(names: &[String]) -> Vec<String> {
    let is_kept = |name: &&String| {
        let is_valid = check_names(std::slice::from_ref(*name)).is_ok();
        if !is_valid {
            tracing::warn!("the renewed certificate is not for {name}: no single host has it");
        }
        is_valid
    };
    names.iter().filter(is_kept).cloned().collect()
}

/// Issues and installs a certificate with these names for this host, by the authority on this host.
/// Its key is the one of a request that has not been answered, or a new one. The caller holds the
/// lock of [`lock_changes`].
///
/// # Errors
/// If a file cannot be read or written; a certificate that the host has is then still in place.
pub(crate) fn issue(
    certs: &Path,
    authority: &Authority,
    names: &[String],
) -> Result<HostCertificate> {
    let key = PendingKey::open(certs).context("cannot make a key")?;
    let bundle: Bundle = key.certified_by(authority, names)?;
    authority.record(certs, bundle.cert_pem())?;
    bundle.install(certs, OtherAuthority::Refuse).context("cannot install the new certificate")?;
    Ok(bundle.certificate().clone())
}

#[cfg(test)]
pub(crate) mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};

    use super::*;

    /// Creates a folder with an authority that expires in `days` days, and a certificate of it.
    pub(crate) fn with_authority_for(days: u32) -> (tempfile::TempDir, Authority) {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let (now, day) = (date_time_ymd(1970, 1, 1) + now, Duration::from_hours(24));
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        (params.not_before, params.not_after) = (now - day, now + day * days);
        let key = KeyPair::generate().unwrap();
        let cert_pem = params.self_signed(&key).unwrap().pem();
        std::fs::write(dir.path().join("ca.pem"), cert_pem).unwrap();
        std::fs::write(dir.path().join("ca.key"), key.serialize_pem()).unwrap();
        let authority = Authority::load(dir.path()).unwrap();
        authority.issue(&["host-a".into()]).unwrap().save(dir.path()).unwrap();
        (dir, authority)
    }

    fn valid(from_days: i64, until_days: i64) -> HostCertificate {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let now_s = i64::try_from(now.as_secs()).unwrap();
        HostCertificate {
            serial: "01".to_owned(),
            names: vec!["host-a".to_owned()],
            valid_from_unix_s: now_s + from_days * DAY_S,
            valid_until_unix_s: now_s + until_days * DAY_S,
        }
    }

    #[test]
    fn a_certificate_is_due_with_a_third_or_thirty_days_left() {
        let now = SystemTime::now();
        for (from, until, due) in [
            (-700, 31, false),
            (-700, 29, true),
            (-700, -1, true),
            (-50, 28, false),
            (-61, 29, true),
            (0, 9, false),
            (-7, 2, true),
        ] {
            let certificate = valid(from, until);
            let expiry = Expiry::of(&certificate);
            assert_eq!(is_due(&certificate, &expiry, now), due, "{from} {until}");
        }
        let expiry = Expiry { limit: Limit::Authority, ..Expiry::of(&valid(-700, 20)) };
        assert!(is_due(&valid(-700, 120), &expiry, now), "the authority expires earlier");
    }

    #[test]
    fn only_a_certificate_that_soon_expires_is_noted() {
        let now = SystemTime::now();
        let expiry = |days| Expiry::of(&valid(-100, days));
        assert_eq!(warning(&expiry(15), now), None);
        let soon = warning(&expiry(13), now).unwrap();
        assert!(soon.contains("expires in 1") && soon.contains("lighter certs renew"), "{soon}");
        let late = warning(&expiry(-3), now).unwrap();
        assert!(late.contains("expired 3 days ago"), "{late}");
    }

    #[test]
    fn an_authority_that_soon_expires_is_named() {
        let (dir, _) = with_authority_for(10);
        let expiry = Expiry::load(dir.path()).unwrap();
        let text = warning(&expiry, SystemTime::now()).unwrap();
        assert!(text.starts_with("the authority of this host's certificate expires in "), "{text}");
        assert!(text.contains("replace the authority") && !text.contains("renew"), "{text}");
    }

    #[test]
    fn times_are_told_in_their_unit() {
        for (left_s, text) in [
            (59, "in 0 minutes"),
            (60, "in 1 minute"),
            (7200, "in 2 hours"),
            (-3600, "1 hour ago"),
            (172_800, "in 2 days"),
            (-864_000, "10 days ago"),
        ] {
            assert_eq!(when(left_s), text);
        }
    }

    #[test]
    fn a_renewed_certificate_has_the_same_names_and_another_key() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create().unwrap();
        authority.save(dir.path()).unwrap();
        authority.issue(&["host-a".into(), "::1".into()]).unwrap().save(dir.path()).unwrap();
        let key = std::fs::read(dir.path().join("host.key")).unwrap();
        let old = HostCertificate::load(dir.path()).unwrap();
        let found = own_authority(dir.path()).unwrap().expect("it is here");
        let new = renew(dir.path(), &found, &old).unwrap();
        assert_eq!(HostCertificate::load(dir.path()).unwrap(), new);
        assert!(new.names == old.names && new.serial != old.serial);
        assert_ne!(std::fs::read(dir.path().join("host.key")).unwrap(), key);
        migrate::quic::Tls::load(dir.path()).unwrap();
        let recorded = Authority::issued_to(dir.path(), &new.serial).unwrap();
        assert_eq!(recorded.len(), 1, "it can be revoked");
    }

    #[test]
    fn a_renewed_certificate_is_for_no_address_that_every_host_has() {
        let names = ["host-a", "0.0.0.0", "192.0.2.7", "::"].map(str::to_owned);
        assert_eq!(names_to_renew(&names), ["host-a", "192.0.2.7"]);
    }

    #[test]
    fn an_authority_that_did_not_issue_the_certificate_does_not_renew_it() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (Authority::create().unwrap(), Authority::create().unwrap());
        theirs.issue(&["host-a".into()]).unwrap().save(dir.path()).unwrap();
        assert!(own_authority(dir.path()).unwrap().is_none());
        std::fs::remove_file(dir.path().join("ca.pem")).unwrap();
        ours.save(dir.path()).unwrap();
        assert!(own_authority(dir.path()).unwrap().is_none());
    }
}
