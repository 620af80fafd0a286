#!/usr/bin/env bash
# One pod's life on a private containerd, from RunPodSandbox to nothing left behind, first as the kubelet does it (CRI),
# then as any client of containerd's Sandbox API does it (ctr). Fails when a step does, or when anything is left.
#
# usage: demo.sh [HANDLER]     handler of tools/containerd.sh: mooring (the default), or runc to compare
# environment: MOORING_SHIM, MOORING_DEPS as for containerd.sh
set -euo pipefail
export LC_ALL=C

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
deps=${MOORING_DEPS:-$(dirname "$here")/.deps}
export PATH="$deps/bin:$PATH:/usr/sbin:/sbin"
handler=${1:-mooring}
lab=$(mktemp -d /tmp/mooring-demo.XXXXXX)
image=docker.io/library/mooring-test:latest
ids=$lab/ids before=$lab/before answer=$lab/answer

bold= plain=
if [ -t 1 ]; then bold=$(printf '\033[1m') plain=$(printf '\033[0m'); fi
title() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
say() { printf '  %s\n' "$*"; }
indent() { sed 's/^/  /'; }
die() { echo "demo.sh: $*" >&2; exit 1; }

finish() {
  local code=$?
  trap - EXIT
  if [ $code != 0 ] && [ -f "$lab/containerd.log" ]; then
    echo "the end of containerd's log:" >&2
    grep -v 'level=debug' "$lab/containerd.log" | tail -n 15 | cut -c1-400 >&2
  fi
  if ! "$here/containerd.sh" stop "$lab"; then code=1; fi
  # The folder of the pod's parent cgroup is its client's, as a kubelet's is the kubelet's.
  find /sys/fs/cgroup -depth -type d -path "*/mooring-demo-$$*" -exec rmdir {} + || code=1
  [ $code != 0 ] || rm -rf "$lab"
  exit $code
}
trap finish EXIT
trap 'exit 130' INT TERM

# cri METHOD REQUEST: the call; its answer in $answer, its time in $ms.
cri() {
  CRI_TIME=$lab/time "$here/cri.sh" "$lab/c.sock" "$@" >"$answer" || die "$1 failed"
  ms=$(awk '{ printf "%.0f", $1 * 1000 }' "$lab/time")
}
id_in() { sed -n 's/^[a-z_]*_id: "\(.*\)"/\1/p' "$1"; }
short() { echo "${1:0:12}"; }

# --- looking at the pod -----------------------------------------------------------------------------------------------

# The pod's own processes: the shims of this containerd, and everything below them.
pod_processes() {
  ps -e -o pid=,ppid=,nlwp=,args= | awk -v socket="$lab/c.sock" '
    { pid[NR] = $1; parent[$1] = $2; line[$1] = $0; if (index($0, socket) && index($0, "shim")) mine[$1] = 1 }
    END {
      do { grown = 0
        for (n = 1; n <= NR; n++) if (!(pid[n] in mine) && (parent[pid[n]] in mine)) { mine[pid[n]] = 1; grown = 1 }
      } while (grown)
      for (n = 1; n <= NR; n++) if (pid[n] in mine) print pid[n]
    }'
}
kib() { sed -n "s/^$2: *\([0-9]*\) kB/\1/p" "/proc/$1/smaps_rollup" 2>/dev/null || true; }
show_processes() {
  local pid
  printf '  %-8s %-8s %-8s %s\n' pid threads PSS command
  for pid in $(pod_processes); do
    [ -d "/proc/$pid" ] || continue
    printf '  %-8s %-8s %-8s %s\n' "$pid" "$(sed -n 's/^Threads:\t//p' "/proc/$pid/status")" "$(kib "$pid" Pss) KiB" \
      "$(tr '\0' ' ' <"/proc/$pid/cmdline" | sed 's#\S*/\([^ /]*shim[^ ]*\)#\1#' | cut -c1-80)"
  done
}

