#!/usr/bin/env bash
# Fetches what Mooring's build, tests and demo need on a Debian 12 machine that has Rust and nothing else.
#
# The container parts (containerd, runc, crun, CNI plugins, busybox) go into a private folder, never over the machine's
# own packages: $MOORING_DEPS, by default <repo>/.deps. They come from a newer Debian suite through an apt
# configuration of our own. Only small ordinary tools are installed, and from the machine's own suite.
#
# usage: deps.sh                    fetch what is missing (root; returns at once, without network, when nothing is)
#        deps.sh machine [TOOL…]    only install the machine's ordinary tools, which a build needs, and those named
#        deps.sh versions           print what is there
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
# runc, iptables and their like live in sbin, which a plain user's PATH lacks.
export PATH="$PATH:/usr/sbin:/sbin"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
deps=${MOORING_DEPS:-$(dirname "$here")/.deps}
mkdir -p "$deps" || { echo "deps.sh: cannot make the folder $deps (set MOORING_DEPS to another)" >&2; exit 1; }
deps=$(cd "$deps" && pwd)
log=$deps/deps.log

# The suite with the current container parts.
suite=forky

# What the machine must have, as "command-or-file package". protoc and its include files are for the build scripts of
# crates that speak gRPC (containerd-client, k8s-cri).
machine_tools="
iptables iptables
ip iproute2
patchelf patchelf
gcc gcc
/usr/include/stdio.h libc6-dev
make make
protoc protobuf-compiler
/usr/include/google/protobuf/any.proto libprotobuf-dev
mkfs.erofs erofs-utils
mkfs.ext4 e2fsprogs
flock util-linux
modprobe kmod
"

. "$here/apt.sh"

# The stamp changes with this script, the folder (patchelf wrote it into the binaries) and the architecture.
stamp() { { cat "$here/deps.sh" "$here/apt.sh"; echo "$deps"; uname -m; } | sha256sum | cut -d' ' -f1; }

complete() {
  local part
  [ "$(cat "$deps/stamp" 2>/dev/null)" = "$1" ] || return 1
  for part in bin/containerd bin/ctr bin/containerd-shim-runc-v2 bin/runc bin/runc-1.1 bin/crun bin/criu bin/promtool bin/busybox cni/bin/bridge; do
    [ -x "$deps/$part" ] || return 1
  done
  [ -z "$(missing_packages)" ]
}

# --- the parts ------------------------------------------------------------------------------------------------------

fetch_containerd() {
  step="fetch containerd from $suite"
  fetch "$suite" containerd "$deps/unpack/containerd"
  local one
  for one in containerd ctr containerd-shim-runc-v2; do
    place "$deps/unpack/containerd/usr/bin/$one" "$deps/bin/$one"
  done
}

