//! Certificates for keys that never leave their hosts: requests, and what is made of them.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use migrate::quic::{
    Authority, BUNDLE_BYTES_MAX, Bundle, Expiry, HostCertificate, Limit, OtherAuthority,
    PendingKey, REQUEST_BYTES_MAX, Request, calendar_time, check_names,
};

use super::host_names;
use crate::exit::Exit;
use crate::host_certificate::{
    REPLACE_AUTHORITY, lock_changes, names_to_renew, own_authority, renew as renew_here,
};
use crate::output;
use crate::state_dir::StateDir;

/// Writes a request for a certificate with these names, or with this host's own.
pub(super) fn request(state: &StateDir, names: &[String], out: Option<&Path>) -> Result<Exit> {
    state.create()?;
    let certs = state.certs();
    let _lock = lock_changes(&certs)?;
    let names = if names.is_empty() { host_names("request")? } else { names.to_vec() };
    write_request(&certs, &names, out)
}

fn write_request(certs: &Path, names: &[String], out: Option<&Path>) -> Result<Exit> {
    let cannot = "cannot make a request for a certificate";
    // Before there is a key that would wait for a certificate.
    check_names(names).context(cannot)?;
    let key = PendingKey::open(certs).context("cannot make a key for this host")?;
    let request = key.request(names).context(cannot)?;
    write(out, &request)?;
    note_loopback(names);
    let shown = out.map_or_else(|| "FILE".to_owned(), |path| path.display().to_string());
    output::note(format_args!(
        "Request for {}; its key stays in {}.\n\
         Where the authority is: lighter certs sign {shown} --out CERT; then here the command that it prints",
        names.join(", "),
        key.path().display()
    ));
    Ok(Exit::Done)
}

/// Signs the request in `file` with the authority in this state folder.
pub(super) fn sign(state: &StateDir, file: &Path, out: Option<&Path>) -> Result<Exit> {
    let certs = state.certs();
    let authority = Authority::load(&certs).with_context(|| {
        format!(
            "cannot sign with {}: sign where the authority was created (`lighter certs init`)",
            certs.display()
        )
    })?;
    let refused = || format!("cannot sign the request {}", shown(file));
    let request = Request::from_pem(&read(file, REQUEST_BYTES_MAX)?).with_context(refused)?;
    output::note(format_args!("Names: {}", request.names().join(", ")));
    note_loopback(request.names());
    let bundle = authority.sign(&request).with_context(refused)?;
    authority.record(&certs, bundle.cert_pem())?;
    write(out, &bundle.to_pem())?;
    describe(&bundle)?;
    let name = out.and_then(Path::file_name).unwrap_or("CERT".as_ref());
    output::note(format_args!(
        "On the host that made the request: {} {}",
        install_command(&bundle.authorities()?),
        name.display()
    ));
    Ok(Exit::Done)
}

/// Warns of names by which every host means itself: a certificate for them is of use only between
/// nodes on one host.
fn note_loopback(names: &[String]) {
    let own: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| is_loopback(name)).collect();
    if !own.is_empty() {
        output::note(format_args!(
            "lighter: no other host can reach this one by {}: every host means itself by that",
            own.join(", ")
        ));
    }
}

fn is_loopback(name: &str) -> bool {
    let domain = name.trim_end_matches('.').to_ascii_lowercase();
    let address = name.parse::<IpAddr>().map(|address| address.to_canonical());
    domain == "localhost"
        || domain.ends_with(".localhost")
        || address.is_ok_and(|address| address.is_loopback())
}

/// Returns the command that installs a certificate of these authorities alone, without its file.
fn install_command(authorities: &[String]) -> String {
    let options: String = authorities.iter().map(|it| format!(" --authority {it}")).collect();
    format!("lighter certs install{options}")
}

