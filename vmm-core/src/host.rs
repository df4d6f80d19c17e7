//! What the KVM of this host says about itself.

use kvm_ioctls::Kvm;

use crate::error::{Error, Result};

/// Returns the version of KVM's API: 12, the only one that programs may use
/// (Documentation/virt/kvm/api.rst, `KVM_GET_API_VERSION`).
///
/// # Errors
/// [`Error::OpenKvm`] if `/dev/kvm` cannot be opened.
pub fn kvm_api_version() -> Result<i32> {
    Kvm::new().map(|kvm| kvm.get_api_version()).map_err(Error::OpenKvm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_hosts_kvm_has_the_only_stable_version() {
        assert_eq!(kvm_api_version().unwrap(), 12);
    }
}
