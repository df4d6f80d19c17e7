//! Lists in a certificates folder: which ones hosts accept, and what authorities make of them.

use std::net::SocketAddr;

use rcgen::{
    BasicConstraints, CertificateParams, CrlDistributionPoint, CrlIssuingDistributionPoint,
    CrlScope, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use super::super::endpoint::{Peer, connect, dialer, listen};
use super::super::files::{CA_CERT, ISSUED};
use super::*;
use crate::progress::Role;
use crate::quic::{Identity, LinkError, Tls, TlsError};

/// A folder with an authority, its list and its records.
struct Fleet {
    dir: tempfile::TempDir,
    authority: Authority,
}

impl Fleet {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), authority: Authority::create().unwrap() }
    }

    fn host(&self) -> Identity {
        self.authority.issue(&["127.0.0.1".into()]).unwrap()
    }

    fn revoke(&self, hosts: &[&Identity]) -> Revocation {
        let issued: Vec<Issued> = hosts.iter().map(|host| issued(&host.cert_pem)).collect();
        self.authority.revoke(self.dir.path(), &issued).unwrap()
    }

    /// The text of `crl.pem`.
    fn list(&self) -> String {
        std::fs::read_to_string(self.path()).unwrap()
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join(CRL)
    }

    /// Returns the number of the list, and how many certificates it revokes.
    fn known(&self) -> (u64, usize) {
        let (own, subject) = (self.authority.cert_pem(), self.authority.subject().unwrap());
        let known = Known::read(&self.list(), own, &subject).unwrap();
        (known.number, known.revoked.len())
    }

    /// Returns why a host of this authority refuses the file that `put` puts in place of its
    /// `crl.pem`.
    fn refuses(&self, put: impl FnOnce(&Path)) -> String {
        let host = tempfile::tempdir().unwrap();
        self.host().save(host.path()).unwrap();
        put(&host.path().join(CRL));
        Identity::load(host.path()).unwrap_err().to_string()
    }
}

fn issued(pem: &str) -> Issued {
    Issued { pem: pem.to_owned(), certificate: HostCertificate::from_pem(pem).unwrap() }
}

fn with_list(identity: &Identity, list: &str) -> Identity {
    Identity { crl_pem: Some(list.to_owned()), ..identity.clone() }
}