/// Installs the certificate in `file` on this host. With `expected` fingerprints, the certificate
/// must come with no other authorities.
pub(super) fn install(
    state: &StateDir,
    file: &Path,
    expected: &[String],
    other: OtherAuthority,
) -> Result<Exit> {
    state.create()?;
    let certs = state.certs();
    let refused = || format!("cannot install {}", shown(file));
    let bundle = Bundle::from_pem(&read(file, BUNDLE_BYTES_MAX)?).with_context(refused)?;
    let _lock = lock_changes(&certs)?;
    if expected.is_empty() {
        note_new_authorities(&bundle, &certs, other).with_context(refused)?;
    } else {
        expect_authorities(&bundle, expected).with_context(refused)?;
    }
    bundle.install(&certs, other).with_context(refused)?;
    output::note(format_args!(
        "Installed the certificate of {} in {}.",
        names(&bundle),
        certs.display()
    ));
    describe(&bundle)?;
    Ok(Exit::Done)
}

/// Checks that the certificate comes with authorities of these fingerprints alone.
fn expect_authorities(bundle: &Bundle, expected: &[String]) -> Result<()> {
    let found = bundle.authorities()?;
    let Some(other) = found.iter().find(|it| !expected.contains(it)) else { return Ok(()) };
    bail!(
        "its authority is SHA256 {other}, not the one that --authority names: get the file, and the fingerprint that `lighter \
         certs sign` prints, over a channel that nothing can change"
    )
}

/// Notes which authorities this host is about to trust though the user has not named them, and how
/// to undo that.
fn note_new_authorities(bundle: &Bundle, certs: &Path, other: OtherAuthority) -> Result<()> {
    let new = bundle.new_authorities(certs, other)?;
    for fingerprint in &new {
        output::note(format_args!("This host will trust a new authority: SHA256 {fingerprint}"));
    }
    if new.is_empty() {
        return Ok(());
    }
    let undo = match other {
        OtherAuthority::Refuse => format!("remove ca.pem and host.pem from {}", certs.display()),
        OtherAuthority::Replace => {
            "install a certificate of the former authority with --replace-authority".to_owned()
        }
    };
    output::note(format_args!(
        "If `lighter certs sign` showed another fingerprint, {undo}. Next time: {} CERT refuses any other authority.",
        install_command(&new)
    ));
    Ok(())
}

/// Renews this host's certificate if its authority is here; otherwise writes a request for that.
pub(super) fn renew(state: &StateDir, out: Option<&Path>) -> Result<Exit> {
    let certs = state.certs();
    let current = HostCertificate::load(&certs).context("there is no certificate to renew")?;
    let _lock = lock_changes(&certs)?;
    let Some(authority) = own_authority(&certs)? else {
        let names = names_to_renew(&current.names);
        if names.is_empty() {
            bail!(
                "this host's certificate has no names: make a request with `lighter certs request`"
            );
        }
        return write_request(&certs, &names, out);
    };
    let renewed = renew_here(&certs, &authority, &current)?;
    output::note(format_args!(
        "Renewed the certificate of {}; valid until {}. A running node uses it within a minute.",
        renewed.names.join(", "),
        until(&Expiry::load(&certs)?)
    ));
    Ok(Exit::Done)
}

fn names(bundle: &Bundle) -> String {
    bundle.certificate().names.join(", ")
}

/// Notes what both hosts' users can compare.
fn describe(bundle: &Bundle) -> Result<()> {
    output::note(format_args!("Serial: {}", bundle.certificate().serial));
    output::note(format_args!("Valid until: {}", until(&bundle.expiry()?)));
    for fingerprint in bundle.authorities()? {
        output::note(format_args!("Authority: SHA256 {fingerprint}"));
    }
    Ok(())
}

/// Returns until when a certificate can be used, and why not longer if its authority is the reason.
fn until(expiry: &Expiry) -> String {
    let time = calendar_time(expiry.until_unix_s);
    match expiry.limit {
        Limit::Host => time,
        Limit::Authority => format!("{time}, when its authority expires: {REPLACE_AUTHORITY}"),
    }
}

