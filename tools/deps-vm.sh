#!/usr/bin/env bash
# Fetches a machine with cgroup v2 alone: an emulator from the machine's own suite, a kernel from a newer one, and a disk
# with what vm-guest.sh runs. Into $MOORING_DEPS/vm; returns at once when all is there. Needs deps.sh to have run.
#
# usage: deps-vm.sh     (root)
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
export PATH="$PATH:/usr/sbin:/sbin"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
deps=$(cd "${MOORING_DEPS:-$(dirname "$here")/.deps}" && pwd)
log=$deps/deps-vm.log
vm=$deps/vm
suite=trixie
machine_tools="
qemu-system-x86_64 qemu-system-x86
mke2fs e2fsprogs
cpio cpio
xz xz-utils
depmod kmod
ps procps
"
# The guest's system: the programs of these packages of this machine, with the libraries that they are linked with.
guest_packages="bash coreutils sed grep mawk findutils procps iproute2 iptables curl protobuf-compiler util-linux mount kmod hostname"

. "$here/apt.sh"

stamp() { { cat "$here/deps-vm.sh" "$here/apt.sh" "$deps/stamp"; echo "$deps"; } | sha256sum | cut -d' ' -f1; }

fetch_kernel() {
  step="fetch a kernel from $suite"
  local package
  find_mirror
  write_sources "$suite" "$suite"
  retry apt_of "$suite" apt-get -o APT::Update::Error-Mode=any update
  package=$(apt_of "$suite" apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
  [ -n "$package" ] || fail "$suite has no cloud kernel"
  fetch "$suite" "$package" "$deps/unpack/kernel"
  version=${package#linux-image-}
  cp "$deps/unpack/kernel/boot/vmlinuz-$version" "$vm/kernel"
  echo "$version" >"$vm/version"
}

# Those of the modules that container networking and file systems need, unpacked, since unpacking is slow in there.
copy_modules() {
  step="prepare the kernel's modules"
  local from=$deps/unpack/kernel/usr/lib/modules/$version to=$1/lib/modules/$version part
  mkdir -p "$to/kernel"
  cp "$from"/modules.builtin "$from"/modules.builtin.modinfo "$from"/modules.order "$to/"
  for part in net lib crypto arch fs/overlayfs fs/erofs drivers/block drivers/net; do
    [ ! -d "$from/kernel/$part" ] || { mkdir -p "$to/kernel/$part" && cp -r "$from/kernel/$part/." "$to/kernel/$part/"; }
  done
  find "$to" -name '*.ko.xz' -exec xz -d {} +
  quietly depmod -b "$1" "$version"
}

copy_program() { # copy_program ROOT FILE: the file, what it links to, and its libraries
  local root=$1 file=$2 library
  [ -e "$root$file" ] || cp -L --parents "$file" "$root/" 2>/dev/null || return 0
  # A script has none.
  { ldd "$file" 2>/dev/null || true; } | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^\t\(\/[^ ]*\) .*/\1/p' | while read -r library; do
    [ -e "$root$library" ] || cp -L --parents "$library" "$root/"
  done
}

make_disk() {
  step="make the guest's disk"
  local root=$deps/unpack/guest file part
  rm -rf "$root"
  mkdir -p "$root"/usr/{bin,sbin,lib,lib64} "$root"/{proc,sys,dev,run,tmp,var,root,etc,payload,opt}
  for part in bin sbin lib lib64; do ln -s "usr/$part" "$root/$part"; done
  # shellcheck disable=SC2046,SC2086
  dpkg -L $guest_packages | grep -E '^(/usr)?/s?bin/.|/xtables/.*\.so$' | sort -u | while read -r file; do
    [ ! -f "$file" ] || copy_program "$root" "$(realpath -s "$file")"
  done
  for file in awk iptables iptables-save iptables-restore sh; do
    [ -e "$root/usr/bin/$file" ] || [ -e "$root/usr/sbin/$file" ] || cp -L "$(command -v "$file")" "$root/usr/sbin/$file"
  done
  # What Rust's programs are linked with.
  for file in $(ldconfig -p | sed -n 's/.*libgcc_s\.so\.1 .*x86-64.*=> //p' | head -n 1); do copy_program "$root" "$file"; done
  mkdir -p "$root$deps"
  cp -r "$deps/bin" "$deps/lib" "$deps/cni" "$deps/images" "$root$deps/"
  rm -f "$root$deps/bin/runc-next" "$root$deps/bin/crictl"
  copy_modules "$root"
  rm -f "$vm/disk.new"
  local megabytes=$(($(du -sm "$root" | cut -f1) * 5 / 4 + 32))
  quietly mke2fs -q -t ext4 -O ^has_journal -E root_owner=0:0 -d "$root" "$vm/disk.new" "${megabytes}M" || fail "mke2fs"
  mv -f "$vm/disk.new" "$vm/disk"
}

# The first file system only finds the disk.
make_initramfs() {
  step="make the initial file system"
  local root=$deps/unpack/initramfs
  rm -rf "$root"
  mkdir -p "$root"/{bin,dev,disk}
  cp "$deps/bin/busybox" "$root/bin/busybox"
  cp "$deps/unpack/guest/lib/modules/$version/kernel/drivers/block/virtio_blk.ko" "$root/"
  cat >"$root/init" <<'TEXT'
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox insmod /virtio_blk.ko
/bin/busybox mount -t ext4 -o ro /dev/vda /disk
/bin/busybox mount -t ext4 -o ro /dev/vdb /disk/payload
/bin/busybox mount -o move /dev /disk/dev
exec /bin/busybox switch_root /disk /payload/init
TEXT
  chmod 0755 "$root/init"
  ( cd "$root" && find . | cpio --quiet -o -H newc ) >"$vm/initramfs.new"
  mv -f "$vm/initramfs.new" "$vm/initramfs"
}

main() {
  [ "$(uname -m)" = x86_64 ] || fail "only made for x86_64"
  [ -f "$deps/stamp" ] || fail "run deps.sh first"
  local want version
  want=$(stamp)
  if [ "$(cat "$vm/stamp" 2>/dev/null)" = "$want" ] && [ -f "$vm/disk" ] && [ -z "$(missing_packages)" ]; then return 0; fi
  [ "$(id -u)" = 0 ] || fail "must run as root (it installs packages)"
  exec 9>"$deps/lock"
  flock 9
  mkdir -p "$vm"
  rm -f "$vm/stamp"
  : >"$log"
  install_machine_tools
  fetch_kernel
  make_disk
  make_initramfs
  rm -rf "$deps/unpack" "$deps/apt"
  echo "$want" >"$vm/stamp"
  echo "deps-vm: kernel $version, disk of $(($(stat -c %s "$vm/disk") >> 20)) MiB"
}

main
