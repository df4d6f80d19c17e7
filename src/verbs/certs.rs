//! `lighter certs`: the certificate authority, and the certificates with which hosts authenticate.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use migrate::progress::Role;
use migrate::quic::{
    Authority, HostCertificate, Identity, Issued, OtherAuthority, Revocation, calendar_time,
    check_names,
};

use crate::cli::host::{CertsAction, CertsArgs};
use crate::exit::Exit;
use crate::host_certificate::{issue, lock, lock_changes};
use crate::names::GuestName;
use crate::output;
use crate::state_dir::StateDir;

mod request;
mod show;

/// Runs one of the actions of `lighter certs`.
///
/// # Errors
/// If a file exists already (keys are never overwritten), is missing, or cannot be used.
pub(crate) fn run(state: &StateDir, args: &CertsArgs) -> Result<Exit> {
    match &args.action {
        CertsAction::Init { names } => init(state, names),
        CertsAction::Request { names, out } => request::request(state, names, out.as_deref()),
        CertsAction::Sign { file, out } => request::sign(state, file, out.as_deref()),
        CertsAction::Install { file, authority, replace_authority } => {
            let other = match replace_authority {
                true => OtherAuthority::Replace,
                false => OtherAuthority::Refuse,
            };
            request::install(state, file, authority, other)
        }
        CertsAction::Renew { out } => request::renew(state, out.as_deref()),
        CertsAction::Host { names, out } => host(state, names, out),
        CertsAction::Guest { name } => {
            output::print_json(&identity_of(state, name)?)?;
            Ok(Exit::Done)
        }
        CertsAction::Revoke { which } => revoke(state, which),
        CertsAction::Show { json } => show::show(state, json.output()),
    }
}

/// Returns the identity with which the guest's process authenticates to other hosts: it has no
/// other key.
///
/// # Errors
/// If this host's certificates cannot be used, or there is no such guest.
pub(crate) fn identity_of(state: &StateDir, guest: &GuestName) -> Result<Identity> {
    state.live_guest(guest)?;
    // Not the UUID that the guest's process itself reports.
    Ok(Identity::of_guest(&state.certs(), state.read_uuid(guest)?, Role::Source)?)
}

fn init(state: &StateDir, names: &[String]) -> Result<Exit> {
    state.create()?;
    let certs = state.certs();
    let names = if names.is_empty() { own_names()? } else { names.to_vec() };
    // Before anything is saved, so that an invalid name leaves nothing behind.
    check_names(&names).context("cannot create this host's certificate")?;
    let _lock = lock_changes(&certs)?;
    let cannot = "cannot create a certificate authority";
    let (authority, what) = match Authority::unfinished(&certs).context(cannot)? {
        Some(found) => (found, "Completed the certificate authority with"),
        None => {
            let authority = Authority::create().context(cannot)?;
            authority.save(&certs).context("cannot save the certificate authority")?;
            (authority, "Created a certificate authority and")
        }
    };
    issue(&certs, &authority, &names).context("cannot create this host's certificate")?;
    output::print_line(format_args!(
        "{what} this host's certificate ({}) in {}.\n\
         On another host: lighter certs request NAME [ADDRESS...] --out FILE; then here: lighter certs sign FILE",
        names.join(", "),
        certs.display()
    ))?;
    Ok(Exit::Done)
}

fn host(state: &StateDir, names: &[String], out: &Path) -> Result<Exit> {
    let authority = Authority::load(&state.certs())
        .context("this host cannot issue certificates: do it where the authority was created, or create one with `lighter certs init`")?;
    let _lock = lock_changes(&state.certs())?;
    let identity = authority.issue(names)?;
    let cannot = || format!("cannot save the certificate of {}", names.join(", "));
    // A certificate that is not saved is not recorded either.
    identity.check_folder(out).with_context(cannot)?;
    authority.record(&state.certs(), &identity.cert_pem)?;
    identity.save(out).with_context(cannot)?;
    output::print_line(format_args!(
        "Created a certificate for {} in {}.\n\
         Copy ca.pem, host.pem and host.key over a secure channel to `certs` in that host's state folder, of root /var/lib/lighter/certs.",
        names.join(", "),
        out.display()
    ))?;
    Ok(Exit::Done)
}

