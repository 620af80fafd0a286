#!/usr/bin/env bash
# Boots a machine that has cgroup v2 and nothing else, runs vm-guest.sh in it, and ends as that does.
#
# usage: vm.sh SHIM [HANDLER…]     handlers of vm-guest.sh, default: all
# environment: MOORING_DEPS as for deps.sh; MOORING_VM_LOG keeps all that the machine says in this file
#              MOORING_VM_SECONDS  the machine is given up after so many seconds, default 600
set -euo pipefail
export LC_ALL=C
export PATH="$PATH:/usr/sbin:/sbin"

[ $# -ge 1 ] || { sed -n '4,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
deps=${MOORING_DEPS:-$(dirname "$here")/.deps}
shim=$1
shift
[ -x "$shim" ] || { echo "vm.sh: no shim at $shim" >&2; exit 1; }
"$here/deps-vm.sh"
deps=$(cd "$deps" && pwd)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
log=${MOORING_VM_LOG:-$work/log}

# A second disk carries what changes from run to run.
mkdir "$work/payload"
cp "$here"/*.sh "$here"/*.proto "$work/payload/"
cp "$here/vm-guest.sh" "$work/payload/init"
cp "$shim" "$work/payload/containerd-shim-mooring-v1"
strip "$work/payload/containerd-shim-mooring-v1"
printf '%s\n' "deps=$deps" "version=$(cat "$deps/vm/version")" "handlers='$*'" >"$work/payload/settings"
mke2fs -q -t ext4 -O ^has_journal -E root_owner=0:0 -d "$work/payload" "$work/disk" \
  "$(($(du -sm "$work/payload" | cut -f1) * 5 / 4 + 8))M" >/dev/null

# Emulated, since a kernel virtual machine may be missing where tests run, or not boot a stock kernel.
timeout -k 5 "${MOORING_VM_SECONDS:-600}" \
  qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 2048 -nodefaults -no-user-config -no-reboot -nographic \
  -kernel "$deps/vm/kernel" -initrd "$deps/vm/initramfs" \
  -append "console=ttyS0 quiet panic=-1 cgroup_no_v1=all mitigations=off random.trust_cpu=on" \
  -drive "file=$deps/vm/disk,format=raw,if=virtio,readonly=on" -drive "file=$work/disk,format=raw,if=virtio,readonly=on" \
  -serial stdio -device virtio-rng-pci >"$log" 2>&1 </dev/null || echo "vm.sh: the machine ended with status $?" >>"$log"

tr -d '\r' <"$log" >"$work/text"
grep -E "^(PASS|FAIL) " "$work/text" || true
if grep -q '^FAIL ' "$work/text" || ! grep -q '^DONE$' "$work/text"; then
  echo "vm.sh: the cgroup v2 machine failed; the end of what it said:" >&2
  tail -n 60 "$work/text" | cut -c1-300 >&2
  exit 1
fi
