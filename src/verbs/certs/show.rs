//! `lighter certs show`.

use std::time::SystemTime;

use anyhow::Result;
use migrate::quic::{Authority, Expiry, HostCertificate, Limit, Tls, calendar_time};
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

pub(super) fn show(state: &StateDir, output: Output) -> Result<Exit> {
    let certs = state.certs();
    let problem = Tls::load(&certs).err().map(|error| error.to_string());
    let authority = Authority::find(&certs);
    let certificate = HostCertificate::load(&certs).ok().map(|found| {
        // Without a readable ca.pem, which is reported as a problem, the host's own counts.
        let expiry = Expiry::load(&certs).unwrap_or_else(|_| Expiry::of(&found));
        ShownCertificate::new(found, &expiry, SystemTime::now())
    });
    let shown = Shown {
        folder: certs.display().to_string(),
        authority: matches!(authority, Ok(Some(_))),
        authority_problem: authority.err().map(|error| error.to_string()),
        usable: problem.is_none(),
        problem,
        certificate,
    };
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
    let mut lines =
        vec![("Folder", shown.folder.clone()), ("Authority", authority), ("This host", host)];
    if let Some(certificate) = &shown.certificate {
        lines.push(("Serial", certificate.serial.clone()));
        lines.push(("Names", certificate.names.join(", ")));
        lines.extend(certificate.validity());
    }
    facts(&lines)
}
