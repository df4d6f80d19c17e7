//! Certificates that a host issues to the processes of its guests.

use std::path::Path;

use rcgen::{ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use uuid::Uuid;

use super::authority::params_of_peer;
use super::certificate::{TlsError, guest_uri};
use super::identity::Identity;
use super::tls::Tls;
use crate::progress::Role;

/// Validity of the certificate of a guest's process, in days. The process may wait for days for an
/// answer from a host that is out of reach.
const GUEST_DAYS: u32 = 30;

impl Identity {
    /// Creates a key and a certificate for the process of the guest `guest` on the host whose
    /// identity is in `dir`. They authorize that process for its `role` in migrations of this
    /// guest, and for nothing else.
    ///
    /// # Errors
    /// As [`Self::load`], and [`TlsError::Guest`] if the system provides no randomness.
    pub fn of_guest(dir: &Path, guest: Uuid, role: Role) -> Result<Self, TlsError> {
        Self::load(dir)?.vouch_for(guest, role)
    }

    pub(super) fn vouch_for(&self, guest: Uuid, role: Role) -> Result<Self, TlsError> {
        // Checks first that the host's key fits its certificate: otherwise peers would report the
        // issued one.
        Tls::new(self)?;
        let make = |cause| TlsError::Guest { guest, cause };
        let host_key = KeyPair::from_pem(&self.key_pem).map_err(make)?;
        let host = Issuer::from_ca_cert_pem(&self.cert_pem, host_key).map_err(make)?;
        let mut params = params_of_peer("lighter guest", GUEST_DAYS, &[]).map_err(make)?;
        params.subject_alt_names = vec![SanType::URI(guest_uri(guest).try_into().map_err(make)?)];
        params.extended_key_usages = vec![match role {
            Role::Source => ExtendedKeyUsagePurpose::ClientAuth,
            Role::Destination => ExtendedKeyUsagePurpose::ServerAuth,
        }];
        let key = KeyPair::generate().map_err(make)?;
        let cert_pem = params.signed_by(&key, &host).map_err(make)?.pem() + &self.cert_pem;
        let (ca_pem, crl_pem) = (self.ca_pem.clone(), self.crl_pem.clone());
        Ok(Self { ca_pem, cert_pem, key_pem: key.serialize_pem(), crl_pem })
    }
}
