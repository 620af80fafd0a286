#!/usr/bin/env bash
# Makes the images of tests and demo by hand, out of busybox, since no registry is reachable. The same input gives the
# same bytes: an image's digest does not change between runs.
#
# usage: image.sh OUT.tar REF [test|data|pause]    an OCI layout tar for "ctr images import"
#        image.sh --all FOLDER                     busybox.tar, data.tar and pause.tar with their usual names
#
#   test   a small Linux: every busybox applet in /bin, users root, app (1000) and nobody (65534)
#   data   files alone, for image volumes, among them a symlink that tries to leave the image
#   pause  one static program that waits for ever, for containerd's own pod sandboxes
set -euo pipefail
export LC_ALL=C

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
deps=${MOORING_DEPS:-$(dirname "$here")/.deps}
busybox=$deps/bin/busybox
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022

die() { echo "image.sh: $*" >&2; exit 1; }

architecture() {
  case $(uname -m) in
    x86_64) echo amd64 ;;
    aarch64) echo arm64 ;;
    *) uname -m ;;
  esac
}

fill_test() {
  [ -x "$busybox" ] || die "no busybox at $busybox: run deps.sh first"
  mkdir -p "$1"/{bin,dev,etc,home/app,proc,root,run,sys,tmp,usr,var/tmp}
  cp "$busybox" "$1/bin/busybox"
  local applet
  for applet in $("$busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$1/bin/$applet"
  done
  chmod 0755 "$1/bin/busybox"
  chmod 1777 "$1/tmp" "$1/var/tmp"
  chmod 0700 "$1/root"
  ln -s ../bin "$1/usr/bin"
  cat >"$1/etc/passwd" <<'TEXT'
root:x:0:0:root:/root:/bin/sh
app:x:1000:1000:app:/home/app:/bin/sh
nobody:x:65534:65534:nobody:/home:/bin/sh
TEXT
  cat >"$1/etc/group" <<'TEXT'
root:x:0:
app:x:1000:
extra:x:2000:app
nobody:x:65534:
TEXT
}

fill_data() {
  mkdir -p "$1/data/sub"
  echo "hello from an image volume" >"$1/data/hello.txt"
  echo "deep" >"$1/data/sub/deep.txt"
  # A mount of this image must resolve such a link inside itself or refuse it, never follow it on the host.
  ln -s /../../etc/passwd "$1/data/escape"
}

# Like a real pause: reaps what it inherits as init, ends on the usual signals.
fill_pause() {
  mkdir -p "$1"
  command -v gcc >/dev/null || die "the pause image needs gcc: run deps.sh first"
  cat >"$work/pause.c" <<'TEXT'
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void leave(int sig) { (void)sig; _exit(0); }
static void reap(int sig) { (void)sig; while (waitpid(-1, NULL, WNOHANG) > 0) {} }
int main(void) {
	signal(SIGINT, leave);
	signal(SIGTERM, leave);
	signal(SIGCHLD, reap);
	for (;;) pause();
}
TEXT
  # From inside the folder, so that no path of this machine gets into the program.
  ( cd "$work" && gcc -static -Os -s -Wl,--build-id=none -o pause pause.c )
  install -m 0755 "$work/pause" "$1/pause"
}

process_of() { # the image configuration's "config" object
  case $1 in
    test) echo '{"Env":["PATH=/bin:/usr/bin"],"Cmd":["/bin/sh"],"WorkingDir":"/"}' ;;
    data) echo '{"Env":[],"WorkingDir":"/"}' ;;
    pause) echo '{"User":"65535:65535","Env":["PATH=/"],"Entrypoint":["/pause"],"WorkingDir":"/"}' ;;
  esac
}

pack() { tar --sort=name --mtime=@0 --numeric-owner --owner="${owner:-0}" --group="${owner:-0}" --format=gnu "$@"; }

digest_of() { sha256sum "$1" | cut -d' ' -f1; }

# keep FILE: puts it among the layout's blobs; prints the descriptor's digest and size members.
keep() {
  local digest size
  digest=$(digest_of "$1")
  size=$(stat -c %s "$1")
  mv "$1" "$work/layout/blobs/sha256/$digest"
  printf '"digest":"sha256:%s","size":%s' "$digest" "$size"
}

build() {
  local out=$1 ref=$2 kind=$3 diff layer config manifest
  rm -rf "$work/rootfs" "$work/layout"
  mkdir -p "$work/layout/blobs/sha256"
  "fill_$kind" "$work/rootfs"

  pack -cf "$work/layer.tar" -C "$work/rootfs" --exclude=./home/app .
  # Packed apart because its owner is not root, and because the builder need not be root either.
  [ ! -d "$work/rootfs/home/app" ] || owner=1000 pack -rf "$work/layer.tar" -C "$work/rootfs" ./home/app
  diff=$(digest_of "$work/layer.tar")
  layer=$(keep "$work/layer.tar")

  printf '{"created":"1970-01-01T00:00:00Z","architecture":"%s","os":"linux","config":%s,"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$(architecture)" "$(process_of "$kind")" "$diff" >"$work/config.json"
  config=$(keep "$work/config.json")

  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json",%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar",%s}]}' \
    "$config" "$layer" >"$work/manifest.json"
  manifest=$(keep "$work/manifest.json")

  printf '{"imageLayoutVersion":"1.0.0"}' >"$work/layout/oci-layout"
  # containerd takes the image's name from this annotation.
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",%s,"annotations":{"io.containerd.image.name":"%s"},"platform":{"architecture":"%s","os":"linux"}}]}' \
    "$manifest" "$ref" "$(architecture)" >"$work/layout/index.json"

  mkdir -p "$(dirname "$out")"
  pack -cf "$out.new" -C "$work/layout" oci-layout index.json blobs
  mv -f "$out.new" "$out"
  echo "$ref $out"
}

case "${1:-}" in
  --all)
    folder=${2:?usage: image.sh --all FOLDER}
    build "$folder/busybox.tar" docker.io/library/mooring-test:latest test
    build "$folder/data.tar" docker.io/library/mooring-data:latest data
    build "$folder/pause.tar" registry.k8s.io/pause:3.10 pause
    ;;
  *)
    [ $# -ge 2 ] || die "usage: image.sh OUT.tar REF [test|data|pause], or image.sh --all FOLDER"
    case "${3:-test}" in test | data | pause) build "$1" "$2" "${3:-test}" ;; *) die "no kind of image \"$3\"" ;; esac
    ;;
esac