fn revoke(state: &StateDir, which: &str) -> Result<Exit> {
    let certs = state.certs();
    let authority = Authority::load(&certs)
        .context("this host cannot revoke certificates: do it where the authority was created")?;
    // Each revocation extends the list that the previous one wrote.
    let _lock = lock(&certs, "revoke.lock")?;
    let found = match Path::new(which).is_file() {
        true => vec![Issued::read(Path::new(which))?],
        false => Authority::issued_to(&certs, which)?,
    };
    if found.is_empty() {
        bail!("no certificate recorded for {which}; give its host.pem");
    }
    output::print(revoked(which, &authority.revoke(&certs, &found)?))?;
    Ok(Exit::Done)
}

fn revoked(which: &str, revocation: &Revocation) -> String {
    let Revocation { done, before, list } = revocation;
    let plural = if done.len() == 1 { "" } else { "s" };
    let mut text = format!(
        "Revoked {} certificate{plural} of {which}{}\n",
        done.len(),
        if done.is_empty() { "." } else { ":" }
    );
    text.extend(done.iter().map(line));
    if !before.is_empty() {
        text.push_str("Revoked before:\n");
        text.extend(before.iter().map(line));
    }
    if done.len() > 1 {
        text.push_str(
            "A replacement that had been issued already is revoked, too: issue it again.\n",
        );
    }
    let list = list.display();
    let _ = writeln!(
        text,
        "Copy {list} to the folder `certs` of every other host. Its node reads the list within a minute; running migrations continue."
    );
    text
}

fn line(certificate: &HostCertificate) -> String {
    let HostCertificate { serial, names, valid_from_unix_s, valid_until_unix_s } = certificate;
    let [from, until] = [valid_from_unix_s, valid_until_unix_s].map(|time| calendar_time(*time));
    format!("  {serial}  {}  valid from {from} until {until}\n", names.join(", "))
}

/// Returns the names of the first host, which may be the only one: nodes on it reach each other by
/// the loopback names.
fn own_names() -> Result<Vec<String>> {
    let mut names = host_names("init")?;
    names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    Ok(names)
}

