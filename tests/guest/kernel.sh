#!/bin/sh
# Finds or builds the kernel of the Linux test guest, and prints its path.
#
#   tests/guest/kernel.sh [vmlinux | bzImage] [own]
#
# In this order: $LIGHTER_GUEST_KERNEL ($LIGHTER_GUEST_BZIMAGE); ../shared/guest/ beside the checkout, unless it is
# to be our `own`, whose configuration is known; one built earlier in target/guest/; a build from Debian's
# linux-source-6.1 with `defconfig` and `slow-kvm.patch` from
# this folder (ten minutes on two cores). The patch and the options in `cmdline` are for hosts whose
# KVM emulates the guest's kernel; elsewhere they do no harm.
set -eu

. "$(dirname "$0")/folders"
format=${1:-vmlinux}
case $format in
    vmlinux) chosen=${LIGHTER_GUEST_KERNEL:-} ;;
    bzImage) chosen=${LIGHTER_GUEST_BZIMAGE:-} ;;
    *) echo "kernel.sh: a kernel is a vmlinux or a bzImage, not a $format" >&2; exit 1 ;;
esac
source=/usr/src/linux-source-6.1.tar.xz
packages="linux-source-6.1 flex bison bc libelf-dev libssl-dev gcc make patch xz-utils"

shared=$root/../shared/guest/$format
[ "${2:-}" != own ] || shared=
for kernel in "$chosen" "$shared" "$cache/$format"; do
    if [ -n "$kernel" ] && [ -r "$kernel" ]; then
        echo "$kernel"
        exit 0
    fi
done

if [ ! -r "$source" ] || [ ! -r /usr/include/gelf.h ] || [ ! -r /usr/include/openssl/ssl.h ] ||
    ! command -v flex >&2 || ! command -v bison >&2 || ! command -v bc >&2; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >&2; then
        echo "kernel.sh: the guest's kernel needs these Debian packages: $packages" >&2
        exit 1
    fi
    apt-get update >&2
    # shellcheck disable=SC2086  # a list of packages
    apt-get install -y --no-install-recommends $packages >&2
fi

work=$(mktemp -d "$cache/kernel.XXXXXX")
trap 'rm -rf "$work"' EXIT
tar -C "$work" --strip-components=1 -xf "$source"
patch -d "$work" -p1 <"$here/slow-kvm.patch" >&2
cp "$here/defconfig" "$work/.config"
make -C "$work" olddefconfig >&2
nice make -C "$work" -j"$(nproc)" vmlinux bzImage >&2
strip -o "$cache/vmlinux.new" "$work/vmlinux"
mv "$cache/vmlinux.new" "$cache/vmlinux"
cp "$work/arch/x86/boot/bzImage" "$cache/bzImage.new"
mv "$cache/bzImage.new" "$cache/bzImage"
echo "$cache/$format"
