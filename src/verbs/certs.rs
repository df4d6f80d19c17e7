//! `lighter certs`: the authority and the certificates with which hosts know each other.

use std::path::Path;

use anyhow::{Context, Result, bail};
use migrate::quic::{Authority, HostCertificate, Identity, Tls, calendar_time};
use migrate::report::Role;
use serde::Serialize;

use crate::cli::Output;
use crate::cli::host::{CertsAction, CertsArgs};
use crate::durable;
use crate::exit::Exit;
use crate::names::GuestName;
use crate::output;
use crate::state_dir::StateDir;
use crate::table::facts;

/// Longest files that are read, in bytes.
const PEM_BYTES_MAX: u64 = 1 << 20;
const CRL_BYTES_MAX: u64 = 1 << 20;

/// Does one of `init`, `host`, `guest`, `revoke` and `show`.
///
/// # Errors
/// A file is there already (keys are never overwritten), is missing, or cannot be used.
pub(crate) fn run(state: &StateDir, args: &CertsArgs) -> Result<Exit> {
    match &args.action {
        CertsAction::Init { names } => init(state, names),
        CertsAction::Host { names, out } => host(state, names, out),
        CertsAction::Guest { name } => {
            output::print_json(&identity_of(state, name)?)?;
            Ok(Exit::Done)
        }
        CertsAction::Revoke { host } => revoke(state, host),
        CertsAction::Show { json } => show(state, json.output()),
    }
}

/// With what the process of the guest proves itself to other hosts: it has no other key.
///
/// # Errors
/// This host's certificates cannot be used, or there is no such guest.
pub(crate) fn identity_of(state: &StateDir, guest: &GuestName) -> Result<Identity> {
    state.live_guest(guest)?;
    // Not what its process says of itself.
    Ok(Identity::of_guest(&state.certs(), state.read_uuid(guest)?, Role::Source)?)
}

fn init(state: &StateDir, names: &[String]) -> Result<Exit> {
    state.create()?;
    let certs = state.certs();
    let names = if names.is_empty() { own_names()? } else { names.to_vec() };
    let authority = Authority::create().context("cannot make a certificate authority")?;
    // First, so that a wrong name leaves nothing behind.
    let identity = authority.issue(&names).context("cannot make this host's certificate")?;
    authority.save(&certs).context("cannot save the certificate authority")?;
    authority.record(&certs, &identity)?;
    identity.save(&certs).context("cannot save this host's certificate")?;
    output::print_line(format_args!(
        "Made a certificate authority and this host's certificate ({}) in {}.\n\
         For another host: lighter certs host NAME [ADDRESS...] --out DIR",
        names.join(", "),
        certs.display()
    ))?;
    Ok(Exit::Done)
}

fn host(state: &StateDir, names: &[String], out: &Path) -> Result<Exit> {
    let authority = Authority::load(&state.certs())
        .context("this host cannot issue certificates: do it where the authority was made, or make one with `lighter certs init`")?;
    let identity = authority.issue(names)?;
    authority.record(&state.certs(), &identity)?;
    identity
        .save(out)
        .with_context(|| format!("cannot save the certificate of {}", names.join(", ")))?;
    output::print_line(format_args!(
        "Made a certificate for {} in {}.\n\
         Copy ca.pem, host.pem and host.key to the folder `certs` of that host's state folder, by a safe way.",
        names.join(", "),
        out.display()
    ))?;
    Ok(Exit::Done)
}

fn revoke(state: &StateDir, host: &str) -> Result<Exit> {
    let certs = state.certs();
    let authority = Authority::load(&certs)
        .context("this host cannot revoke certificates: do it where the authority was made")?;
    let file = Path::new(host);
    let revoked = match file.is_file() {
        true => vec![regular_file::read_text(file, PEM_BYTES_MAX).context("cannot read it")?],
        false => Authority::issued_to(&certs, host)?,
    };
    if revoked.is_empty() {
        bail!(
            "this authority has put down no certificate for {host}: give the file of one, host.pem"
        );
    }
    let list = certs.join("crl.pem");
    let before = match regular_file::read_text(&list, CRL_BYTES_MAX) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        read => read.with_context(|| format!("cannot read {}", list.display()))?,
    };
    let after = authority.revoke(&before, &revoked)?;
    durable::replace(&list, after.as_bytes())?;
    output::print_line(format_args!(
        "Certificates of {host} that are revoked now: {}.\n\
         Copy {} to the folder `certs` of every other host: its node heeds it within a minute. What is under way goes on.",
        revoked.len(),
        list.display()
    ))?;
    Ok(Exit::Done)
}