/// Returns the host's name, in full and short, for an action that was given no names.
fn host_names(action: &str) -> Result<Vec<String>> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .context("cannot read this host's name")?;
    let name = name.trim();
    if name.is_empty() || name == "(none)" {
        bail!("this host has no name: give one, as in `lighter certs {action} host-a 192.0.2.5`");
    }
    let mut names = vec![name.to_owned()];
    if let Some((short, _)) = name.split_once('.') {
        names.push(short.to_owned());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use migrate::quic::Tls;

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

    /// Creates a state folder with an authority, and the list of serials that it has revoked.
    fn initialised() -> (tempfile::TempDir, StateDir) {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path()).unwrap();
        run(&state, &args(CertsAction::Init { names: vec!["host-a".to_owned()] })).unwrap();
        (folder, state)
    }

    fn issue(state: &StateDir, name: &str, out: &Path) -> Issued {
        let host = CertsAction::Host { names: vec![name.to_owned()], out: out.to_owned() };
        run(state, &args(host)).unwrap();
        Issued::read(&out.join("host.pem")).unwrap()
    }

    #[test]
    fn every_certificate_that_is_revoked_is_shown() {
        let (folder, state) = initialised();
        let [old, new] =
            ["old", "new"].map(|out| issue(&state, "host-b", &folder.path().join(out)));
        let authority = Authority::load(&state.certs()).unwrap();
        let first = authority.revoke(&state.certs(), std::slice::from_ref(&old)).unwrap();
        let text = revoked("host-b", &first);
        let serial = |issued: &Issued| issued.certificate.serial.clone();
        assert!(text.starts_with("Revoked 1 certificate of host-b:\n"), "{text}");
        assert!(text.contains(&serial(&old)) && text.contains(" host-b  valid from 2"), "{text}");
        assert!(!text.contains("replacement") && text.contains("crl.pem"), "{text}");

        let again = authority.revoke(&state.certs(), &[old.clone(), new.clone()]).unwrap();
        let text = revoked("host-b", &again);
        let (done, before) = text.split_once("Revoked before:").unwrap();
        assert!(done.contains(&serial(&new)) && before.contains(&serial(&old)), "{text}");
        let none = revoked("host-b", &authority.revoke(&state.certs(), &[old]).unwrap());
        assert!(none.starts_with("Revoked 0 certificates of host-b.\n"), "{none}");
    }

    #[test]
    fn a_certificate_is_revoked_by_name_serial_or_file() {
        let (folder, state) = initialised();
        let outs = ["b", "c", "d"].map(|name| folder.path().join(name));
        let hosts = outs.each_ref().map(|out| issue(&state, "host-x", out));
        let revoke =
            |which: &str| run(&state, &args(CertsAction::Revoke { which: which.to_owned() }));
        let count = || {
            let entries = std::fs::read_dir(state.certs().join("issued")).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.filter(|name| name.ends_with(".revoked")).count()
        };
        revoke(&hosts[0].certificate.serial.to_uppercase()).unwrap();
        assert_eq!(count(), 1);
        revoke(outs[1].join("host.pem").to_str().unwrap()).unwrap();
        assert_eq!(count(), 2);
        revoke("HOST-X").unwrap();
        assert_eq!(count(), 3, "all of that name, and none of another");
        let error = format!("{:#}", revoke("host-y").unwrap_err());
        assert_eq!(error, "no certificate recorded for host-y; give its host.pem");
        let error =
            format!("{:#}", revoke(outs[1].join("host.key").to_str().unwrap()).unwrap_err());
        assert!(error.contains("host.key does not hold a certificate"), "{error}");
        // A folder does not stand for the certificate in it: its name may be a host's.
        assert!(revoke(outs[1].to_str().unwrap()).is_err());
    }

    #[test]
    fn certificates_that_are_revoked_at_once_are_all_in_the_list() {
        let (folder, state) = initialised();
        let hosts: Vec<Issued> =
            (0..8).map(|at| issue(&state, "host-b", &folder.path().join(at.to_string()))).collect();
        std::thread::scope(|scope| {
            for issued in &hosts {
                let which = issued.certificate.serial.clone();
                scope.spawn(|| run(&state, &args(CertsAction::Revoke { which })).unwrap());
            }
        });
        // Otherwise the records would restore what the list lacks.
        std::fs::remove_dir_all(state.certs().join("issued")).unwrap();
        let authority = Authority::load(&state.certs()).unwrap();
        let revocation = authority.revoke(&state.certs(), &hosts).unwrap();
        assert_eq!((revocation.done.len(), revocation.before.len()), (0, 8));
    }

    #[test]
    fn a_guest_that_is_not_here_gets_no_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path()).unwrap();
        run(&state, &args(CertsAction::Init { names: vec!["host-a".to_owned()] })).unwrap();
        let name: GuestName = "gone".parse().unwrap();
        state.prepare_guest(&name, uuid::Uuid::nil()).unwrap();
        let error = format!("{:#}", identity_of(&state, &name).unwrap_err());
        assert!(error.contains("no guest gone"), "{error}");
    }

    #[test]
    fn keys_are_not_overwritten() {
        let (folder, state) = initialised();
        let files = || {
            let names = ["ca.key", "ca.pem", "host.key", "host.pem"];
            names.map(|name| std::fs::read(state.certs().join(name)).unwrap())
        };
        let before = files();
        let again = args(CertsAction::Init { names: vec!["host-a".to_owned()] });
        let error = format!("{:#}", run(&state, &again).unwrap_err());
        assert!(error.contains("host.pem") && error.contains("lighter certs renew"), "{error}");
        assert_eq!(files(), before);

        let out = folder.path().join("b");
        issue(&state, "host-b", &out);
        let names = vec!["host-b".to_owned()];
        let again = args(CertsAction::Host { names, out: out.clone() });
        let error = format!("{:#}", run(&state, &again).unwrap_err());
        assert!(error.contains("exists already") && !error.contains("invalidates"), "{error}");
        let recorded = Authority::issued_to(&state.certs(), "host-b").unwrap();
        assert_eq!(recorded.len(), 1, "what was not saved is not recorded");
    }

    #[test]
    fn an_authority_is_completed_after_a_request_or_a_loss_of_power() {
        let init = || args(CertsAction::Init { names: vec!["host-a".to_owned()] });
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path()).unwrap();
        let certs = state.certs();
        let csr = folder.path().join("csr");
        request::request(&state, &["host-x".to_owned()], Some(&csr)).unwrap();
        let key = std::fs::read(certs.join("host.key")).unwrap();
        run(&state, &init()).unwrap();
        Tls::load(&certs).unwrap();
        assert_eq!(std::fs::read(certs.join("host.key")).unwrap(), key);

        let authority = std::fs::read(certs.join("ca.key")).unwrap();
        for lost in [&["host.pem"][..], &["host.pem", "host.key"]] {
            lost.iter().for_each(|name| std::fs::remove_file(certs.join(name)).unwrap());
            run(&state, &init()).unwrap();
            Tls::load(&certs).unwrap();
            assert_eq!(std::fs::read(certs.join("ca.key")).unwrap(), authority);
        }
    }
}