fetch_cni() {
  step="fetch the CNI plugins from $suite"
  fetch "$suite" containernetworking-plugins "$deps/unpack/cni"
  local one
  for one in "$deps"/unpack/cni/usr/lib/cni/*; do
    place "$one" "$deps/cni/bin/$(basename "$one")"
  done
}

fetch_busybox() {
  step="fetch busybox from $suite"
  fetch "$suite" busybox-static "$deps/unpack/busybox"
  # Suites differ in where it lies, and other files of the package have the same name: it is the big one.
  local found
  found=$(find "$deps/unpack/busybox" -type f -name busybox -size +500k | head -n 1)
  place "${found:-$deps/unpack/busybox/usr/bin/busybox}" "$deps/bin/busybox"
}

# Fetches packages with all their libraries, the libraries into $deps/lib.
fetch_with_libraries() {
  local package libraries
  libraries=$(closure "$@") || fail "cannot compute the dependencies of $*"
  for package in $libraries; do
    # Virtual names have no candidate and nothing to download.
    apt_of "$suite" apt-cache show "$package" >/dev/null 2>&1 || continue
    fetch "$suite" "$package" "$deps/unpack/oci"
  done
  local one
  mkdir -p "$deps/lib"
  while read -r one; do
    # Renamed into place for the same reason as binaries: somebody may have the old one mapped.
    cp -P "$one" "$deps/lib/.new"
    mv -f "$deps/lib/.new" "$deps/lib/$(basename "$one")"
  done < <(find "$deps/unpack/oci" -path '*/lib/*' -name '*.so*' ! -path '*/gconv/*' \( -type f -o -type l \))
}

# privatise FROM TO: a copy that runs with our libc, since the machine's is too old for it. The search path is the
# transitive kind (RPATH), so that the libraries find each other too.
privatise() {
  local loader
  loader=$(find "$deps/lib" -maxdepth 1 -name 'ld-linux*.so.*' | head -n 1)
  [ -n "$loader" ] || fail "the private libc has no loader"
  [ -f "$1" ] || fail "expected file $1 is not in its package"
  mkdir -p "$(dirname "$2")"
  cp "$1" "$2.new"
  chmod 0755 "$2.new"
  quietly patchelf --set-interpreter "$loader" --force-rpath --set-rpath "$deps/lib" "$2.new" || fail "patchelf on $2"
  # A library that came from anywhere else would be the machine's older one.
  local stray
  stray=$("$loader" --list "$2.new" | awk -v lib="$deps/lib/" '/=>/ && index($3, lib) != 1' || true)
  [ -z "$stray" ] || fail "$(basename "$2") would take these libraries from the machine: $stray"
  mv -f "$2.new" "$2"
}

fetch_oci_runtimes() {
  step="fetch runc, crun and criu with their libraries from $suite"
  fetch_with_libraries runc crun criu libcriu2
  privatise "$deps/unpack/oci/usr/sbin/runc" "$deps/bin/runc"
  privatise "$deps/unpack/oci/usr/bin/crun" "$deps/bin/crun"
  privatise "$deps/unpack/oci/usr/sbin/criu" "$deps/bin/criu"
}

# The machine's own runc is what many nodes of that age have, and what figures are compared with; promtool checks alerts.
fetch_of_own_suite() {
  step="fetch the machine's own suite's runc and promtool"
  local one folder=$deps/apt/debs/own
  apt-cache show runc >/dev/null 2>&1 || machine_index
  rm -rf "$folder"
  mkdir -p "$folder"
  ( cd "$folder" && retry apt-get -q -o APT::Sandbox::User=root download runc prometheus )
  for one in "$folder"/*.deb; do quietly dpkg -x "$one" "$deps/unpack/own" || fail "cannot unpack $one"; done
  place "$deps/unpack/own/usr/sbin/runc" "$deps/bin/runc-1.1"
  place "$deps/unpack/own/usr/bin/promtool" "$deps/bin/promtool"
}

# --- what is there --------------------------------------------------------------------------------------------------

# report PART COMMAND…: one line; a part that is there and does not run is an error.
report() {
  local part=$1 answer
  shift
  answer=$("$@" 2>&1) || fail "$part does not run here: $answer"
  printf '%-26s %s\n' "$part" "$(head -n 1 <<<"$answer")"
}

versions() {
  step="check the versions"
  report containerd "$deps/bin/containerd" --version
  report ctr "$deps/bin/ctr" --version
  report containerd-shim-runc-v2 bash -c "'$deps/bin/containerd-shim-runc-v2' -v | tr '\n' ' '"
  local part
  for part in runc runc-1.1 crun criu promtool; do report "$part" "$deps/bin/$part" --version; done
  report "CNI plugins" env CNI_COMMAND=VERSION bash -c "'$deps/cni/bin/bridge' </dev/null 2>&1 | head -n 1; true"
  report busybox "$deps/bin/busybox" busybox --help
  report iptables iptables --version
  report iproute2 ip -V
  report gcc gcc --version
  report protoc protoc --version
  report patchelf patchelf --version
  # shellcheck disable=SC2016
  report erofs-utils dpkg-query -W -f '${Version}' erofs-utils
}

main() {
  case ${1:-} in
    "") ;;
    versions) versions; return ;;
    machine)
      shift
      for tool in "$@"; do machine_tools+="$tool $tool"$'\n'; done
      install_machine_tools
      return ;;
    *) echo "usage: deps.sh [machine [TOOL…]|versions]" >&2; exit 2 ;;
  esac
  local want
  want=$(stamp)
  if complete "$want"; then echo "deps: everything is in $deps"; return; fi
  [ "$(id -u)" = 0 ] || fail "must run as root (it installs packages)"

  # One at a time; whoever waited finds the work done.
  exec 9>"$deps/lock"
  flock 9
  if complete "$want"; then echo "deps: everything is in $deps"; return; fi
  rm -f "$deps/stamp"
  : >"$log"
  rm -rf "$deps/unpack"

  install_machine_tools
  find_mirror
  step="read the package index of $suite"
  write_sources "$suite" "$suite"
  # By itself apt calls an index that it could not reach a warning.
  retry apt_of "$suite" apt-get -o APT::Update::Error-Mode=any update
  fetch_containerd
  fetch_cni
  fetch_busybox
  fetch_oci_runtimes
  fetch_of_own_suite
  # The tests make them anew, out of the busybox that has come.
  rm -rf "$deps/images"
  # The indexes and the trees that the parts were picked from are several times their size.
  rm -rf "$deps/unpack" "$deps/apt"
  versions
  echo "$want" >"$deps/stamp.new"
  mv -f "$deps/stamp.new" "$deps/stamp"
  echo "deps: everything is in $deps"
}

main "$@"