# containerd's log holds one line for each step of the teardown.
show_teardown() {
  # shellcheck disable=SC2016
  awk -v id="$1" '
    /teardown step/ && index($0, id) { step = outcome = ms = ""
      for (n = 1; n <= NF; n++) { split($n, pair, "="); gsub(/"/, "", pair[2])
        if (pair[1] ~ /^"?step$/) step = pair[2]; if (pair[1] == "outcome") outcome = pair[2]; if (pair[1] == "ms") ms = pair[2] }
      if (step != "") printf "  %-22s %-14s %s ms\n", step, outcome, ms }' "$lab/containerd.log"
}

value() { # value NAME: the first number of that message in the answer
  awk -v name="$1" '$1 == name { seen = 1 } seen && $1 == "value:" { print $2; exit }' "$answer"
}

# --- the steps ----------------------------------------------------------------------------------------------------------

pod_config() {
  echo "metadata: { name: 'demo' uid: 'demo-uid' namespace: 'default' } hostname: 'demo-pod' log_directory: '$lab/logs'
    dns_config: { servers: ['192.0.2.53'] searches: ['demo.test'] }
    linux: { cgroup_parent: '/mooring-demo-$$' }"
}

run_container() { # run_container NAME COMMAND…: sets container
  local name=$1 words
  shift
  words=$(printf "'%s', " "$@")
  cri CreateContainer "pod_sandbox_id: '$pod' sandbox_config: { $(pod_config) } config: {
    metadata: { name: '$name' } image: { image: '$image' } command: [${words%, }] log_path: '$name.log' linux: {} }"
  container=$(id_in "$answer")
  echo "$container" >>"$ids"
  say "CreateContainer $name: $(short "$container"), $ms ms"
  cri StartContainer "container_id: '$container'"
  say "StartContainer  $name: $ms ms"
}

run_in() { # run_in CONTAINER COMMAND…
  local words container=$1
  shift
  words=$(printf "'%s', " "$@")
  cri ExecSync "container_id: '$container' cmd: [${words%, }] timeout: 10"
  grep -q '^exit_code: [^0]' "$answer" && die "\"$*\" failed: $(cat "$answer")"
  printf '  $ %s\n' "$*"
  printf '%b' "$(sed -n 's/^stdout: "\(.*\)"$/\1/p' "$answer")" | indent
}

through_cri() {
  title "RunPodSandbox, handler $handler"
  cri RunPodSandbox "runtime_handler: '$handler' config: { $(pod_config) }"
  pod=$(id_in "$answer")
  echo "$pod" >>"$ids"
  cri PodSandboxStatus "pod_sandbox_id: '$pod'"
  say "pod $(short "$pod"), address $(sed -n 's/.* ip: "\(.*\)"/\1/p' "$answer"), $(sed -n 's/^  state: //p' "$answer" | grep . || echo SANDBOX_READY)"

  title "Two containers"
  run_container server /bin/sh -c 'echo hello from the server >/tmp/index.html; echo server is up; exec httpd -f -p 8080 -h /tmp'
  server=$container
  run_container client /bin/sh -c 'while sleep 1; do date +%s; done'
  client=$container

  title "Exec: one network, one host name, one /etc/hosts for both"
  run_in "$client" /bin/sh -c 'until wget -q -O - http://127.0.0.1:8080; do sleep 0.1; done'
  run_in "$server" /bin/hostname
  run_in "$client" /bin/cat /etc/resolv.conf

  title "Logs of the container \"server\", as the kubelet reads them"
  indent <"$lab/logs/server.log"

  title "What the pod is made of$([ "$handler" = runc ] || echo ": no pause container")"
  show_processes

  title "Stats"
  cri PodSandboxStats "pod_sandbox_id: '$pod'"
  say "pod: $(($(value usage_core_nano_seconds) / 1000000)) ms of CPU, $(($(value working_set_bytes) / 1024)) KiB working set, $(value process_count) processes"
  local one
  for one in "$server" "$client"; do
    cri ContainerStats "container_id: '$one'"
    say "container $(short "$one"): $(($(value usage_core_nano_seconds) / 1000000)) ms of CPU, $(($(value working_set_bytes) / 1024)) KiB working set"
  done

  title "StopPodSandbox, both containers still running"
  cri StopPodSandbox "pod_sandbox_id: '$pod'"
  say "stopped in $ms ms; step by step:"
  show_teardown "$pod"
  cri StopPodSandbox "pod_sandbox_id: '$pod'"
  say "once more, since a kubelet may ask twice: success in $ms ms"

  title "RemovePodSandbox"
  cri RemovePodSandbox "pod_sandbox_id: '$pod'"
  say "removed in $ms ms"
}

ctr_() { "$deps/bin/ctr" -a "$lab/c.sock" "$@"; }
shown() { # shown COMMAND…: prints the command and what it says
  printf '  $ %s\n' "$(sed "s#ctr_#ctr#" <<<"$*")"
  "$@" 2>&1 | indent
}

# "ctr sandboxes run" of containerd 2.1 names no controller, so none starts its sandbox; then its three calls are made
# one by one.
run_sandbox() {
  if ctr_ sandboxes run --runtime "$1" "$lab/pod.json" "$2" >"$answer" 2>&1; then
    say "\$ ctr sandboxes run --runtime $1 pod.json $2"
    indent <"$answer"
    return
  fi
  grep -q 'controller name can not be empty' "$answer" || die "ctr sandboxes run: $(cat "$answer")"
  ctr_ sandboxes rm -f "$2" >/dev/null 2>&1 || true
  local spec sandbox
  spec=$(tr -d '\n' <"$lab/pod.json")
  sandbox="sandbox_id: '$2' runtime: { name: '$1' } sandboxer: 'shim'
    spec: { type_url: 'types.containerd.io/opencontainers/runtime-spec/1/Spec' value: '$spec' }"
  say "(this ctr cannot run sandboxes; through containerd's sandbox services instead)"
  cri Store/Create "sandbox: { $sandbox }"
  cri Controller/Create "sandbox_id: '$2' sandboxer: 'shim' sandbox: { $sandbox }"
  say "CreateSandbox: $ms ms"
  cri Controller/Start "sandbox_id: '$2' sandboxer: 'shim'"
  say "StartSandbox:  $ms ms, with CNI"
}

through_ctr() {
  local type=io.containerd.mooring.v1 id=demo-$$
  printf '%s\n%s\n' "$id" "$id-task" >>"$ids"
  # A pod file is an OCI specification; what it leaves out, Mooring decides.
  cat >"$lab/pod.json" <<JSON
{ "ociVersion": "1.1.0", "hostname": "ctr-pod", "root": { "path": "rootfs" },
  "linux": { "cgroupsPath": "/mooring-demo-$$/$id", "namespaces": [ { "type": "network" }, { "type": "ipc" }, { "type": "uts" } ] } }
JSON
  title "The same without Kubernetes: ctr sandboxes"
  run_sandbox "$type" "$id"
  shown ctr_ sandboxes ls
  shown ctr_ run --rm --runtime "$type" --sandbox "$id" "$image" "$id-task" /bin/ip -4 -o addr show
  shown ctr_ sandboxes rm "$id"
  show_teardown "$id"
}

main() {
  [ "$(id -u)" = 0 ] || die "needs root"
  title "A private containerd in $lab"
  "$here/containerd.sh" start "$lab" >/dev/null
  say "$("$deps/bin/containerd" --version | cut -d' ' -f1,3), $("$deps/bin/runc" --version | head -n 1)"
  "$here/audit.sh" "$lab" before >"$before"
  : >"$ids"

  through_cri
  if [ "$handler" = mooring ]; then through_ctr; fi

  title "What is left of them on this machine"
  "$here/audit.sh" "$lab" check "$before" "$ids" || die "something was left behind"
  say "nothing."
}

main
