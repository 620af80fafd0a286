#!/usr/bin/env bash
# Runs cargo-deny over the dependency tree: licences, banned crates, sources, and known vulnerabilities.
#
# No Debian suite packages cargo-deny, so it is built once, unoptimised (a minute on two cores), into the private folder.
# The advisory database is a git repository that no package registry carries: where it can be neither fetched nor found
# in cargo's home from an earlier time, that one check is left out, and said to be.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
deps=${MOORING_DEPS:-$(dirname "$here")/.deps}
version=0.20.2
program=$deps/cargo/bin/cargo-deny

install_it() {
  mkdir -p "$deps"
  exec 9>"$deps/cargo-deny.lock"
  flock 9
  if [ "$("$program" --version 2>/dev/null)" = "cargo-deny $version" ]; then return 0; fi
  echo "cargo-deny: building version $version into $deps/cargo"
  local work
  work=$(mktemp -d)
  if ! CARGO_PROFILE_DEV_DEBUG=0 cargo install "cargo-deny@$version" --locked --debug --no-default-features --quiet \
    --root "$deps/cargo" --target-dir "$work" 2>"$work/log"; then
    tail -n 20 "$work/log" >&2
    rm -rf "$work"
    echo "cargo-deny.sh: the build of cargo-deny $version failed" >&2
    exit 1
  fi
  rm -rf "$work"
}

install_it
deny() { "$program" --workspace --locked "$@"; }
deny check --hide-inclusion-graph licenses bans sources
if timeout 120 "$program" --workspace fetch db >/dev/null 2>&1; then
  deny check --hide-inclusion-graph --disable-fetch advisories
elif ls -d "${CARGO_HOME:-$HOME/.cargo}"/advisory-dbs/*/crates >/dev/null 2>&1; then
  echo "cargo-deny: the advisory database cannot be fetched now; using the copy from last time"
  deny check --hide-inclusion-graph --disable-fetch advisories
else
  echo "cargo-deny: the advisory database cannot be had here (it is not in any package registry): advisories NOT CHECKED"
fi
