#!/usr/bin/env bash
# Looks for what pods left on the machine: everything that bears one of their ids or belongs to their containerd.
#
# usage: audit.sh DIR before                 print what the check compares with (the containerd below DIR runs)
#        audit.sh DIR check BEFORE IDS    say kind by kind what is left of these pods and containers; fails if anything is.
#                                         BEFORE is a file with what "before" printed, IDS one with an id per line.
set -euo pipefail
export LC_ALL=C
export PATH="$PATH:/usr/sbin:/sbin"

[ $# -ge 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=$(realpath -m "$1")
network=$("$here/containerd.sh" env "$dir" | sed -n 's/^MOORING_NETWORK=//p')

# Things without an id in their names, so that only a comparison tells whose they are.
machine() {
  find /run/netns -mindepth 1 2>/dev/null | sed 's/^/netns /' || true
  find /run/containerd/s -mindepth 1 2>/dev/null | sed 's/^/socket /' || true
  ip -o link show master "$network" 2>/dev/null | sed 's/^[0-9]*: \([^@:]*\).*/link \1/' || true
  find "$dir/cni/ipam" -type f -name '[0-9a-f]*[.:]*' 2>/dev/null | sed 's/^/address /' || true
  iptables_rules | grep -F "$network" | sed 's/^/rule /' || true
}
iptables_rules() { if command -v iptables-save >/dev/null; then iptables-save -t nat 2>/dev/null || true; fi; }

# Lines of standard input that bear one of the ids.
bearing() { grep -F -f "$ids" || true; }

processes() {
  local at what
  for at in /proc/[0-9]*; do
    what=$({ tr '\0' ' ' <"$at/cmdline"; echo; cat "$at/cgroup"; } 2>/dev/null || true)
    # Not a pipe: grep leaves at the first match, and who still writes then fails.
    if grep -qF -f "$ids" <<<"$what"; then echo "process ${at#/proc/} ${what:0:100}" | head -n 1; fi
  done
}

# What a live process of ours holds is in /proc; what a dead one left is here.
files() {
  find "$dir"/{state,root,mooring,run} /run/containerd /run/mooring /var/lib/mooring /var/lib/cni /dev/shm -xdev 2>/dev/null | bearing | sed 's/^/file /'
}

remains() {
  processes
  awk '{ print $5 }' /proc/self/mountinfo | bearing | sed 's/^/mount /'
  find /sys/fs/cgroup -type d 2>/dev/null | bearing | sed 's/^/cgroup /'
  files
  machine | { grep -v -x -F -f "$before" || true; }
}

case $2 in
  before) machine; echo "(end)" ;;
  check)
    before=$3
    # Ids come in a file: on a command line they would be found there.
    ids=$4
    [ -s "$ids" ] || { echo "audit.sh: no ids in $ids" >&2; exit 2; }
    left=$(remains)
    for kind in process mount cgroup file netns link socket address rule; do
      printf '  %-8s %s\n' "$kind" "$(grep -c "^$kind " <<<"$left" || true)"
    done
    [ -z "$left" ] || { sed 's/^/  LEFT: /' <<<"$left" >&2; exit 1; } ;;
  *) echo "audit.sh: no command \"$2\"" >&2; exit 2 ;;
esac
