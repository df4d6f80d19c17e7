#!/bin/sh
# Finds or builds firmware that boots a guest's own disk: EDK2 for PVH guests (OvmfPkg/CloudHv).
# Prints its path.
#
#   tests/guest/firmware.sh
#
# In this order: $LIGHTER_GUEST_FIRMWARE; ../shared/guest/ beside the checkout; one built earlier in
# target/guest/; a build by packaging/build-firmware (root and mmdebstrap).
set -eu

. "$(dirname "$0")/folders"
for firmware in "${LIGHTER_GUEST_FIRMWARE:-}" "$root/../shared/guest/CLOUDHV.fd" "$cache/CLOUDHV.fd"; do
    if [ -n "$firmware" ] && [ -r "$firmware" ]; then
        echo "$firmware"
        exit 0
    fi
done

"$root/packaging/build-firmware" "$cache/CLOUDHV.fd"
echo "$cache/CLOUDHV.fd"
