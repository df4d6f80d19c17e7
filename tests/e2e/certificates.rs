//! Certificates whose keys never leave their hosts: requested, signed, installed and renewed, also
//! while the nodes run.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, Issuer, KeyPair, date_time_ymd};

use crate::metrics::{scrape, value};
use support::checks::one_intact_copy;
use support::{
    Exit, Guest, GuestPlan, Host, Migration, NodePlan, Pair, as_stranger, lighter, run, wait,
};

const DAY: Duration = Duration::from_hours(24);

/// What the node logs when it uses new certificates.
const IN_FORCE: &str = "new certificates or revocation lists are in force";

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn path(pair: &Pair, name: &str) -> (PathBuf, String) {
    let path = pair.folder().join(name);
    let shown = path.display().to_string();
    (path, shown)
}

/// Has host a's authority sign the request in `csr`; returns the file with the certificates.
fn sign(pair: &Pair, csr: &str) -> String {
    let (_, pem) = path(pair, "signed.pem");
    let done = pair.a.run(&["certs", "sign", csr, "--out", &pem]).ok();
    assert!(done.stderr.contains("host-b") && done.stderr.contains("SHA256"), "{done:#?}");
    pem
}

/// Migrates a guest from host a to host b and back.
fn migrates_both_ways(pair: &Pair) {
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    Migration::run(&pair.a, guest.name(), &pair.b).ok();
    Migration::run(&pair.b, guest.name(), &pair.a).ok();
    one_intact_copy(&pair.hosts(), guest.name(), &pair.a);
}

/// Pipes as over ssh: `certs request | certs sign - | certs install -`.
#[test]
fn a_host_gets_its_certificate_and_its_key_never_leaves_it() {
    let mut pair = Pair::without_nodes();
    fs::remove_dir_all(pair.b.certs()).expect("certificates");
    let request = pair.b.run(&["certs", "request", "host-b", "127.0.0.1"]).ok();
    assert!(
        request.stderr.contains("no other host can reach this one by 127.0.0.1"),
        "{request:#?}"
    );
    let waits = pair.b.run(&["certs", "show"]);
    assert!(waits.exit == Exit::Failed && waits.stdout.contains("certs install"), "{waits:#?}");
    let (csr, _) = path(&pair, "csr");
    fs::write(&csr, &request.stdout).expect("a file");
    let piped = |host: &Host, arguments: &[&str], file: &Path| {
        let mut command = lighter(host.state_dir(), arguments);
        command.stdin(File::open(file).expect("a file"));
        run(command)
    };
    let signed = piped(&pair.a, &["certs", "sign", "-"], &csr).ok();
    assert!(signed.stderr.contains("Names: host-b, 127.0.0.1"), "{signed:#?}");
    let (pem, _) = path(&pair, "pem");
    fs::write(&pem, &signed.stdout).expect("a file");
    let installed = piped(&pair.b, &["certs", "install", "-"], &pem).ok();
    // The same fingerprint on both hosts.
    let fingerprint = |text: &str| {
        let after = text.split("SHA256 ").nth(1)?;
        after.split_whitespace().next().map(str::to_owned)
    };
    let authority = fingerprint(&signed.stderr).expect("a fingerprint");
    assert_eq!(fingerprint(&installed.stderr).as_ref(), Some(&authority));
    assert!(signed.stderr.contains(&format!("certs install --authority {authority} CERT")));
    // The user may have compared it before, or can undo what was installed.
    assert!(installed.stderr.starts_with("This host will trust a new authority"), "{installed:#?}");
    assert!(installed.stderr.contains("remove ca.pem and host.pem"), "{installed:#?}");
    let shown = pair.b.run(&["certs", "show"]).ok().stdout;
    assert!(shown.contains(&format!("SHA256 {authority}")), "{shown}");

    for done in [&request, &signed, &installed] {
        assert!(!format!("{done:?}").contains("PRIVATE KEY"), "{done:#?}");
    }
    let key = pair.b.certs().join("host.key");
    assert_eq!(fs::metadata(key).expect("a key").permissions().mode() & 0o777, 0o600);
    pair.a.start_node(&NodePlan::default());
    pair.b.start_node(&NodePlan::default());
    migrates_both_ways(&pair);
    pair.a.run(&["certs", "revoke", "host-b"]).ok();
}

