#!/usr/bin/env bash
# Fetches what "make test-vm" boots: an emulator from the machine's own suite, and from a newer one a kernel and a root
# file system with systemd and AppArmor. Into $MOORING_DEPS/vm; returns at once when all is there. Needs deps.sh to have run.
#
# usage: deps-vm.sh     (root)
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
export PATH="$PATH:/usr/sbin:/sbin"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
deps=$(cd "${MOORING_DEPS:-$(dirname "$here")/.deps}" && pwd)
log=$deps/deps-vm.log
vm=$deps/vm
work=$deps/unpack-vm
suite=trixie
machine_tools="
qemu-system-x86_64 qemu-system-x86
debootstrap debootstrap
mke2fs e2fsprogs
cpio cpio
xz xz-utils
depmod kmod
"
# What the tests and the CNI plugins call, beside a minimal system.
guest_packages=systemd,systemd-sysv,dbus,apparmor,iproute2,iptables,kmod,procps

. "$here/apt.sh"

stamp() { cat "$here/deps-vm.sh" "$here/apt.sh" | sha256sum | cut -d' ' -f1; }

# In a mount namespace of its own, so that nothing stays mounted when debootstrap is interrupted.
make_root() {
  step="make a root file system of $suite"
  quietly unshare --mount debootstrap --variant=minbase --include="$guest_packages" "$suite" "$work/root" "$uri" ||
    { tail -n 15 "$log" >&2; fail "debootstrap (whole log: $log)"; }
  rm -rf "$work"/root/var/cache/apt/* "$work"/root/var/lib/apt/lists/* "$work"/root/usr/share/{doc,locale,man}/*
  mkdir -p "$work/root/payload"
  echo guest >"$work/root/etc/hostname"
  echo '127.0.0.1 localhost guest' >"$work/root/etc/hosts"
  echo 'nameserver 192.0.2.53' >"$work/root/etc/resolv.conf"
  # With systemd as the first process the tests are a service; else the kernel is told of another first process.
  cat >"$work/root/etc/systemd/system/guest.service" <<'TEXT'
[Unit]
After=multi-user.target
[Service]
ExecStart=/payload/vm guest
StandardOutput=file:/dev/ttyS0
StandardError=inherit
Delegate=yes
TimeoutStopSec=5
[Install]
WantedBy=graphical.target
TEXT
  chroot "$work/root" systemctl -q enable guest.service
  # Of no use in there, and slow where every instruction is emulated.
  chroot "$work/root" systemctl -q mask getty.target apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    e2scrub_all.timer fstrim.timer systemd-timesyncd.service systemd-hwdb-update.service
}

fetch_kernel() {
  step="fetch a kernel from $suite"
  local package modules
  write_sources "$suite" "$suite"
  retry apt_of "$suite" apt-get -o APT::Update::Error-Mode=any update
  package=$(apt_of "$suite" apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
  [ -n "$package" ] || fail "$suite has no cloud kernel"
  fetch "$suite" "$package" "$work/kernel"
  version=${package#linux-image-}
  cp "$work/kernel/boot/vmlinuz-$version" "$vm/kernel"
  # Unpacked here, since that is slow in there.
  modules=$work/root/usr/lib/modules
  mkdir -p "$modules"
  mv "$work/kernel/usr/lib/modules/$version" "$modules/$version"
  find "$modules" -name '*.ko.xz' -exec xz -d {} +
  quietly depmod -b "$work/root" "$version"
}

# The first file system only finds the disks.
make_initramfs() {
  step="make the initial file system"
  local root=$work/initramfs
  mkdir -p "$root"/{bin,dev,disk}
  cp "$deps/bin/busybox" "$root/bin/busybox"
  cp "$work/root/usr/lib/modules/$version/kernel/drivers/block/virtio_blk.ko" "$root/"
  cat >"$root/init" <<'TEXT'
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox insmod /virtio_blk.ko
/bin/busybox mount -t ext4 /dev/vda /disk
/bin/busybox mount -t ext4 /dev/vdb /disk/payload
/bin/busybox mount -o move /dev /disk/dev
exec /bin/busybox switch_root /disk "$first"
TEXT
  chmod 0755 "$root/init"
  ( cd "$root" && find . | cpio --quiet -o -H newc ) >"$vm/initramfs"
}

main() {
  [ "$(uname -m)" = x86_64 ] || fail "only made for x86_64"
  [ -x "$deps/bin/busybox" ] || fail "run deps.sh first"
  local want version
  want=$(stamp)
  if [ "$(cat "$vm/stamp" 2>/dev/null)" = "$want" ] && [ -f "$vm/disk" ] && [ -z "$(missing_packages)" ]; then return 0; fi
  [ "$(id -u)" = 0 ] || fail "must run as root (it installs packages)"
  exec 9>"$deps/lock-vm"
  flock 9
  mkdir -p "$vm"
  rm -rf --one-file-system "$vm/stamp" "$work"
  mkdir "$work"
  : >"$log"
  install_machine_tools
  find_mirror
  make_root
  fetch_kernel
  make_initramfs
  step="make the guest's disk"
  quietly mke2fs -q -F -t ext4 -O ^has_journal -E root_owner=0:0 -d "$work/root" "$vm/disk" \
    "$(($(du -sm "$work/root" | cut -f1) * 5 / 4 + 512))M" || fail "mke2fs (whole log: $log)"
  rm -rf "$work"
  echo "$want" >"$vm/stamp"
  echo "deps-vm: kernel $version, disk of $(($(stat -c %s "$vm/disk") >> 20)) MiB"
}

main