/// Reads a text of at most `bytes_max` bytes from a file, or from stdin for `-`.
fn read(file: &Path, bytes_max: u64) -> Result<String> {
    let cannot = || format!("cannot read {}", shown(file));
    if file != Path::new("-") {
        return regular_file::read_text(file, bytes_max).with_context(cannot);
    }
    let mut bytes = Vec::new();
    io::stdin().take(bytes_max + 1).read_to_end(&mut bytes).with_context(cannot)?;
    if bytes.len() as u64 > bytes_max {
        bail!("{}: it is too large: more than {bytes_max} bytes", cannot());
    }
    String::from_utf8(bytes).with_context(cannot)
}

fn shown(file: &Path) -> String {
    if file == Path::new("-") { "from stdin".to_owned() } else { file.display().to_string() }
}

/// Writes `text` to a file, or to stdout. Never in place of a private key.
fn write(out: Option<&Path>, text: &str) -> Result<()> {
    let Some(path) = out else { return output::print(text) };
    let cannot = || format!("cannot write {}", path.display());
    let existing = regular_file::read_text(path, BUNDLE_BYTES_MAX);
    if existing.is_ok_and(|existing| existing.contains("PRIVATE KEY")) {
        bail!("{}: it holds a private key", cannot());
    }
    let written = File::create(path).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        // A pipe or a device has nothing to flush.
        let is_file = fs::metadata(path).is_ok_and(|found| found.is_file());
        if is_file { file.sync_all() } else { Ok(()) }
    });
    written.with_context(cannot)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use migrate::quic::Tls;

    use super::*;

    /// Two state folders: of the authority, and of a new host.
    struct Fleet {
        folder: tempfile::TempDir,
        authority: StateDir,
        host: StateDir,
    }

    impl Fleet {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let state = |name: &str| StateDir::new(&folder.path().join(name)).unwrap();
            let (authority, host) = (state("a"), state("b"));
            super::super::init(&authority, &["host-a".to_owned()]).unwrap();
            Self { authority, host, folder }
        }

        fn file(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        /// Requests a certificate for the new host and signs it; returns its file.
        fn signed(&self) -> PathBuf {
            let (csr, pem) = (self.file("host-b.csr"), self.file("host-b.pem"));
            request(&self.host, &["host-b".to_owned()], Some(&csr)).unwrap();
            sign(&self.authority, &csr, Some(&pem)).unwrap();
            pem
        }
    }

    #[test]
    fn a_certificate_is_requested_signed_installed_and_renewed() {
        let fleet = Fleet::new();
        let pem = fleet.signed();
        for file in ["host-b.csr", "host-b.pem"] {
            let text = fs::read_to_string(fleet.file(file)).unwrap();
            assert!(!text.contains("PRIVATE"), "{file}: {text}");
        }
        install(&fleet.host, &pem, &[], OtherAuthority::Refuse).unwrap();
        Tls::load(&fleet.host.certs()).unwrap();
        let first = HostCertificate::load(&fleet.host.certs()).unwrap();
        assert_eq!(first.names, ["host-b"]);

        renew(&fleet.host, Some(&fleet.file("again.csr"))).unwrap();
        assert_eq!(HostCertificate::load(&fleet.host.certs()).unwrap(), first, "still in use");
        sign(&fleet.authority, &fleet.file("again.csr"), Some(&pem)).unwrap();
        install(&fleet.host, &pem, &[], OtherAuthority::Refuse).unwrap();
        let second = HostCertificate::load(&fleet.host.certs()).unwrap();
        assert!(second.names == first.names && second.serial != first.serial);
        assert_eq!(Authority::issued_to(&fleet.authority.certs(), "host-b").unwrap().len(), 2);
        assert!(!fleet.host.certs().join("host.key.new").exists());
    }

    #[test]
    fn an_authority_that_was_not_named_is_not_installed() {
        let fleet = Fleet::new();
        let pem = fleet.signed();
        let bundle = Bundle::from_pem(&fs::read_to_string(&pem).unwrap()).unwrap();
        let right = bundle.authorities().unwrap();
        let wrong = vec![right[0].chars().rev().collect::<String>()];
        let install =
            |expected: &[String]| install(&fleet.host, &pem, expected, OtherAuthority::Refuse);
        let error = format!("{:#}", install(&wrong).unwrap_err());
        assert!(error.contains(&right[0]) && error.contains("--authority"), "{error}");
        for file in ["ca.pem", "host.pem"] {
            assert!(!fleet.host.certs().join(file).exists(), "{file}");
        }
        install(&right).unwrap();
        Tls::load(&fleet.host.certs()).unwrap();
        let command = install_command(&right);
        assert_eq!(command, format!("lighter certs install --authority {}", right[0]));
    }

    #[test]
    fn a_request_is_signed_only_where_the_authority_is() {
        let fleet = Fleet::new();
        let csr = fleet.file("csr");
        request(&fleet.host, &["host-b".to_owned()], Some(&csr)).unwrap();
        let error = format!("{:#}", sign(&fleet.host, &csr, None).unwrap_err());
        assert!(error.contains("sign where the authority was created"), "{error}");
    }

    #[test]
    fn files_that_are_no_requests_or_too_large_are_refused() {
        let fleet = Fleet::new();
        let file = fleet.file("csr");
        for (content, words) in [
            (String::new(), "not a request"),
            (" ".repeat(REQUEST_BYTES_MAX as usize + 1), "too large"),
        ] {
            fs::write(&file, content).unwrap();
            let error = format!("{:#}", sign(&fleet.authority, &file, None).unwrap_err());
            assert!(error.contains(words) && error.contains("csr"), "{error}");
        }
        let error = format!("{:#}", sign(&fleet.authority, &fleet.file("none"), None).unwrap_err());
        assert!(error.contains("cannot read"), "{error}");
        assert_eq!(Authority::issued_to(&fleet.authority.certs(), "host-b").unwrap().len(), 0);
    }

    #[test]
    fn names_of_every_host_are_told_from_those_of_one() {
        for own in ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.1.2.3", "::1"] {
            assert!(is_loopback(own), "{own}");
        }
        for other in ["localhost.example.net", "host-b", "192.0.2.7", "2001:db8::7"] {
            assert!(!is_loopback(other), "{other}");
        }
        assert!(!host_names("request").unwrap().contains(&"127.0.0.1".to_owned()));
    }

    #[test]
    fn addresses_of_no_single_host_are_not_requested() {
        let fleet = Fleet::new();
        let csr = fleet.file("csr");
        for shared in ["0.0.0.0", "::", "ff02::1"] {
            let names = ["host-b".to_owned(), shared.to_owned()];
            let error = format!("{:#}", request(&fleet.host, &names, Some(&csr)).unwrap_err());
            assert!(error.contains(&format!("{shared} is not the address of one host")), "{error}");
        }
        assert!(!csr.exists() && !fleet.host.certs().join("host.key").exists());
    }

    #[test]
    fn a_private_key_is_not_overwritten_by_a_result() {
        let fleet = Fleet::new();
        let key = fleet.authority.certs().join("ca.key");
        let before = fs::read(&key).unwrap();
        let error = request(&fleet.host, &["host-b".to_owned()], Some(&key)).unwrap_err();
        assert!(format!("{error:#}").contains("holds a private key"), "{error:#}");
        assert_eq!(fs::read(&key).unwrap(), before);
    }

    #[test]
    fn there_must_be_a_certificate_to_renew() {
        let fleet = Fleet::new();
        let error = format!("{:#}", renew(&fleet.host, None).unwrap_err());
        assert!(error.contains("no certificate to renew"), "{error}");
        renew(&fleet.authority, None).unwrap();
        Tls::load(&fleet.authority.certs()).unwrap();
    }
}