#[test]
fn an_authority_with_another_fingerprint_is_not_installed() {
    let pair = Pair::without_nodes();
    fs::remove_dir_all(pair.b.certs()).expect("certificates");
    let (_, csr) = path(&pair, "csr");
    pair.b.run(&["certs", "request", "host-b", "127.0.0.1", "--out", &csr]).ok();
    let (_, pem) = path(&pair, "signed.pem");
    let signed = pair.a.run(&["certs", "sign", &csr, "--out", &pem]).ok().stderr;
    let printed = signed.split("--authority ").nth(1).expect("a command");
    let right = printed.split_whitespace().next().expect("a fingerprint");
    assert!(printed.trim_end().ends_with(" signed.pem"), "{printed}");

    let wrong = ["00"; 32].join(":");
    let done = pair.b.run(&["certs", "install", "--authority", &wrong, &pem]);
    done.complains(Exit::Failed, &[right, "--authority"]);
    assert!(!pair.b.certs().join("ca.pem").exists());
    let done = pair.b.run(&["certs", "install", "--authority", right, &pem]).ok();
    assert!(!done.stderr.contains("will trust a new authority"), "{done:#?}");
    pair.b.run(&["certs", "show"]).ok();
    let again = pair.b.run(&["certs", "install", &pem]).ok();
    assert!(!again.stderr.contains("will trust a new authority"), "{again:#?}");
}

/// Otherwise the half of it would be in the way, and be lost if it were moved away.
#[test]
fn an_authority_is_created_after_a_request() {
    let pair = Pair::without_nodes();
    fs::remove_dir_all(pair.b.certs()).expect("certificates");
    pair.b.run(&["certs", "request", "host-b"]).ok();
    pair.b.run(&["certs", "init", "host-b", "127.0.0.1"]).ok();
    pair.b.run(&["certs", "show"]).ok();
    pair.b.run(&["certs", "init", "host-b"]).complains(Exit::Failed, &["certs renew"]);
    pair.b.run(&["certs", "show"]).ok();
}

#[test]
fn a_tampered_request_is_not_signed() {
    let pair = Pair::without_nodes();
    let (csr, shown) = path(&pair, "csr");
    pair.b.run(&["certs", "request", "--out", &shown]).ok();
    let issued = || fs::read_dir(pair.a.certs().join("issued")).expect("records").count();
    let (good, before) = (text(&csr), issued());
    let middle = good.len() / 2;
    let other = if good.as_bytes()[middle] == b'A' { "B" } else { "A" };
    for bad in [
        format!("{}{other}{}", &good[..middle], &good[middle + 1..]),
        good[..middle].to_owned(),
        text(&pair.b.certs().join("host.pem")),
        "x".repeat(1 << 20),
    ] {
        fs::write(&csr, bad).expect("a file");
        let done = pair.a.run(&["certs", "sign", &shown]);
        let done = done.complains(Exit::Failed, &["lighter: ", "csr"]);
        assert!(done.stdout.is_empty(), "{done:#?}");
    }
    assert_eq!(issued(), before);
    fs::write(&csr, good).expect("a file");
    pair.b.run(&["certs", "sign", &shown]).complains(Exit::Failed, &["where the authority was"]);
}

#[test]
fn a_certificate_for_another_key_or_of_another_authority_is_not_installed() {
    let (pair, stranger) = (Pair::without_nodes(), Pair::without_nodes());
    let (_, csr) = path(&pair, "csr");
    let before = text(&pair.b.certs().join("host.pem"));
    stranger.b.run(&["certs", "request", "host-b", "--out", &csr]).ok();
    let pem = sign(&pair, &csr);
    pair.b.run(&["certs", "install", &pem]).complains(Exit::Failed, &["for another key"]);

    pair.b.run(&["certs", "request", "host-b", "127.0.0.1", "--out", &csr]).ok();
    let pem = sign(&stranger, &csr);
    let install = ["certs", "install", &pem];
    pair.b.run(&install).complains(Exit::Failed, &["--replace-authority"]);
    assert_eq!(text(&pair.b.certs().join("host.pem")), before);
    pair.b.run(&["certs", "show"]).ok();

    pair.b.run(&["certs", "install", "--replace-authority", &pem]).ok();
    pair.b.run(&["certs", "show"]).ok();
    let authority = |pair: &Host| text(&pair.certs().join("ca.pem"));
    assert_eq!(authority(&pair.b), authority(&stranger.a));
}

#[test]
fn a_running_node_uses_a_renewed_certificate() {
    let pair = Pair::new();
    let serial = |host: &Host| {
        let shown = host.run(&["certs", "show", "--json"]).ok().json();
        shown["serial"].as_str().expect("a serial").to_owned()
    };
    let old = serial(&pair.a);
    pair.a.run(&["certs", "renew"]).ok();
    assert_ne!(serial(&pair.a), old);
    pair.a.await_log(&[IN_FORCE]);
    // The old certificate would be refused from now on.
    pair.a.run(&["certs", "revoke", &old]).ok();
    fs::copy(pair.a.certs().join("crl.pem"), pair.b.certs().join("crl.pem")).expect("a list");
    migrates_both_ways(&pair);
}

