//! Temporary certificates for QEMU's TLS.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// The host name in the certificates.
pub(crate) const HOST_NAME: &str = "localhost";

/// Creates a CA, a server and a client certificate in `folder`, under the names that QEMU expects.
///
/// # Errors
/// If the folder cannot be written.
pub(crate) fn make(folder: &Path) -> Result<PathBuf> {
    let folder = folder.join("qemu-tls");
    fs::create_dir(&folder)?;
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    fs::write(folder.join("ca-cert.pem"), ca.self_signed(&ca_key)?.pem())?;
    let issuer = Issuer::new(ca, ca_key);
    for (role, purpose) in [
        ("server", ExtendedKeyUsagePurpose::ServerAuth),
        ("client", ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let key = KeyPair::generate()?;
        let mut leaf = CertificateParams::new(vec![HOST_NAME.to_owned()])?;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![purpose];
        fs::write(folder.join(format!("{role}-cert.pem")), leaf.signed_by(&key, &issuer)?.pem())?;
        fs::write(folder.join(format!("{role}-key.pem")), key.serialize_pem())?;
    }
    Ok(folder)
}
