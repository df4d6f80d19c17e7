//! Tests of signed certificates that a host installs.

use super::super::authority::Authority;
use super::super::pending::PendingKey;
use super::super::request::Request;
use super::*;

/// A host that has a certificate of `old`.
struct Host {
    dir: tempfile::TempDir,
    old: Authority,
}

impl Host {
    fn new() -> Self {
        let (dir, old) = (tempfile::tempdir().unwrap(), Authority::create().unwrap());
        old.issue(&["host-b".into()]).unwrap().save(dir.path()).unwrap();
        Self { dir, old }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path().join(name)).unwrap()
    }

    fn serial(&self) -> String {
        HostCertificate::load(self.path()).unwrap().serial
    }
}

/// Returns a certificate for the pending key in `dir`.
fn signed(authority: &Authority, dir: &Path) -> Bundle {
    let request = PendingKey::open(dir).unwrap().request(&["host-b".into()]).unwrap();
    authority.sign(&Request::from_pem(&request).unwrap()).unwrap()
}

fn refusal(bundle: &Bundle, dir: &Path) -> String {
    bundle.install(dir, OtherAuthority::Refuse).unwrap_err().to_string()
}

#[test]
fn the_first_certificate_of_a_host_is_installed() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create().unwrap();
    let bundle = signed(&authority, dir.path());
    let text = bundle.to_pem();
    assert!(!text.contains("PRIVATE"), "{text}");
    let received = Bundle::from_pem(&text).unwrap();
    assert_eq!(received, bundle);
    assert_eq!(received.authorities().unwrap().len(), 1);
    assert_eq!(received.authorities().unwrap()[0].len(), 32 * 3 - 1);
    for _ in 0..2 {
        received.install(dir.path(), OtherAuthority::Refuse).unwrap();
        Tls::load(dir.path()).unwrap();
    }
    let mut files: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["ca.pem", "host.key", "host.pem"]);
}

#[test]
fn a_certificate_for_another_key_is_refused() {
    let (host, other) = (Host::new(), tempfile::tempdir().unwrap());
    let bundle = signed(&host.old, other.path());
    let serial = host.serial();
    assert!(refusal(&bundle, host.path()).contains("for another key"));
    PendingKey::open(host.path()).unwrap();
    assert!(refusal(&bundle, host.path()).contains("for another key"));
    assert_eq!(host.serial(), serial);
    let empty = tempfile::tempdir().unwrap();
    assert!(refusal(&bundle, empty.path()).contains("lighter certs request"));
}

