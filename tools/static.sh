#!/usr/bin/env bash
# Checks that programs are what a release promises: no interpreter, no shared library, no relocation at start.
#
# usage: static.sh PROGRAM…
set -euo pipefail
export LC_ALL=C

for program in "$@"; do
  headers=$(readelf -hlW "$program")
  case $headers in *INTERP*) echo "static.sh: $program wants a dynamic loader" >&2; exit 1 ;; esac
  case $headers in *DYNAMIC*) echo "static.sh: $program is position independent" >&2; exit 1 ;; esac
  echo "$(basename "$program"): static, $(($(stat -c %s "$program") / 1024)) KiB"
done
