//! The files of a certificates folder: their names, and how they are read and written.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// The authority's certificate, or those of several authorities.
pub(super) const CA_CERT: &str = "ca.pem";
/// The authority's key, on the authority's host only.
pub(super) const CA_KEY: &str = "ca.key";
/// The host's certificate.
pub(super) const HOST_CERT: &str = "host.pem";
/// The host's key.
pub(super) const HOST_KEY: &str = "host.key";
/// The key of the host's next certificate, while another certificate is in use.
pub(super) const HOST_KEY_NEW: &str = "host.key.new";

/// The folder with records of the certificates that the authority has issued.
pub(super) const ISSUED: &str = "issued";
/// The list of revoked certificates, or those of several authorities.
pub(super) const CRL: &str = "crl.pem";

/// Longest certificate, key or list that is read, in bytes: other authorities may use long chains.
pub(super) const PEM_BYTES_MAX: u64 = 1 << 20;

/// Why certificates could not be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// A file of the certificates folder cannot be read or written.
    #[error("cannot {action} {}: {cause}", path.display())]
    File {
        /// The operation that failed: `read`, `write`, `create`, `replace` or `remove`.
        action: &'static str,
        /// Path of the file or folder.
        path: PathBuf,
        /// The system's error.
        cause: io::Error,
    },
    /// A file exists already, and keys are never overwritten.
    #[error(
        "{} exists already, and keys and certificates are never overwritten: choose another folder, or move the file to a safe \
         place first",
        path.display()
    )]
    Exists {
        /// Path that is taken.
        path: PathBuf,
    },
    /// The host has a certificate already.
    #[error(
        "this host has a certificate already, {}: `lighter certs renew` replaces it; to create another authority, give another \
         --state-dir",
        path.display()
    )]
    HasCertificate {
        /// Path of the host's certificate.
        path: PathBuf,
    },
    /// The authority's certificate is missing, and hosts have certificates that it issued.
    #[error(
        "{} is missing, and the authority has issued certificates: copy ca.pem from a host that has one of them",
        path.display()
    )]
    AuthorityLost {
        /// Path of the authority's certificate.
        path: PathBuf,
    },
    /// The authority has expired.
    #[error(
        "the authority expired at {until}, and no host can use what it issues: replace it, as the user guide describes"
    )]
    AuthorityExpired {
        /// The end of its validity.
        until: String,
    },
    /// The folder is in use for hosts of another authority.
    #[error(
        "{} is of another authority: choose another folder, or remove what is there if this authority is to replace it",
        path.display()
    )]
    OtherAuthority {
        /// Path of the other authority's certificate.
        path: PathBuf,
    },
    /// The name is not valid for a host.
    #[error("`{name}` is neither a DNS name nor an IP address")]
    Name {
        /// The rejected name, as given.
        name: String,
    },
    /// The name is an address that no host has for itself.
    #[error(
        "{name} is not the address of one host: give the names and addresses by which other hosts reach this one"
    )]
    SharedAddress {
        /// The rejected address.
        name: String,
    },
    /// The authority's key and certificate do not belong together.
    #[error(
        "{} is not the key of the authority in ca.pem: hosts would reject certificates signed with it",
        path.display()
    )]
    OtherKey {
        /// Path of the key.
        path: PathBuf,
    },
    /// A file that should hold a certificate does not.
    #[error("{} does not hold a certificate that can be read: {cause}", path.display())]
    NotACertificate {
        /// Path of the file without a certificate.
        path: PathBuf,
        /// The parser's error.
        cause: String,
    },
    /// A file that should hold a private key does not.
    #[error("{} does not hold a private key that can be read: {cause}", path.display())]
    NotAKey {
        /// Path of the file without a key.
        path: PathBuf,
        /// The parser's error.
        cause: String,
    },
    /// A record of a revoked certificate whose name is not a serial number.
    #[error(
        "{} is named by no certificate's serial: remove it, or give it its name again", path.display()
    )]
    NoSerial {
        /// Path of the record, a file in `issued/`.
        path: PathBuf,
    },
    /// A key or certificate cannot be made or parsed.
    #[error("cannot make a certificate for {subject}: {cause}")]
    Make {
        /// The host or authority that it is for.
        subject: String,
        /// Error of rcgen, which makes certificates.
        cause: rcgen::Error,
    },
}

impl CertError {
    /// Returns whether the error says that a file does not exist.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::File { cause, .. } if cause.kind() == io::ErrorKind::NotFound)
    }
}