#[test]
fn show_says_which_files_this_user_may_not_read() {
    let pair = Pair::without_nodes();
    let shown = run(as_stranger(&lighter(pair.a.state_dir(), &["certs", "show"])));
    assert_eq!(shown.exit, Exit::Failed, "{shown:#?}");
    assert!(shown.stdout.contains("Permission denied"), "{shown:#?}");
    assert!(!shown.stdout.contains("certs init") && !shown.stdout.contains("not on this host"));
    let damaged = pair.a.certs().join("ca.key");
    fs::write(damaged, "-----BEGIN").expect("a file");
    let shown = pair.a.run(&["certs", "show"]).ok().stdout;
    assert!(shown.contains("not usable") && shown.contains("ca.key does not hold"), "{shown}");
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970")
}

/// Replaces the certificate of `host` by one of host a's authority that is valid for nine and a
/// half more days.
fn issue_for_nine_days(pair: &Pair, host: &Host, name: &str) {
    let read = |file: &str| text(&pair.a.certs().join(file));
    let key = KeyPair::from_pem(&read("ca.key")).expect("a key");
    let authority = Issuer::from_ca_cert_pem(&read("ca.pem"), key).expect("an authority");
    let names = [name.to_owned(), "127.0.0.1".to_owned()];
    let mut parameters = CertificateParams::new(names).expect("names");
    let now = date_time_ymd(1970, 1, 1) + since_1970();
    (parameters.not_before, parameters.not_after) = (now - 60 * DAY, now + 10 * DAY - DAY / 2);
    let key = KeyPair::generate().expect("a key");
    let certificate = parameters.signed_by(&key, &authority).expect("a certificate");
    let write = |file, pem| fs::write(host.certs().join(file), pem).expect("a file");
    write("host.pem", certificate.pem());
    write("host.key", key.serialize_pem());
}

/// The number of days for which the certificate in use by the node of `host` is still valid.
fn days_left(host: &Host) -> u64 {
    let page = scrape(host);
    let expiry = value(&page, "lighter_certificate_expiry_timestamp_seconds", &[]);
    let expiry = Duration::from_secs_f64(expiry.expect("a time"));
    let now = since_1970();
    expiry.saturating_sub(now).as_secs() / DAY.as_secs()
}

#[test]
fn a_certificate_that_soon_expires_is_noted_and_renewed() {
    let mut pair = Pair::without_nodes();
    issue_for_nine_days(&pair, &pair.a, "host-a");
    issue_for_nine_days(&pair, &pair.b, "host-b");
    let note = "lighter: this host's certificate expires in 9 days";
    for verb in [&["ls"][..], &["ls", "--json"], &["show", "none"]] {
        let done = pair.b.run(verb);
        let noted = done.stderr.lines().filter(|line| line.starts_with(note)).count();
        assert!(noted == 1 && !done.stdout.contains("expires"), "{done:#?}");
    }
    let shown = pair.b.run(&["certs", "show"]).ok().stdout;
    assert!(shown.contains("(in 9 days)"), "{shown}");
    let left_s = pair.b.run(&["certs", "show", "--json"]).ok().json()["left_s"].as_u64();
    assert!(left_s.is_some_and(|left_s| left_s / DAY.as_secs() == 9), "{left_s:?}");

    // Where the authority is, the node renews; elsewhere it warns.
    pair.a.start_node(&NodePlan::default());
    pair.b.start_node(&NodePlan::default());
    pair.a.await_log(&["this host's certificate was renewed"]);
    pair.b.await_log(&["its authority is not on this host", "lighter certs renew --out FILE"]);
    assert_eq!((days_left(&pair.a), days_left(&pair.b)), (824, 9));
    assert_eq!(pair.a.run(&["ls"]).ok().stderr, "");

    let (_, csr) = path(&pair, "csr");
    pair.b.run(&["certs", "renew", "--out", &csr]).ok();
    pair.b.run(&["certs", "install", &sign(&pair, &csr)]).ok();
    wait::until("the node uses the new certificate", || {
        let days = days_left(&pair.b);
        wait::holds(days == 824, days)
    });
    assert_eq!(pair.b.run(&["ls"]).ok().stderr, "");
    migrates_both_ways(&pair);
}
