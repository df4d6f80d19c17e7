#!/bin/sh
# Finds or builds firmware that boots a guest's own disk: EDK2 for PVH guests (OvmfPkg/CloudHv).
# Prints its path.
#
#   tests/guest/firmware.sh
#
# In this order: $LIGHTER_GUEST_FIRMWARE; ../shared/guest/ beside the checkout; one built earlier in
# target/guest/; a build from the sources of Debian 12's package `edk2`, in a folder with that
# release (root and mmdebstrap).
set -eu

. "$(dirname "$0")/folders"
for firmware in "${LIGHTER_GUEST_FIRMWARE:-}" "$root/../shared/guest/CLOUDHV.fd" "$cache/CLOUDHV.fd"; do
    if [ -n "$firmware" ] && [ -r "$firmware" ]; then
        echo "$firmware"
        exit 0
    fi
done

work=$(mktemp -d "$cache/firmware.XXXXXX")
trap 'rm -rf "$work"' EXIT
mirror=http://deb.debian.org/debian
mmdebstrap --quiet --variant=minbase --include=build-essential,dpkg-dev,nasm,acpica-tools,uuid-dev,python3-distutils \
    bookworm "$work/root.tar" "deb $mirror bookworm main" "deb-src $mirror bookworm main" >&2
mkdir "$work/root"
tar -C "$work/root" -xf "$work/root.tar"
cp /etc/resolv.conf "$work/root/etc/resolv.conf"
# Without Secure Boot, Debian's patches leave the shell without a library.
nice chroot "$work/root" bash -ec 'cd /tmp
    apt-get -qq update && apt-get -qq source edk2 && cd edk2-*/ && . ./edksetup.sh && make -s -C BaseTools ARCH=X64
    build -q -p OvmfPkg/CloudHv/CloudHvX64.dsc -a X64 -t GCC5 -b RELEASE -n "$(nproc)" -D SECURE_BOOT_ENABLE=TRUE
    cp Build/CloudHvX64/RELEASE_GCC5/FV/CLOUDHV.fd /tmp/' >&2
cp "$work/root/tmp/CLOUDHV.fd" "$cache/CLOUDHV.fd.new"
mv "$cache/CLOUDHV.fd.new" "$cache/CLOUDHV.fd"
echo "$cache/CLOUDHV.fd"