/// What `show` tells.
#[derive(Debug, Serialize)]
struct Shown {
    /// Where the certificates are.
    folder: String,
    /// This host can issue certificates for others.
    authority: bool,
    /// This host's certificate and key are there and fit together.
    usable: bool,
    /// Why not.
    problem: Option<String>,
    /// What the certificate says, when it can be read.
    #[serde(flatten)]
    certificate: Option<ShownCertificate>,
}

/// What this host's certificate says.
#[derive(Debug, Serialize)]
struct ShownCertificate {
    /// Its number.
    serial: String,
    /// Names and addresses under which the host is reached.
    names: Vec<String>,
    /// From when on it is valid, in seconds since 1970.
    valid_from_unix_s: i64,
    /// Until when, in seconds since 1970.
    valid_until_unix_s: i64,
}

impl From<HostCertificate> for ShownCertificate {
    fn from(certificate: HostCertificate) -> Self {
        let HostCertificate { serial, names, valid_from_unix_s, valid_until_unix_s } = certificate;
        Self { serial, names, valid_from_unix_s, valid_until_unix_s }
    }
}

fn show(state: &StateDir, output: Output) -> Result<Exit> {
    let certs = state.certs();
    let problem = Tls::load(&certs).err().map(|error| error.to_string());
    let shown = Shown {
        folder: certs.display().to_string(),
        authority: Authority::load(&certs).is_ok(),
        usable: problem.is_none(),
        problem,
        certificate: HostCertificate::load(&certs).ok().map(ShownCertificate::from),
    };
    match output {
        Output::Json => output::print_json(&shown)?,
        Output::Text => output::print(text(&shown))?,
    }
    Ok(if shown.usable { Exit::Done } else { Exit::Failed })
}

fn text(shown: &Shown) -> String {
    let authority =
        if shown.authority { "here: this host can issue certificates" } else { "elsewhere" };
    let host = shown.problem.clone().unwrap_or_else(|| "usable".to_owned());
    let mut lines = vec![
        ("Folder", shown.folder.clone()),
        ("Authority", authority.to_owned()),
        ("This host", host),
    ];
    if let Some(certificate) = &shown.certificate {
        lines.push(("Names", certificate.names.join(", ")));
        lines.push(("Valid from", calendar_time(certificate.valid_from_unix_s)));
        lines.push(("Valid until", calendar_time(certificate.valid_until_unix_s)));
    }
    facts(&lines)
}

/// The host's name, in full and short, and the names of the loopback.
fn own_names() -> Result<Vec<String>> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .context("cannot read this host's name")?;
    let name = name.trim();
    if name.is_empty() || name == "(none)" {
        bail!("this host has no name: give one, as in `lighter certs init host-a 192.0.2.5`");
    }
    let mut names = vec![name.to_owned()];
    if let Some((short, _)) = name.split_once('.') {
        names.push(short.to_owned());
    }
    names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::JsonFlag;

    fn args(action: CertsAction) -> CertsArgs {
        CertsArgs { action }
    }

    #[test]
    fn an_initialised_host_can_use_its_certificates_and_issue_others() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path()).unwrap();
        let show = || args(CertsAction::Show { json: JsonFlag::default() });
        assert_eq!(run(&state, &show()).unwrap(), Exit::Failed);

        run(&state, &args(CertsAction::Init { names: vec!["host-a".to_owned()] })).unwrap();
        assert_eq!(run(&state, &show()).unwrap(), Exit::Done);

        let out = folder.path().join("b/certs");
        run(
            &state,
            &args(CertsAction::Host { names: vec!["host-b".to_owned()], out: out.clone() }),
        )
        .unwrap();
        assert!(Tls::load(&out).is_ok());
        assert!(!out.join("ca.key").exists());
    }

    #[test]
    fn a_wrong_name_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path()).unwrap();
        let wrong = args(CertsAction::Init { names: vec!["bad name".to_owned()] });
        let error = format!("{:#}", run(&state, &wrong).unwrap_err());
        assert!(error.contains("`bad name` is neither a DNS name nor an IP address"), "{error}");
        assert_eq!(std::fs::read_dir(state.certs()).unwrap().count(), 0);
    }

    #[test]
    fn a_guest_that_does_not_live_here_is_vouched_for_by_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path()).unwrap();
        run(&state, &args(CertsAction::Init { names: vec!["host-a".to_owned()] })).unwrap();
        let name: GuestName = "gone".parse().unwrap();
        state.write_uuid(&name, uuid::Uuid::nil()).unwrap();
        let error = format!("{:#}", identity_of(&state, &name).unwrap_err());
        assert!(error.contains("no guest gone"), "{error}");
    }

    #[test]
    fn keys_are_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path()).unwrap();
        let init = args(CertsAction::Init { names: vec!["host-a".to_owned()] });
        run(&state, &init).unwrap();
        assert!(run(&state, &init).is_err());
    }
}
