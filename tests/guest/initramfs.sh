#!/bin/sh
# Makes the initramfs of the Linux test guest (busybox and the check program), and prints its path.
#
#   tests/guest/initramfs.sh
#
# Needs rustc, cpio, and Debian's busybox-static. The result is kept in target/guest/ and made anew
# only when something that goes into it has changed.
set -eu

. "$(dirname "$0")/folders"
initramfs=$cache/initramfs.cpio
busybox=${LIGHTER_GUEST_BUSYBOX:-/bin/busybox}

if [ ! -x "$busybox" ] || ldd "$busybox" 2>&1 | grep -q '=>'; then
    echo "initramfs.sh: $busybox is not a static busybox: apt-get install busybox-static" >&2
    exit 1
fi

if [ -e "$initramfs" ]; then
    newer=$(find "$here" "$root/vmm-core/workload" "$root/vmm-core/src/workload/stamp.rs" \
        -type f -newer "$initramfs")
    if [ -z "$newer" ]; then
        echo "$initramfs"
        exit 0
    fi
fi

work=$(mktemp -d "$cache/initramfs.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/root/bin" "$work/root/dev" "$work/root/proc" "$work/root/data"
(cd "$root" && rustc --edition 2024 --crate-name check --crate-type bin \
    -C opt-level=3 -C panic=abort -C relocation-model=static -C overflow-checks=off -C strip=symbols \
    -C link-arg=-nostdlib -C link-arg=-nostartfiles -C link-arg=-static \
    -C link-arg=-Wl,--build-id=none -C link-arg=-Wl,--defsym=rust_eh_personality=0 \
    -o "$work/root/check" "$here/check/main.rs") >&2
cp "$busybox" "$work/root/bin/busybox"
cp "$here/init" "$here/lend" "$here/relay" "$here/write-files" "$work/root/"
chmod 755 "$work/root/init" "$work/root/lend" "$work/root/relay"
ln -s busybox "$work/root/bin/sh"
(cd "$work/root" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) >"$work/initramfs.cpio"
mv "$work/initramfs.cpio" "$initramfs"
echo "$initramfs"
