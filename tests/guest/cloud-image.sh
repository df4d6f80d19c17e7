#!/bin/sh
# Builds a disk as Debian's or Ubuntu's images for clouds are, from their packages: a compressed qcow2 image with a GPT,
# partitions for UEFI and BIOS, GRUB, the kernel for clouds and cloud-init. Ubuntu's boots by the signed shim and GRUB, as its
# published images do. Beside Debian's is a package of a later kernel.
# Prints the folder of cloud.qcow2 and kernel/*.deb.
#
#   tests/guest/cloud-image.sh debian|ubuntu    (root and mmdebstrap; some minutes; once in target/guest/)
set -eu

. "$(dirname "$0")/folders"
distribution=$1
made=$cache/cloud-$distribution-$(sha256sum < "$here/cloud-image.sh" | cut -c1-16)
if [ -e "$made/cloud.qcow2" ]; then
    echo "$made"
    exit 0
fi

work=$(mktemp -d "$cache/cloud.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work" # for apt's own user
tree=$work/tree
debian=http://deb.debian.org/debian ubuntu=http://archive.ubuntu.com/ubuntu
mkdir -p "$tree" "$work/made/kernel"
# The last line of packages is for what follows here.
packages="initramfs-tools,zstd,
    cloud-init,systemd-sysv,systemd-resolved,netplan.io,dbus,udev,kmod,procps,iproute2,openssh-server,sudo,pciutils,python3,cloud-guest-utils,
    dosfstools,mtools,fdisk,e2fsprogs,qemu-utils"
case $distribution in
    debian)
        mmdebstrap --quiet --variant=minbase --include="linux-image-cloud-amd64,grub-cloud-amd64,$packages" \
            bookworm "$work/tree.tar" "deb $debian bookworm main" "deb $debian bookworm-backports main" >&2
        ;;
    ubuntu)
        # Debian has no package of Ubuntu's keys.
        keys=ubuntu-keyring_2023.11.28.1_all.deb
        /usr/lib/apt/apt-helper -qq download-file "$ubuntu/pool/main/u/ubuntu-keyring/$keys" "$work/$keys" \
            SHA256:36de43b15853ccae0028e9a767613770c704833f82586f28eb262f0311adb8a8 >&2
        dpkg-deb --fsys-tarfile "$work/$keys" | tar -xO ./usr/share/keyrings/ubuntu-archive-keyring.gpg > "$work/keys.gpg"
        mmdebstrap --quiet --variant=minbase --keyring="$work/keys.gpg" \
            --include="linux-image-virtual,shim-signed,grub-efi-amd64-signed,grub-pc,efibootmgr,$packages" \
            noble "$work/tree.tar" "deb $ubuntu noble main universe" >&2
        ;;
