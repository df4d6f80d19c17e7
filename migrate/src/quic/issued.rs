//! The certificates that an authority has issued, and which of them it has revoked: the folder
//! `issued/` beside its key.
//!
//! `SERIAL.pem` is a certificate, `SERIAL.revoked` says that it is revoked. `crl.pem` is also made
//! from these files, so certificates stay revoked if that list is lost.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::DirEntry;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::authority::Authority;
use super::certificate::{HostCertificate, TlsError};
use super::files::{CertError, ISSUED, Mode, create_dir, file, read, write_new};

/// A host's certificate issued by an authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate in PEM.
    pub(super) pem: String,
    /// The decoded certificate.
    pub certificate: HostCertificate,
}

impl Issued {
    /// Reads the first certificate in the file at `path`.
    ///
    /// # Errors
    /// [`CertError::File`] or [`CertError::NotACertificate`].
    pub fn read(path: &Path) -> Result<Self, CertError> {
        let pem = read(path)?;
        let certificate = parse(&pem, path)?;
        Ok(Self { pem, certificate })
    }
}

fn parse(pem: &str, path: &Path) -> Result<HostCertificate, CertError> {
    HostCertificate::from_pem(pem).map_err(|error| {
        let cause = match error {
            TlsError::Pem { cause, .. } => cause.to_string(),
            TlsError::Malformed { cause } => cause,
            other => other.to_string(),
        };
        CertError::NotACertificate { path: path.into(), cause }
    })
}

impl Authority {
    /// Records in `dir`, the authority's folder, that it has issued the certificate `cert_pem`. One
    /// that is not recorded can only be revoked with its file, which may be lost with its host.
    ///
    /// # Errors
    /// [`CertError::NotACertificate`] or [`CertError::File`].
    pub fn record(&self, dir: &Path, cert_pem: &str) -> Result<(), CertError> {
        let folder = dir.join(ISSUED);
        let serial = parse(cert_pem, &folder)?.serial;
        make(&folder)?;
        write_new(&folder.join(format!("{serial}.pem")), cert_pem, Mode::Public)
    }

    /// Returns whether `dir`, the authority's folder, records that `certificate` is revoked.
    ///
    /// # Errors
    /// [`CertError`], naming the record that cannot be read.
    pub fn has_revoked(dir: &Path, certificate: &HostCertificate) -> Result<bool, CertError> {
        let known = revoked(dir)?;
        Ok(serial_bytes(&certificate.serial).is_some_and(|serial| known.contains_key(&serial)))
    }

    /// Returns the certificates that [`Authority::record`] recorded in `dir` and that `which`
    /// selects: by a name or address that they are valid for, or by serial.
    ///
    /// # Errors
    /// [`CertError`], naming the file: one that cannot be read might be the one selected. Only
    /// files whose names end in `.pem` are read.
    pub fn issued_to(dir: &Path, which: &str) -> Result<Vec<Issued>, CertError> {
        let folder = dir.join(ISSUED);
        // As `openssl x509 -serial` prints it, or with colons.
        let serial = which.replace(':', "").to_ascii_lowercase();
        if serial_bytes(&serial).is_some() {
            match Issued::read(&folder.join(format!("{serial}.pem"))) {
                Err(error) if error.is_missing() => {}
                read => return read.map(|issued| vec![issued]),
            }
        }
        let mut found = Vec::new();
        for path in with_suffix(&folder, "pem")? {
            found.push(Issued::read(&path)?);
        }
        found.retain(|issued| issued.certificate.is_for(which));
        found.sort_by_key(|issued| issued.certificate.valid_from_unix_s);
        Ok(found)
    }
}

/// Returns the serials that are recorded in `dir` as revoked, each with the time of its revocation,
/// in seconds since 1970, if that can be read.
pub(super) fn revoked(dir: &Path) -> Result<BTreeMap<Vec<u8>, Option<i64>>, CertError> {
    let mut found = BTreeMap::new();
    for path in with_suffix(&dir.join(ISSUED), "revoked")? {
        let Some(serial) = path.file_stem().and_then(OsStr::to_str).and_then(serial_bytes) else {
            return Err(CertError::NoSerial { path });
        };
        // The file's existence counts: a full disk may have left it empty.
        found.insert(serial, read(&path).ok().and_then(|text| text.trim().parse().ok()));
    }
    Ok(found)
}

