//! `lighter certs show`.

use std::path::Path;
use std::time::SystemTime;

use anyhow::Result;
use migrate::quic::{
    Authority, Expiry, HostCertificate, Limit, PendingKey, Tls, calendar_time, trusted_authorities,
};
use serde::Serialize;

use crate::cli::Output;
use crate::exit::Exit;
use crate::host_certificate::{REPLACE_AUTHORITY, when};
use crate::output;
use crate::state_dir::StateDir;
use crate::table::facts;

/// The output of `show`.
#[derive(Debug, Serialize)]
struct Shown {
    /// Folder of the certificates.
    folder: String,
    /// Whether this host can issue certificates for others.
    authority: bool,
    /// Why it cannot, although the authority's key may be here.
    authority_problem: Option<String>,
    /// Whether this host's certificate and key exist and match.
    usable: bool,
    /// Why they cannot be used.
    problem: Option<String>,
    /// SHA-256 fingerprints of the authorities that this host trusts.
    authorities_sha256: Vec<String>,
    /// Whether a key of this host waits for the certificate that was requested for it.
    request_waits: bool,
    /// The content of the certificate, if it can be read.
    #[serde(flatten)]
    certificate: Option<ShownCertificate>,
}

/// The content of this host's certificate.
#[derive(Debug, Serialize)]
struct ShownCertificate {
    /// Serial number, in hexadecimal digits.
    serial: String,
    /// Names and addresses under which the host is reached.
    names: Vec<String>,
    /// Start of its validity, in seconds since 1970.
    valid_from_unix_s: i64,
    /// End of its validity, in seconds since 1970.
    valid_until_unix_s: i64,
    /// When it expires, or its authority if that is earlier, in seconds since 1970.
    expires_unix_s: i64,
    /// Which of the two expires then.
    limited_by: Limit,
    /// Seconds until then; negative afterwards.
    left_s: i64,
}

impl ShownCertificate {
    fn new(certificate: HostCertificate, expiry: &Expiry, now: SystemTime) -> Self {
        let HostCertificate { serial, names, valid_from_unix_s, valid_until_unix_s } = certificate;
        Self {
            serial,
            names,
            valid_from_unix_s,
            valid_until_unix_s,
            expires_unix_s: expiry.until_unix_s,
            limited_by: expiry.limit,
            left_s: expiry.left_s(now),
        }
    }

    /// Returns the lines about its validity.
    fn validity(&self) -> Vec<(&'static str, String)> {
        let [from, until, end] =
            [self.valid_from_unix_s, self.valid_until_unix_s, self.expires_unix_s]
                .map(calendar_time);
        let left = when(self.left_s);
        let from = ("Valid from", from);
        match self.limited_by {
            Limit::Host => vec![from, ("Valid until", format!("{until} ({left})"))],
            Limit::Authority => vec![
                from,
                ("Valid until", until),
                ("Authority until", format!("{end} ({left}): {REPLACE_AUTHORITY}")),
            ],
        }
    }
}

impl Shown {
    /// Reads the certificates in the folder `certs`.
    fn read(certs: &Path) -> Self {
        let problem = Tls::load(certs).err().map(|error| error.to_string());
        let authority = Authority::find(certs);
        let certificate = HostCertificate::load(certs).ok().map(|found| {
            // Without a readable ca.pem, which is reported as a problem, the host's own counts.
            let expiry = Expiry::load(certs).unwrap_or_else(|_| Expiry::of(&found));
            ShownCertificate::new(found, &expiry, SystemTime::now())
        });
        Self {
            folder: certs.display().to_string(),
            authority: matches!(authority, Ok(Some(_))),
            authority_problem: authority.err().map(|error| error.to_string()),
            usable: problem.is_none(),
            problem,
            // Likewise.
            authorities_sha256: trusted_authorities(certs).unwrap_or_default(),
            request_waits: PendingKey::is_waiting(certs),
            certificate,
        }
    }
}

pub(super) fn show(state: &StateDir, output: Output) -> Result<Exit> {
    let shown = Shown::read(&state.certs());
    match output {
        Output::Json => output::print_json(&shown)?,
        Output::Text => output::print(text(&shown))?,
    }
    Ok(if shown.usable { Exit::Done } else { Exit::Failed })
}

fn text(shown: &Shown) -> String {
    let authority = match &shown.authority_problem {
        Some(problem) => format!("not usable: {problem}"),
        None if shown.authority => "here: this host can issue certificates".to_owned(),
        None => "not on this host".to_owned(),
    };
    let host = shown.problem.clone().unwrap_or_else(|| "usable".to_owned());
    let mut lines = vec![("Folder", shown.folder.clone()), ("Authority", authority)];
    lines.extend(shown.authorities_sha256.iter().map(|it| ("Trusts", format!("SHA256 {it}"))));
    lines.push(("This host", host));
    if let Some(certificate) = &shown.certificate {
        lines.push(("Serial", certificate.serial.clone()));
        lines.push(("Names", certificate.names.join(", ")));
        lines.extend(certificate.validity());
        if shown.request_waits {
            let steps =
                "`lighter certs sign` where the authority is, then `lighter certs install` here";
            lines.push(("Request", format!("waits for a new certificate: {steps}")));
        }
    }
    facts(&lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(certs: &Path) -> (Shown, String) {
        let shown = Shown::read(certs);
        let text = text(&shown);
        (shown, text)
    }

    #[test]
    fn the_trusted_authority_is_shown_as_install_takes_it() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create().unwrap();
        authority.save(dir.path()).unwrap();
        authority.issue(&["host-a".into()]).unwrap().save(dir.path()).unwrap();
        let request = PendingKey::open(dir.path()).unwrap();
        let bundle = request.certified_by(&authority, &["host-a".into()]).unwrap();
        let (shown, text) = shown(dir.path());
        assert_eq!(shown.authorities_sha256, bundle.authorities().unwrap());
        assert!(text.contains(&format!("SHA256 {}", shown.authorities_sha256[0])), "{text}");
    }

    #[test]
    fn a_request_that_waits_is_shown_until_its_certificate_is_installed() {
        let dir = tempfile::tempdir().unwrap();
        let (before, text) = shown(dir.path());
        assert!(!before.request_waits && text.contains("begin with `lighter certs request`"));

        PendingKey::open(dir.path()).unwrap();
        let (first, text) = shown(dir.path());
        assert!(first.request_waits && !first.usable, "{text}");
        assert!(text.contains("certs sign") && !text.contains("certs request"), "{text}");

        std::fs::remove_file(dir.path().join("host.key")).unwrap();
        let issued = Authority::create().unwrap().issue(&["host-a".into()]).unwrap();
        issued.save(dir.path()).unwrap();
        let (usable, text) = shown(dir.path());
        assert!(usable.usable && !usable.request_waits && !text.contains("certs sign"), "{text}");
        PendingKey::open(dir.path()).unwrap();
        let (again, text) = shown(dir.path());
        assert!(again.usable && again.request_waits && text.contains("certs install"), "{text}");
    }
}