/// The access mode of a file.
#[derive(Debug, Clone, Copy)]
pub(super) enum Mode {
    /// Readable by its owner only: a private key.
    Secret,
    /// Readable by everyone: a certificate.
    Public,
}

impl Mode {
    fn bits(self) -> u32 {
        match self {
            Self::Secret => 0o600,
            Self::Public => 0o644,
        }
    }
}

pub(super) fn read(path: &Path) -> Result<String, CertError> {
    regular_file::read_text(path, PEM_BYTES_MAX).map_err(|cause| file("read", path, cause))
}

/// Returns the content of the file at `path`; none if nothing has that name. A symbolic link to a
/// missing file is an error.
pub(super) fn read_if_there(path: &Path) -> Result<Option<String>, CertError> {
    match read(path) {
        Err(error) if error.is_missing() && !is_there(path) => Ok(None),
        read => read.map(Some),
    }
}

/// Returns whether anything has the name `path`, including a symbolic link to a missing file.
pub(super) fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Replaces the file at `path`, or the target of a symbolic link at `path`. Only its owner may read
/// it.
pub(super) fn replace(path: &Path, content: &str) -> Result<(), CertError> {
    replaced(path, content).map(drop).map_err(|cause| file("write", path, cause))
}

/// As [`replace`]; everyone may read the file.
pub(super) fn replace_public(path: &Path, content: &str) -> Result<(), CertError> {
    let readable = Permissions::from_mode(Mode::Public.bits());
    replaced(path, content)
        .and_then(|written| std::fs::set_permissions(written, readable))
        .map_err(|cause| file("write", path, cause))
}

/// Returns the path of the file that was written.
fn replaced(path: &Path, content: &str) -> io::Result<PathBuf> {
    let target = if is_there(path) { path.canonicalize()? } else { path.to_owned() };
    regular_file::replace(&target, content.as_bytes())?;
    Ok(target)
}

/// Moves the file `from` to `to`, which it replaces; this is on disk when the function returns.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), CertError> {
    std::fs::rename(from, to)
        .and_then(|()| regular_file::sync_folder_of(to))
        .map_err(|cause| file("replace", to, cause))
}

/// Removes the file at `path`; this is on disk when the function returns.
pub(super) fn remove(path: &Path) -> Result<(), CertError> {
    std::fs::remove_file(path)
        .and_then(|()| regular_file::sync_folder_of(path))
        .map_err(|cause| file("remove", path, cause))
}

/// Returns the text of each section with this `label` in `pem`, from its first line to its last.
pub(super) fn sections<'a>(pem: &'a str, label: &str) -> Vec<&'a str> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let texts = pem.split_inclusive(end.as_str()).filter(|text| text.ends_with(&end));
    texts.filter_map(|text| Some(&text[text.rfind(&begin)?..])).collect()
}

/// Returns whether the first certificate in `wanted` is among those in `pem`.
pub(super) fn holds_certificate(pem: &str, wanted: &str) -> bool {
    let Ok(wanted) = CertificateDer::from_pem_slice(wanted.as_bytes()) else { return false };
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .map_while(Result::ok)
        .any(|found| found == wanted)
}

pub(super) fn create_dir(dir: &Path) -> Result<(), CertError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(dir).map_err(|cause| file("create", dir, cause))
}

/// Fails if anything exists at `path`.
pub(super) fn refuse_existing(path: &Path) -> Result<(), CertError> {
    if is_there(path) { Err(CertError::Exists { path: path.into() }) } else { Ok(()) }
}

pub(super) fn write_new(path: &Path, content: &str, mode: Mode) -> Result<(), CertError> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode.bits()).open(path);
    let mut opened = match opened {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(CertError::Exists { path: path.into() });
        }
        opened => opened.map_err(|cause| file("write", path, cause))?,
    };
    let written = opened.write_all(content.as_bytes()).and_then(|()| opened.sync_all());
    // Its name must be on disk as well: `issued/` records what can be revoked.
    let written = written.and_then(|()| regular_file::sync_folder_of(path));
    written.map_err(|cause| {
        // The disk may be full: a partial file would block the next attempt.
        let _ = std::fs::remove_file(path);
        file("write", path, cause)
    })
}

pub(super) fn file(action: &'static str, path: &Path, cause: io::Error) -> CertError {
    CertError::File { action, path: path.into(), cause }
}