/// Returns whether a host that listens and one that connects accept each other.
async fn meet(listening: &Identity, connecting: &Identity) -> Result<(), LinkError> {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let listener = listen(any, &Tls::new(listening).unwrap()).unwrap();
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

async fn is_refused(listening: &Identity, connecting: &Identity) {
    let error = meet(listening, connecting).await.unwrap_err().to_string();
    assert!(error.contains("revoked"), "{error}");
}

#[tokio::test]
async fn a_host_whose_certificate_is_revoked_is_met_by_no_host_that_has_the_list() {
    let fleet = Fleet::new();
    let (a, b) = (fleet.host(), fleet.host());
    fleet.revoke(&[&b]);
    let a = with_list(&a, &fleet.list());
    meet(&a, &a).await.unwrap();
    is_refused(&a, &b).await;
    is_refused(&b, &a).await;
    meet(&b, &b).await.unwrap();
}

#[tokio::test]
async fn the_process_of_a_guest_falls_with_its_host() {
    let fleet = Fleet::new();
    let (a, b) = (fleet.host(), fleet.host());
    let of_guest = b.vouch_for(uuid::Uuid::new_v4(), Role::Source).unwrap();
    meet(&a, &of_guest).await.unwrap();
    fleet.revoke(&[&b]);
    is_refused(&with_list(&a, &fleet.list()), &of_guest).await;
}

#[tokio::test]
async fn of_two_authorities_each_has_its_list() {
    let (ours, theirs) = (Fleet::new(), Fleet::new());
    let both = format!("{}{}", ours.authority.cert_pem(), theirs.authority.cert_pem());
    let of_both = |host: Identity| Identity { ca_pem: both.clone(), ..host };
    let (a, b, good) = (of_both(ours.host()), of_both(theirs.host()), of_both(theirs.host()));
    ours.revoke(&[&ours.host()]);
    theirs.revoke(&[&b]);
    let dir = tempfile::tempdir().unwrap();
    a.save(dir.path()).unwrap();
    for lists in [[ours.list(), theirs.list()], [theirs.list(), ours.list()]] {
        std::fs::write(dir.path().join(CRL), lists.concat()).unwrap();
        let a = Identity::load(dir.path()).unwrap();
        meet(&a, &good).await.unwrap();
        is_refused(&a, &b).await;
    }
    // A list of one authority does not affect hosts of the other.
    std::fs::write(dir.path().join(CRL), ours.list()).unwrap();
    meet(&Identity::load(dir.path()).unwrap(), &b).await.unwrap();
}

/// Returns an old list that revokes the certificate with this serial.
fn list_of(serial: Vec<u8>) -> CertificateRevocationListParams {
    CertificateRevocationListParams {
        this_update: date_time_ymd(2001, 1, 1),
        next_update: date_time_ymd(2002, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2001, 1, 1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    }
}

#[tokio::test]
async fn a_list_does_not_expire() {
    let fleet = Fleet::new();
    let (a, b) = (fleet.host(), fleet.host());
    let list = list_of(serial(&b.cert_pem, &fleet.authority.subject().unwrap()).unwrap());
    let list = list.signed_by(fleet.authority.issuer()).unwrap().pem().unwrap();
    let a = with_list(&a, &list);
    meet(&a, &a).await.unwrap();
    is_refused(&a, &b).await;
}

/// Returns the parameters of an authority of this name that may issue others.
fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

#[tokio::test]
async fn a_host_falls_with_its_intermediate_authority() {
    let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let root_pem = authority("root").self_signed(&root_key).unwrap().pem();
    let root = Issuer::new(authority("root"), root_key);
    let intermediate_pem = authority("intermediate").signed_by(&key, &root).unwrap().pem();
    let intermediate = Issuer::new(authority("intermediate"), key);

    let host_key = KeyPair::generate().unwrap();
    let host = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let host = host.signed_by(&host_key, &intermediate).unwrap().pem() + &intermediate_pem;
    let (ca_pem, key_pem) = (root_pem, host_key.serialize_pem());
    let host = Identity { ca_pem, cert_pem: host, key_pem, crl_pem: None };
    meet(&host, &host).await.unwrap();

    let list = |pem: &str| {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let serial = parse_x509_certificate(&der).unwrap().1.raw_serial().to_vec();
        list_of(serial).signed_by(&root).unwrap().pem().unwrap()
    };
    // There is no list of the intermediate authority: what it has issued is accepted as without
    // lists.
    let knowing = with_list(&host, &list(&host.ca_pem));
    meet(&knowing, &host).await.unwrap();
    let knowing = with_list(&host, &list(&intermediate_pem));
    is_refused(&knowing, &host).await;
    is_refused(&host, &knowing).await;
}

#[test]
fn a_file_without_a_list_is_refused() {
    let fleet = Fleet::new();
    fleet.revoke(&[&fleet.host()]);
    let list = fleet.list();
    for (content, why) in [
        ("", "it holds no list"),
        ("\n", "it holds no list"),
        ("nothing", "it holds no list"),
        (fleet.authority.cert_pem(), "it holds no list"),
        (&list[30..], "it holds no list"),
        (&list[..list.len() / 2], "copy it again"),
        ("-----BEGIN X509 CRL-----\n!", "copy it again"),
        ("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", "copy it again"),
    ] {
        let error = fleet.refuses(|path| std::fs::write(path, content).unwrap());
        assert!(error.contains("crl.pem") && error.contains(why), "{content}: {error}");
        let held = Tls::new(&with_list(&fleet.host(), content));
        assert!(matches!(held, Err(TlsError::Revocation(_))), "{content}: {held:?}");
    }
}

#[test]
fn two_lists_of_one_authority_are_refused() {
    let fleet = Fleet::new();
    fleet.revoke(&[]);
    let first = fleet.list();
    fleet.revoke(&[&fleet.host()]);
    let both = first + &fleet.list();
    let error = fleet.refuses(|path| std::fs::write(path, &both).unwrap());
    let authority = "two lists of the authority CN=lighter authority ";
    assert!(error.contains(authority), "{error}");
    // The authority itself merges them into one.
    std::fs::write(fleet.path(), both).unwrap();
    fleet.revoke(&[]);
    assert_eq!(fleet.known(), (3, 1));
    assert_eq!(fleet.list().matches("BEGIN").count(), 1);
}

#[test]
fn a_list_that_another_key_signed_is_refused() {
    let fleet = Fleet::new();
    let own = fleet.authority.cert_pem();
    let der = CertificateDer::from_pem_slice(own.as_bytes()).unwrap();
    let name = parse_x509_certificate(&der).unwrap().1.subject().to_string();
    let forger = authority(name.strip_prefix("CN=").unwrap());
    let forger = Issuer::new(forger, KeyPair::generate().unwrap());
    let list = list_of(vec![1]).signed_by(&forger).unwrap().pem().unwrap();
    let error = fleet.refuses(|path| std::fs::write(path, &list).unwrap());
    assert!(error.contains(&name) && error.contains("is not signed with"), "{error}");

    std::fs::write(fleet.path(), list).unwrap();
    let refused = fleet.authority.revoke(fleet.dir.path(), &[]);
    assert!(matches!(refused, Err(RevokeError::List { .. })), "{refused:?}");
}

/// Such a list has no effect on hosts' certificates, and rustls reports no error.
#[test]
fn a_list_of_some_certificates_only_is_refused() {
    let fleet = Fleet::new();
    for scope in [None, Some(CrlScope::CaCertsOnly), Some(CrlScope::UserCertsOnly)] {
        let uris = vec!["http://crl.example.net/1".to_owned()];
        let distribution_point = CrlDistributionPoint { uris };
        let point = CrlIssuingDistributionPoint { distribution_point, scope };
        let list = CertificateRevocationListParams {
            issuing_distribution_point: Some(point),
            ..list_of(vec![1])
        };
        let list = list.signed_by(fleet.authority.issuer()).unwrap().pem().unwrap();
        let error = fleet.refuses(|path| std::fs::write(path, &list).unwrap());
        assert!(error.contains("issuingDistributionPoint"), "{error}");
    }
}

#[test]
fn a_list_of_an_authority_that_is_not_trusted_is_refused() {
    let (fleet, other) = (Fleet::new(), Fleet::new());
    fleet.revoke(&[]);
    other.revoke(&[]);
    let error = fleet.refuses(|path| {
        std::fs::write(path, fleet.list() + &other.list()).unwrap();
    });
    let der = CertificateDer::from_pem_slice(other.authority.cert_pem().as_bytes()).unwrap();
    let name = parse_x509_certificate(&der).unwrap().1.subject().to_string();
    assert!(error.contains(&name) && error.contains("is not in ca.pem"), "{error}");
}

#[test]
fn a_list_of_an_authority_that_may_sign_none_is_refused() {
    let key = KeyPair::generate().unwrap();
    let mut params = authority("root");
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca_pem = params.self_signed(&key).unwrap().pem();
    // The code that makes the list assumes that it may.
    let list = list_of(vec![7]).signed_by(&Issuer::new(authority("root"), key)).unwrap();
    let error = checked(&list.pem().unwrap(), &ca_pem).unwrap_err();
    assert!(matches!(error, ListError::NoSigner { .. }), "{error}");
}

#[test]
fn special_and_oversized_files_are_refused_and_links_are_followed() {
    use std::os::unix::fs::symlink;
    let fleet = Fleet::new();
    let pipe = |path: &Path| {
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    let huge = |path: &Path| std::fs::File::create(path).unwrap().set_len(100 << 20).unwrap();
    for (error, why) in [
        (fleet.refuses(pipe), "it is a pipe, not a file"),
        (fleet.refuses(|path| std::fs::create_dir(path).unwrap()), "it is a folder, not a file"),
        (fleet.refuses(huge), "it is too large"),
        (fleet.refuses(|path| symlink("/nowhere/crl.pem", path).unwrap()), "No such file"),
        (fleet.refuses(|path| symlink("crl.pem", path).unwrap()), "symbolic links"),
    ] {
        assert!(error.contains("crl.pem") && error.contains(why), "{error}");
    }
    let elsewhere = fleet.dir.path().join("elsewhere.pem");
    symlink("elsewhere.pem", fleet.path()).unwrap();
    let refused = fleet.authority.revoke(fleet.dir.path(), &[]);
    assert!(matches!(refused, Err(RevokeError::File(_))), "a missing list: {refused:?}");
    let other = Fleet::new();
    other.revoke(&[]);
    std::fs::write(&elsewhere, other.list()).unwrap();
    fleet.revoke(&[&fleet.host()]);
    assert!(fleet.path().is_symlink(), "the file that it leads to was replaced");
    assert!(fleet.list().starts_with("-----") && fleet.list().ends_with(&other.list()));
}

#[test]
fn what_was_revoked_stays_so_and_other_authorities_certificates_are_refused() {
    let (fleet, other) = (Fleet::new(), Fleet::new());
    let (first, second) = (fleet.host(), fleet.host());
    assert_eq!(fleet.revoke(&[&first]).done, [issued(&first.cert_pem).certificate]);
    let again = fleet.revoke(&[&second, &first, &second]);
    assert_eq!(again.done, [issued(&second.cert_pem).certificate]);
    assert_eq!(again.before.len(), 2);
    assert_eq!(fleet.known(), (2, 2));
    let list = fleet.list();
    let refused = |pem: &str| fleet.authority.revoke(fleet.dir.path(), &[issued(pem)]).unwrap_err();
    assert!(matches!(refused(&other.host().cert_pem), RevokeError::OtherAuthority));
    assert!(matches!(refused(fleet.authority.cert_pem()), RevokeError::OwnCertificate));
    assert_eq!(fleet.list(), list, "nothing was written");
}

#[test]
fn a_list_that_is_lost_brings_nothing_back() {
    let fleet = Fleet::new();
    let (first, second) = (fleet.host(), fleet.host());
    fleet.revoke(&[&first]);
    // As a version without records left it.
    std::fs::remove_dir_all(fleet.dir.path().join(ISSUED)).unwrap();
    fleet.revoke(&[]);
    std::fs::remove_file(fleet.path()).unwrap();
    fleet.revoke(&[&second]);
    assert_eq!(fleet.known().1, 2);
    // As a disk left it that was full when the revocation was recorded.
    let records = std::fs::read_dir(fleet.dir.path().join(ISSUED)).unwrap();
    records.for_each(|entry| std::fs::write(entry.unwrap().path(), "").unwrap());
    std::fs::remove_file(fleet.path()).unwrap();
    fleet.revoke(&[]);
    assert_eq!(fleet.known().1, 2);
    std::fs::write(fleet.dir.path().join(ISSUED).join("odd.revoked"), "").unwrap();
    let refused = fleet.authority.revoke(fleet.dir.path(), &[]).unwrap_err().to_string();
    assert!(refused.contains("odd.revoked is named by no certificate's serial"), "{refused}");
}

#[test]
fn lists_of_other_authorities_are_kept_as_they_are() {
    let (fleet, other, third) = (Fleet::new(), Fleet::new(), Fleet::new());
    other.revoke(&[&other.host()]);
    third.revoke(&[]);
    let others = [other.list(), third.list()].concat();
    std::fs::write(fleet.path(), format!("# of the old authority\n{others}")).unwrap();
    fleet.revoke(&[&fleet.host()]);
    fleet.revoke(&[&fleet.host()]);
    assert!(fleet.list().ends_with(&others), "{}", fleet.list());
    assert_eq!(fleet.list().matches("BEGIN").count(), 3);
    assert_eq!(fleet.known(), (2, 2));
    let host = fleet.host();
    let [a, b, c] = [&fleet, &other, &third].map(|fleet| fleet.authority.cert_pem());
    host.save(fleet.dir.path()).unwrap();
    std::fs::write(fleet.dir.path().join(CA_CERT), format!("{a}{b}{c}")).unwrap();
    Tls::load(fleet.dir.path()).unwrap();
}

#[test]
fn an_unusable_list_does_not_replace_the_present_one() {
    let (fleet, other) = (Fleet::new(), Fleet::new());
    other.revoke(&[]);
    std::fs::write(fleet.dir.path().join(CA_CERT), fleet.authority.cert_pem()).unwrap();
    std::fs::write(fleet.path(), other.list()).unwrap();
    let refused = fleet.authority.revoke(fleet.dir.path(), &[]);
    let is_it = |cause: &ListError| matches!(cause, ListError::OtherAuthority { .. });
    assert!(
        matches!(&refused, Err(RevokeError::List { cause, .. }) if is_it(cause)),
        "{refused:?}"
    );
    assert_eq!(fleet.list(), other.list());
    let host = issued(&fleet.host().cert_pem);
    assert!(fleet.authority.revoke(fleet.dir.path(), &[host]).is_err());
    assert!(!fleet.dir.path().join(ISSUED).exists(), "nothing is recorded as revoked");
}

#[test]
fn a_file_that_no_host_would_read_is_not_written() {
    let fleet = Fleet::new();
    fleet.revoke(&[]);
    let list = fleet.list();
    let full = Known {
        revoked: (0..=REVOKED_MAX as u32).map(|it| (it.to_be_bytes().to_vec(), 0)).collect(),
        ..Known::default()
    };
    let made = fleet.authority.list(&full, Duration::ZERO);
    assert!(matches!(made, Err(RevokeError::Full)), "{made:?}");
    let large = Known { others: vec!["x".repeat(1 << 20)], ..Known::default() };
    let made = fleet.authority.list(&large, Duration::ZERO);
    assert!(matches!(made, Err(RevokeError::TooLarge)), "{made:?}");

    let most = Known {
        revoked: (0..REVOKED_MAX as u128)
            .map(|it| ([&[1; 4], &it.to_be_bytes()[..]].concat(), 0))
            .collect(),
        ..Known::default()
    };
    let made = fleet.authority.list(&most, Duration::ZERO).unwrap();
    assert_eq!(with_list(&fleet.host(), &made).lists().unwrap().len(), 1);
    assert_eq!(fleet.list(), list);
}

#[test]
fn the_process_of_a_guest_that_an_earlier_version_started_understands_an_identity_without_a_list() {
    /// As versions before `crl.pem` had it.
    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Before {
        #[serde(rename = "ca_pem")]
        _ca: String,
        #[serde(rename = "cert_pem")]
        _cert: String,
        #[serde(rename = "key_pem")]
        _key: String,
    }
    let fleet = Fleet::new();
    let host = fleet.host();
    let text = serde_json::to_string(&host).unwrap();
    serde_json::from_str::<Before>(&text).unwrap();
    assert_eq!(serde_json::from_str::<Identity>(&text).unwrap(), host);

    // It refuses an identity with a list: it would accept revoked certificates.
    fleet.revoke(&[]);
    let host = with_list(&host, &fleet.list());
    let text = serde_json::to_string(&host).unwrap();
    let refused = serde_json::from_str::<Before>(&text).unwrap_err().to_string();
    assert!(refused.contains("unknown field `crl_pem`"), "{refused}");
    assert_eq!(serde_json::from_str::<Identity>(&text).unwrap(), host);
}