/// Records in `dir` that the certificate with `serial` was revoked at `at_s`, in seconds since
/// 1970.
pub(super) fn record_revoked(dir: &Path, serial: &[u8], at_s: i64) -> Result<(), CertError> {
    let folder = dir.join(ISSUED);
    make(&folder)?;
    let path = folder.join(format!("{}.revoked", hex(serial)));
    write_new(&path, &format!("{at_s}\n"), Mode::Public)
}

fn make(folder: &Path) -> Result<(), CertError> {
    create_dir(folder)?;
    regular_file::sync_folder_of(folder).map_err(|cause| file("create", folder, cause))
}

/// Returns the paths in `folder` that end in `.suffix`; none if the folder does not exist.
fn with_suffix(folder: &Path, suffix: &str) -> Result<Vec<PathBuf>, CertError> {
    let cannot = |cause| file("read", folder, cause);
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(cannot)?,
    };
    let entries: Vec<DirEntry> = entries.collect::<Result<_, _>>().map_err(cannot)?;
    let paths = entries.iter().map(DirEntry::path);
    Ok(paths.filter(|path| path.extension() == Some(OsStr::new(suffix))).collect())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Decodes a serial written in `hex`, two digits per byte.
fn serial_bytes(hex: &str) -> Option<Vec<u8>> {
    if hex.is_empty()
        || !hex.len().is_multiple_of(2)
        || !hex.bytes().all(|digit| digit.is_ascii_hexdigit())
    {
        return None;
    }
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    fn issue(authority: &Authority, dir: &Path, names: &[&str]) -> Issued {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let issued = authority.issue(&names).unwrap();
        authority.record(dir, &issued.cert_pem).unwrap();
        let certificate = HostCertificate::from_pem(&issued.cert_pem).unwrap();
        Issued { pem: issued.cert_pem, certificate }
    }

    #[test]
    fn an_issued_certificate_is_found_by_any_name_and_by_serial() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create().unwrap();
        let find = |which: &str| Authority::issued_to(dir.path(), which).unwrap();
        assert!(find("a").is_empty());
        let first = issue(&authority, dir.path(), &["a", "192.0.2.5", "2001:db8::5"]);
        let second = issue(&authority, dir.path(), &["b"]);
        for which in ["A", "192.0.2.5", "2001:DB8::0:5"] {
            assert_eq!(find(which), from_ref(&first), "{which}");
        }
        let serial = &second.certificate.serial;
        let pairs: Vec<&str> = (0..serial.len()).step_by(2).map(|at| &serial[at..at + 2]).collect();
        for which in ["b", serial, &serial.to_uppercase(), &pairs.join(":")] {
            assert_eq!(find(which), from_ref(&second), "{which}");
        }
        for which in ["c", "", "beef", &serial[..serial.len() - 2]] {
            assert!(find(which).is_empty(), "{which}");
        }
    }

    #[test]
    fn other_files_are_skipped_unless_named_as_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create().unwrap();
        let issued = issue(&authority, dir.path(), &["a"]);
        let folder = dir.path().join(ISSUED);
        std::fs::create_dir(folder.join("backup")).unwrap();
        std::fs::write(folder.join("notes.txt"), "not a certificate").unwrap();
        assert_eq!(Authority::issued_to(dir.path(), "a").unwrap(), from_ref(&issued));

        for content in ["", "not a certificate"] {
            std::fs::write(folder.join("odd.pem"), content).unwrap();
            let error = Authority::issued_to(dir.path(), "a").unwrap_err().to_string();
            assert!(error.contains("odd.pem does not hold a certificate"), "{error}");
        }
        let by_serial = Authority::issued_to(dir.path(), &issued.certificate.serial).unwrap();
        assert_eq!(by_serial, [issued], "it is not in the way of others");
        std::fs::remove_file(folder.join("odd.pem")).unwrap();
        std::fs::create_dir(folder.join("odd.pem")).unwrap();
        let error = Authority::issued_to(dir.path(), "a").unwrap_err().to_string();
        assert!(error.contains("odd.pem: it is a folder"), "{error}");
    }

    #[test]
    fn a_certificate_without_a_serial_is_not_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create().unwrap();
        let refused = authority.record(dir.path(), "not a certificate");
        assert!(matches!(refused, Err(CertError::NotACertificate { .. })), "{refused:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_serial_is_whole_bytes_of_hexadecimal_digits() {
        assert_eq!(serial_bytes("00ff"), Some(vec![0, 0xff]));
        for bad in ["", "0", "0g", "+1", "äö", "../1"] {
            assert_eq!(serial_bytes(bad), None, "{bad}");
        }
    }
}