#[test]
fn a_certificate_that_no_host_can_use_is_refused() {
    let host = Host::new();
    let good = signed(&host.old, host.path());
    let ca_pem = Authority::create().unwrap().cert_pem().to_owned();
    let other = Bundle { ca_pem, ..good.clone() };
    assert!(refusal(&other, host.path()).contains("not issued by the authority in ca.pem"));
    let text = good.to_pem();
    let key = host.read("host.key");
    for (text, words) in [
        (String::new(), "0 certificates"),
        (good.cert_pem().to_owned(), "1 certificates"),
        (format!("{text}{key}"), "private key"),
        (text.repeat(BUNDLE_BYTES_MAX as usize / text.len() + 1), "longer than"),
        (text.replacen("\nMII", "\nMIA", 1), "not usable"),
    ] {
        let error = Bundle::from_pem(&text).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn an_expired_certificate_is_refused() {
    let host = Host::new();
    let key = PendingKey::open(host.path()).unwrap();
    let request = Request::from_pem(&key.request(&["host-b".into()]).unwrap()).unwrap();
    let mut bundle = host.old.sign(&request).unwrap();
    bundle.certificate.valid_until_unix_s = 0;
    let error = refusal(&bundle, host.path());
    assert!(error.starts_with("the certificate expired at 1970-01-01"), "{error}");
    assert!(error.contains("certs sign") && !error.contains("host.pem"), "{error}");
}

#[test]
fn another_authority_is_installed_only_when_told() {
    let host = Host::new();
    let new = Authority::create().unwrap();
    let bundle = signed(&new, host.path());
    let serial = host.serial();
    assert!(refusal(&bundle, host.path()).contains("--replace-authority"));
    assert_eq!(host.serial(), serial);

    std::fs::write(host.path().join("ca.key"), "a key").unwrap();
    let error = bundle.install(host.path(), OtherAuthority::Replace).unwrap_err().to_string();
    assert!(error.contains("ca.key is the key of the authority"), "{error}");
    std::fs::remove_file(host.path().join("ca.key")).unwrap();

    bundle.install(host.path(), OtherAuthority::Replace).unwrap();
    assert_eq!(host.serial(), bundle.certificate().serial);
    assert_eq!(host.read("ca.pem"), new.cert_pem());
    Tls::load(host.path()).unwrap();
}

#[test]
fn authorities_that_are_not_trusted_yet_are_known_before_they_are() {
    let (host, empty) = (Host::new(), tempfile::tempdir().unwrap());
    let new = Authority::create().unwrap();
    for (authority, dir, other, count) in [
        (&new, empty.path(), OtherAuthority::Refuse, 1),
        (&new, host.path(), OtherAuthority::Refuse, 0),
        (&new, host.path(), OtherAuthority::Replace, 1),
        (&host.old, host.path(), OtherAuthority::Replace, 0),
    ] {
        let bundle = signed(authority, dir);
        let found = bundle.new_authorities(dir, other).unwrap();
        assert_eq!(found.len(), count, "{other:?}");
        assert!(found.is_empty() || found == bundle.authorities().unwrap());
    }
    assert!(!empty.path().join("ca.pem").exists());
}

#[test]
fn a_file_with_further_authorities_is_kept() {
    let host = Host::new();
    let both = host.read("ca.pem") + Authority::create().unwrap().cert_pem();
    std::fs::write(host.path().join("ca.pem"), &both).unwrap();
    signed(&host.old, host.path()).install(host.path(), OtherAuthority::Refuse).unwrap();
    assert_eq!(host.read("ca.pem"), both);
    Tls::load(host.path()).unwrap();
}

/// Runs the first `count` steps of an installation, as if the host lost power then; returns whether
/// there are more.
fn interrupted(bundle: &Bundle, dir: &Path, other: OtherAuthority, count: usize) -> bool {
    let steps = bundle.steps(dir, other).unwrap();
    steps.iter().take(count).for_each(|step| step.run(dir).unwrap());
    count < steps.len()
}

#[test]
fn a_loss_of_power_at_any_point_leaves_a_usable_certificate() {
    for other in [OtherAuthority::Refuse, OtherAuthority::Replace] {
        let mut count = 0;
        loop {
            let host = Host::new();
            host.old.revoke(host.path(), &[]).unwrap();
            let new = Authority::create().unwrap();
            let authority = if other == OtherAuthority::Replace { &new } else { &host.old };
            let bundle = signed(authority, host.path());
            let (old, next) = (host.serial(), bundle.certificate().serial.clone());
            let has_more = interrupted(&bundle, host.path(), other, count);

            Tls::load(host.path()).unwrap_or_else(|error| panic!("{other:?}, {count}: {error}"));
            let serial = host.serial();
            assert!(serial == old || serial == next, "{other:?}, {count}");
            // Neither what comes next nor the key in use is harmed by a new request.
            if serial == next {
                PendingKey::open(host.path()).unwrap();
                Tls::load(host.path()).unwrap();
            }
            bundle.install(host.path(), other).unwrap();
            Tls::load(host.path()).unwrap();
            assert_eq!(host.serial(), next);
            assert_eq!(host.read("ca.pem"), authority.cert_pem());
            let has_list = host.path().join("crl.pem").exists();
            assert_eq!(has_list, other == OtherAuthority::Refuse, "lists of the old authority");
            if !has_more {
                break;
            }
            count += 1;
        }
        assert!(count >= 2, "{other:?}: {count} steps");
    }
}

#[test]
fn a_new_certificate_leaves_the_lists_of_its_authority() {
    let host = Host::new();
    host.old.revoke(host.path(), &[]).unwrap();
    let list = host.read("crl.pem");
    signed(&host.old, host.path()).install(host.path(), OtherAuthority::Replace).unwrap();
    assert_eq!(host.read("crl.pem"), list);
    std::fs::write(host.path().join("crl.pem"), "").unwrap();
    let bundle = signed(&host.old, host.path());
    assert!(refusal(&bundle, host.path()).contains("crl.pem"));
}