esac
tar -C "$tree" -xf "$work/tree.tar"
rm "$work/tree.tar"
if [ "$distribution" = debian ]; then
    mv "$tree/etc/resolv.conf" "$work/resolv.conf"
    cp /etc/resolv.conf "$tree/etc/resolv.conf"
    chroot "$tree" sh -ec 'cd /tmp && apt-get -qq update && backports=bookworm-backports
        kernel=$(apt-cache -t $backports depends linux-image-cloud-amd64 | sed -n "s/^ *Depends: //p")
        apt-get -qq -t $backports -o APT::Sandbox::User=root download "$kernel"' >&2
    mv "$tree"/tmp/*.deb "$work/made/kernel/"
    mv "$work/resolv.conf" "$tree/etc/resolv.conf"
fi

# What the installer of an image sets; GRUB's own configuration is written by its scripts when a kernel is installed.
: > "$tree/etc/machine-id"
rm -f "$tree"/etc/ssh/ssh_host_*
# An emulated machine may take longer to find its disks than the minute and a half after which systemd gives up.
echo 'LABEL=cloud / ext4 rw,errors=remount-ro 0 1
LABEL=EFI /boot/efi vfat umask=0077,x-systemd.device-timeout=1h 0 1' > "$tree/etc/fstab"
echo 'GRUB_TIMEOUT=1
GRUB_TERMINAL="console serial"
GRUB_CMDLINE_LINUX="console=ttyS0 net.ifnames=0"' > "$tree/etc/default/grub"
mkdir -p "$tree/boot/grub" "$tree/boot/efi"
cp -r "$tree/usr/lib/grub/i386-pc" "$tree/boot/grub/"
version=$(basename "$tree"/lib/modules/*)
echo "linux /boot/vmlinuz-$version root=LABEL=cloud ro console=ttyS0 net.ifnames=0
initrd /boot/initrd.img-$version
boot" > "$tree/boot/grub/grub.cfg"
echo 'search --no-floppy --label cloud --set root
configfile ($root)/boot/grub/grub.cfg' > "$tree/tmp/early.cfg"
chroot "$tree" sh -ec 'cd /tmp; truncate -s 120M system; mkfs.vfat -F 32 -n EFI system; mmd -i system ::/EFI ::/EFI/BOOT' >&2
case $distribution in
    debian)
        chroot "$tree" sh -ec 'cd /tmp
            grub-mkstandalone -O x86_64-efi -o BOOTX64.EFI --locales= --fonts= --themes= boot/grub/grub.cfg=early.cfg \
                --modules="part_gpt fat ext2 search search_label configfile linux serial terminal normal"
            mcopy -i system BOOTX64.EFI ::/EFI/BOOT/
            rm BOOTX64.EFI' >&2
        ;;
    ubuntu)
        # As grub-install lays them out. What is started as removable media are is shim, which starts fbx64.efi beside it; that
        # adds the boot entry that BOOTX64.CSV describes.
        chroot "$tree" sh -ec 'cd /usr/lib/shim; grub=/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed
            add() { mcopy -i /tmp/system "$@"; }
            mmd -i /tmp/system ::/EFI/ubuntu
            add shimx64.efi.signed ::/EFI/BOOT/BOOTX64.EFI
            add $grub ::/EFI/BOOT/grubx64.efi
            add fbx64.efi mmx64.efi ::/EFI/BOOT/
            add shimx64.efi.signed ::/EFI/ubuntu/shimx64.efi
            add $grub ::/EFI/ubuntu/grubx64.efi
            add mmx64.efi BOOTX64.CSV ::/EFI/ubuntu/
            add /tmp/early.cfg ::/EFI/ubuntu/grub.cfg' >&2
        ;;
esac
rm "$tree/tmp/early.cfg"
mv "$tree/tmp/system" "$work/system"

# The numbers and types of both distributions: 14 for BIOS, 15 for UEFI.
disk=$work/disk.raw
truncate -s 3G "$disk"
cp "$disk" "$tree/mnt/disk.raw"
chroot "$tree" sfdisk -q /mnt/disk.raw << 'EOT' >&2
label: gpt
14: start=2048, size=6144, type=21686148-6449-6E6F-744E-656564454649
15: start=8192, size=245760, type=uefi
1: start=262144, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709
EOT
mv "$tree/mnt/disk.raw" "$disk"
truncate -s 2900M "$work/root"
mke2fs -q -t ext4 -L cloud -d "$tree" "$work/root" >&2
dd if="$work/system" of="$disk" bs=1M seek=4 conv=notrunc,sparse status=none
dd if="$work/root" of="$disk" bs=1M seek=128 conv=notrunc,sparse status=none
mv "$disk" "$tree/mnt/disk.raw"

# GRUB for BIOS, as grub-install embeds it: in the MBR, which reads the partition for it. The offsets are GRUB's
# (include/grub/i386/pc/boot.h): the core's first sector, the check of the drive, the sectors behind the core's first.
chroot "$tree" grub-mkimage -O i386-pc -p '(,gpt1)/boot/grub' -o /tmp/core.img biosdisk part_gpt ext2 >&2
chroot "$tree" python3 - << 'EOT' >&2
import struct
core = bytearray(open("/tmp/core.img", "rb").read())
core += bytes(-len(core) % 512)
boot = bytearray(open("/usr/lib/grub/i386-pc/boot.img", "rb").read())
with open("/mnt/disk.raw", "r+b") as disk:
    boot[0x1b8:] = disk.read(512)[0x1b8:]
    struct.pack_into("<Q", boot, 0x5c, 2048)
    boot[0x66:0x68] = b"\x90\x90"
    struct.pack_into("<QH", core, 0x1f4, 2049, len(core) // 512 - 1)
    disk.seek(0)
    disk.write(boot)
    disk.seek(2048 * 512)
    disk.write(core)
EOT
chroot "$tree" qemu-img convert -q -c -O qcow2 /mnt/disk.raw /mnt/cloud.qcow2 >&2
mv "$tree/mnt/cloud.qcow2" "$work/made/"
rm -rf "$cache/cloud-$distribution"*
mv "$work/made" "$made"
echo "$made"
