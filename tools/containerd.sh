#!/usr/bin/env bash
# A private containerd below one folder: its own root, state, sockets, CNI network and configuration. Several may run
# side by side. Nothing of /etc/containerd or /run/containerd is used, except what the shims and runc put there
# themselves (/run/containerd/s, /run/containerd/runc) and CRI's network namespaces in /run/netns.
#
# usage: containerd.sh start DIR     boot it, with the test images in the namespaces k8s.io and default
#        containerd.sh halt DIR [SIGNAL]   end containerd alone; pods live on, and "start" finds them again
#        containerd.sh stop DIR      remove pods and tasks, end containerd, remove all that it left, check that nothing is
#        containerd.sh config DIR    print the configuration that "start" would write
#        containerd.sh env DIR       print shell variables: socket, network, folders
#        containerd.sh cri DIR METHOD [REQUEST]   one CRI call (see cri.sh)
#        containerd.sh smoke DIR [HANDLER]        run and remove a pod with one container over CRI
#
# environment: MOORING_DEPS        where deps.sh put everything, default <repo>/.deps
#              MOORING_SHIM        the shim of handler "mooring", default <repo>/target/dist/containerd-shim-mooring-v1
#              MOORING_RUNC        the OCI runtime of both handlers, default $MOORING_DEPS/bin/runc
#              MOORING_OPTIONS     more lines of TOML for Mooring's configuration, which lies in DIR/mooring.toml
#              MOORING_CONTAINERD  the folder with containerd, ctr and containerd-shim-runc-v2, default $MOORING_DEPS/bin
#              MOORING_CONTAINERD_CONFIG  more TOML, put at the end of the configuration
set -euo pipefail
export LC_ALL=C

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(dirname "$here")
deps=${MOORING_DEPS:-$repo/.deps}
programs=${MOORING_CONTAINERD:-$deps/bin}
# containerd looks for shims in PATH, CNI's plugins for iptables.
export PATH="$programs:$deps/bin:$PATH:/usr/sbin:/sbin"

# What several private containerds share on one machine: who is running, and what the machine was like before the first.
shared=/run/mooring-lab

die() { echo "containerd.sh: $*" >&2; exit 1; }
usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//p}' "$0" >&2; exit 2; }

# Everything named after the folder, so that two folders never meet: bridge, subnet, CNI network.
name_things() {
  dir=$(realpath -m "$1")
  case $dir in / | /etc | /run | /var | /usr | /home | /root | /tmp | "$repo") die "$dir is no folder to build a containerd in" ;; esac
  # The kernel's limit for a socket's path is 107 bytes.
  [ ${#dir} -le 80 ] || die "the path $dir is too long for a socket in it (at most 80 bytes)"
  socket=$dir/c.sock
  hash=$(sha256sum <<<"$dir" | cut -c1-8)
  network=mrg$hash
  subnet=10.$((64 + 0x${hash:0:2} % 128)).$((0x${hash:2:2})).0/24
}

# --- configuration --------------------------------------------------------------------------------------------------

print_config() {
  local runc=${MOORING_RUNC:-$deps/bin/runc}
  cat <<TOML
version = 3
root = '$dir/root'
state = '$dir/state'

[grpc]
  address = '$socket'

[ttrpc]
  address = '$socket.ttrpc'

[plugins.'io.containerd.internal.v1.opt']
  path = '$dir/opt'

[plugins.'io.containerd.nri.v1.nri']
  socket_path = '$dir/nri.sock'
  plugin_path = '$dir/nri/plugins'
  plugin_config_path = '$dir/nri/conf.d'

[plugins.'io.containerd.image-verifier.v1.bindir']
  bin_dir = '$dir/verifiers'

[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = 'registry.k8s.io/pause:3.10'
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = '$dir/certs.d'

[plugins.'io.containerd.grpc.v1.cri']
  disable_tcp_service = true
  stream_server_address = '127.0.0.1'
  stream_server_port = '0'

[plugins.'io.containerd.cri.v1.runtime']
  # Without CAP_SYS_RESOURCE a lower oom_score_adj is refused.
  restrict_oom_score_adj = true
  cdi_spec_dirs = ['$dir/cdi']
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['$deps/cni/bin']
    conf_dir = '$dir/cni/net.d'
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = 'runc'
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = 'io.containerd.runc.v2'
    sandboxer = 'podsandbox'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = '$runc'
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.mooring]
    runtime_type = 'io.containerd.mooring.v1'
    sandboxer = 'shim'

${MOORING_CONTAINERD_CONFIG:-}
TOML
}

print_cni() {
  cat <<JSON
{
  "cniVersion": "1.0.0",
  "name": "$network",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "$network",
      "isGateway": true,
      "ipMasq": true,
      "ipam": {
        "type": "host-local",
        "dataDir": "$dir/cni/ipam",
        "ranges": [[{ "subnet": "$subnet" }]],
        "routes": [{ "dst": "0.0.0.0/0" }]
      }
    },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ]
}
JSON
}

# What other nodes have in /etc/mooring/config.toml. Not in the handler's options: containerd 2.1 does not start the
# containers of a shim sandbox whose handler has any, unless they are of runc's own type.
print_mooring() {
  cat <<TOML
BinaryName = '${MOORING_RUNC:-$deps/bin/runc}'
CniConfDir = '$dir/cni/net.d'
CniBinDirs = ['$deps/cni/bin']
StateRoot = '$dir/mooring'
RunRoot = '$dir/run'
${MOORING_OPTIONS:-}
TOML
}

# containerd's CRI adds the loopback by itself; the file is for who runs CNI with this folder directly.
write_config() {
  mkdir -p "$dir"/{bin,cni/net.d,cni/ipam,certs.d,cdi,nri}
  print_config >"$dir/config.toml"
  print_mooring >"$dir/mooring.toml"
  # containerd looks for a sandbox's shim by the name of its runtime type.
  ln -sfn "${MOORING_SHIM:-$repo/target/dist/containerd-shim-mooring-v1}" "$dir/bin/containerd-shim-mooring-v1"
  ln -sfn "${MOORING_RUNC:-$deps/bin/runc}" "$dir/bin/runc"
  print_cni >"$dir/cni/net.d/10-$network.conflist"
}

# --- the machine's state that all private containerds share -----------------------------------------------------------

# Under a lock: the first one notes what the machine was like, the last one puts it back.
with_shared_lock() {
  mkdir -p "$shared"
  exec 8>"$shared.lock"
  flock 8
  "$@"
  exec 8>&-
}

# Folders that runc, the shims and CRI make for everybody and never remove.
common_folders() {
  ls -d /sys/fs/cgroup/*/{default,k8s.io} /sys/fs/cgroup/{default,k8s.io} /run/containerd /run/containerd/s \
    /run/containerd/runc /run/containerd/runc/{default,k8s.io} 2>/dev/null | sort -r || true
}

enrol() {
  if [ -z "$(ls "$shared")" ]; then
    mkdir -p "$shared.before"
    # The bridge plugin switches forwarding on for the whole machine.
    cat /proc/sys/net/ipv4/ip_forward >"$shared.before/ip_forward"
    nat_table | sed -n 's/^:\(CNI-HOSTPORT[^ ]*\) .*/\1/p' >"$shared.before/chains"
    common_folders >"$shared.before/folders"
  fi
  : >"$shared/$hash"
}

withdraw() {
  rm -f "$shared/$hash"
  if [ -n "$(ls "$shared")" ] || [ ! -d "$shared.before" ]; then return 0; fi
  cat "$shared.before/ip_forward" >/proc/sys/net/ipv4/ip_forward
  # portmap never removes its top chains. Ours to remove when they were not there before and lead nowhere now.
  if [ ! -s "$shared.before/chains" ] && ! nat_table | grep -q '^-A CNI-HOSTPORT-DNAT'; then
    cut_from_nat ' -j CNI-HOSTPORT-' CNI-HOSTPORT-DNAT CNI-HOSTPORT-MASQ CNI-HOSTPORT-SETMARK
  fi
  local folder
  common_folders | { grep -v -x -F -f "$shared.before/folders" || true; } | while read -r folder; do
    # Not empty means somebody else's.
    rmdir "$folder" 2>/dev/null || true
  done
  rm -rf "$shared.before"
  rmdir "$shared"
}

# --- iptables ---------------------------------------------------------------------------------------------------------

nat_table() { if command -v iptables-save >/dev/null; then iptables-save -t nat 2>/dev/null || true; fi; }

# cut_from_nat PATTERN CHAIN…: removes every nat rule that matches the pattern, then the chains, in one transaction.
# iptables-restore reads the quoting that iptables-save writes, which no shell does; it refuses the whole when another
# writer was faster, hence the attempts.
cut_from_nat() {
  local pattern=$1 attempt table rules chain chains=
  shift
  for attempt in 1 2 3 4 5; do
    table=$(nat_table)
    rules=$(grep '^-A ' <<<"$table" | { grep -e "$pattern" || true; } | sed 's/^-A /-D /' || true)
    chains=$(for chain in "$@"; do if grep -q "^:$chain " <<<"$table"; then echo "$chain"; fi; done)
    [ -n "$rules$chains" ] || return 0
    # Chains first lose their rules, since one may jump to another.
    if {
      echo '*nat'
      sed 's/^./-F &/' <<<"$chains"
      { grep -v -F -x -f <(for chain in $chains; do grep "^-D $chain " <<<"$rules" || true; done) || true; } <<<"$rules"
      sed 's/^./-X &/' <<<"$chains"
      echo COMMIT
    } | iptables-restore -w --noflush 2>/dev/null; then return 0; fi
    sleep "0.$attempt"
  done
}

# The plugins write the network's name into the comment of each rule, and give each pod chains of its own.
drop_network_rules() {
  local mine="name: .*\"$network\\\\\"" chains
  chains=$(nat_table | { grep -e "$mine" || true; } | { grep -oE -e '-j CNI-(DN-)?[0-9a-f]{20,}' || true; } | cut -c4- | sort -u)
  # shellcheck disable=SC2086
  cut_from_nat "$mine" $chains
}

# --- processes ----------------------------------------------------------------------------------------------------------

# A pid alone may mean another process by now; with its start time it cannot.
started_at() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }
record_pid() { echo "$1 $(started_at "$1")" >"$dir/pid"; }
running_pid() {
  local pid since
  [ -f "$dir/pid" ] || return 1
  read -r pid since <"$dir/pid"
  [ "$(started_at "$pid")" = "$since" ] && [ -n "$since" ] && echo "$pid"
}

# wait_for SECONDS COMMAND…
wait_for() {
  local until=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$until" ] || return 1
    sleep 0.05
  done
}

gone() { [ ! -d "/proc/$1" ] || grep -q '^State:.*[ZX]' "/proc/$1/status" 2>/dev/null; }

# Shims carry our socket's path as an argument of its own; no other process of the machine does so.
our_shims() {
  local at
  for at in /proc/[0-9]*; do
    if { tr '\0' '\n' <"$at/cmdline"; } 2>/dev/null | grep -qxF -e "$socket"; then
      [ "${at#/proc/}" = "$$" ] || echo "${at#/proc/}"
    fi
  done
}

# --- start ----------------------------------------------------------------------------------------------------------------

client() { ctr -a "$socket" "$@"; }
cri() { "$here/cri.sh" "$socket" "$@"; }
image_known() { cri ImageStatus "image: { image: '$1' }" | grep -q 'id:'; }

import_images() {
  local tar ref
  for tar in busybox:docker.io/library/mooring-test:latest data:docker.io/library/mooring-data:latest pause:registry.k8s.io/pause:3.10; do
    ref=${tar#*:} tar=$deps/images/${tar%%:*}.tar
    [ -f "$tar" ] || die "no image $tar: run deps.sh"
    client -n k8s.io images import --label io.cri-containerd.image=managed "$tar" >/dev/null
    client -n default images import "$tar" >/dev/null
    # CRI learns of images by event.
    wait_for 10 image_known "$ref" || die "CRI does not see the image $ref"
  done
}

start() {
  [ -x "$programs/containerd" ] || die "no containerd in $programs: run deps.sh"
  ! running_pid >/dev/null || die "already running in $dir as pid $(running_pid)"
  write_config
  with_shared_lock enrol
  # In a session of its own, so that a Ctrl-C at the terminal does not reach it.
  PATH="$dir/bin:$PATH" MOORING_CONFIG="$dir/mooring.toml" setsid "$programs/containerd" --config "$dir/config.toml" >>"$dir/containerd.log" 2>&1 </dev/null &
  local pid=$!
  record_pid "$pid"
  if ! wait_for 30 client version || ! wait_for 10 cri Version; then
    tail -n 15 "$dir/containerd.log" >&2
    die "containerd (pid $pid) does not answer; its log is $dir/containerd.log"
  fi
  # After "halt" the images are still there.
  [ -e "$dir/root/images-are-in" ] || import_images
  : >"$dir/root/images-are-in"
  echo "$socket"
}

# --- stop -----------------------------------------------------------------------------------------------------------------

end_containerd() {
  local pid
  pid=$(running_pid) || return 0
  kill -"${1:-TERM}" "$pid" 2>/dev/null || true
  if ! wait_for 10 gone "$pid"; then
    kill -KILL "$pid" 2>/dev/null || true
    wait_for 5 gone "$pid" || die "containerd (pid $pid) does not end"
  fi
  rm -f "$dir/pid"
}

# The polite way, through the daemon: pods first, then what other clients started.
remove_workloads() {
  running_pid >/dev/null || return 0
  local id namespace
  for id in $(CRI_TIMEOUT=20 cri ListPodSandbox 2>/dev/null | sed -n 's/^  id: "\(.*\)"/\1/p'); do
    CRI_TIMEOUT=20 cri StopPodSandbox "pod_sandbox_id: '$id'" >/dev/null 2>&1 || true
    CRI_TIMEOUT=20 cri RemovePodSandbox "pod_sandbox_id: '$id'" >/dev/null 2>&1 || true
  done
  for namespace in $(timeout 10 ctr -a "$socket" namespaces ls -q 2>/dev/null); do
    for id in $(timeout 10 ctr -a "$socket" -n "$namespace" tasks ls -q 2>/dev/null); do
      timeout 10 ctr -a "$socket" -n "$namespace" tasks rm -f "$id" >/dev/null 2>&1 || true
    done
  done
}

# The rough way, for what a crash or a bug left. The bundles say which shims, sockets and containers there were.
remove_remains() {
  local pid bundle address file netns id runc
  for pid in $(our_shims); do kill -KILL "$pid" 2>/dev/null || true; done
  for bundle in "$dir"/state/io.containerd.runtime.v2.task/*/* "$dir"/state/io.containerd.sandbox.controller.v1.shim/*/*; do
    [ -d "$bundle" ] || continue
    id=$(basename "$bundle")
    address=$(sed -n 's/.*"address":"unix:\/\/\([^"]*\)".*/\1/p' "$bundle/bootstrap.json" 2>/dev/null || true)
    [ -z "$address" ] || rm -f "$address"
    runc=/run/containerd/runc/$(basename "$(dirname "$bundle")")
    [ ! -d "$runc/$id" ] || "${MOORING_RUNC:-$deps/bin/runc}" --root "$runc" delete --force "$id" >/dev/null 2>&1 || true
  done
  # libcni's cache names the network namespaces of our pods.
  for file in /var/lib/cni/results/"$network"-*; do
    [ -f "$file" ] || continue
    netns=$(sed -n 's/.*"netns":"\([^"]*\)".*/\1/p' "$file")
    case $netns in /var/run/netns/?* | /run/netns/?*) umount -l "$netns" 2>/dev/null || true; rm -f "$netns" ;; esac
    id=$(basename "$file" -eth0)
    rm -f "$file" "/var/lib/cni/results/cni-loopback-${id#"$network"-}-lo"
  done
  mounts_below | while read -r file; do umount -l "$file" 2>/dev/null || true; done
  ip link delete "$network" 2>/dev/null || true
  drop_network_rules
}

# The deepest first. The kernel writes blanks in paths as \040.
mounts_below() {
  awk '{ print $5 }' /proc/self/mountinfo | while read -r at; do
    at=$(printf '%b' "$at")
    case $at in "$dir"/*) echo "$at" ;; esac
  done | sort -r
}

# Prints what is still there; nothing when all is well.
leftovers() {
  local one
  for one in $(our_shims); do echo "process $one: $(tr '\0' ' ' <"/proc/$one/cmdline" 2>/dev/null)"; done
  mounts_below | sed 's/^/mount /'
  if ip link show "$network" >/dev/null 2>&1; then echo "link $network"; fi
  nat_table | { grep -F "$network" || true; } | sed 's/^/iptables rule /'
  for one in /var/lib/cni/results/"$network"-*; do [ ! -e "$one" ] || echo "file $one"; done
}

stop() {
  [ -d "$dir" ] || return 0
  remove_workloads
  end_containerd
  remove_remains
  with_shared_lock withdraw
  # Of no use any more, and in the way of a later start; configuration and log stay.
  rm -rf "$dir/root" "$dir/state" "$dir/mooring" "$dir/run" "$dir/opt" "$dir/cni/ipam" "$socket" "$socket.ttrpc" "$dir/nri.sock"
  local left
  left=$(leftovers)
  [ -z "$left" ] || die "left behind: $left"
}

# --- a pod through CRI ------------------------------------------------------------------------------------------------------

id_in() { sed -n 's/^[a-z_]*_id: "\(.*\)"/\1/p'; }

smoke() {
  local handler=${1:-runc} name pod container answer
  name=smoke-$$-$handler
  local config="metadata: { name: '$name' uid: '$name' namespace: 'default' } hostname: '$name' log_directory: '$dir/logs' linux: {}
    port_mappings: { container_port: 80 host_port: $((20000 + $$ % 20000)) host_ip: '127.0.0.1' }"
  pod=$(cri RunPodSandbox "runtime_handler: '$handler' config: { $config }" | id_in)
  [ -n "$pod" ] || die "smoke: RunPodSandbox gave no id"
  container=$(cri CreateContainer "pod_sandbox_id: '$pod' sandbox_config: { $config } config: {
    metadata: { name: 'main' } image: { image: 'docker.io/library/mooring-test:latest' }
    command: ['/bin/sleep', '1000'] log_path: 'main.log' linux: {} }" | id_in)
  cri StartContainer "container_id: '$container'" >/dev/null
  answer=$(cri ExecSync "container_id: '$container' cmd: ['/bin/sh', '-c', 'hostname; ip -4 -o addr show eth0'] timeout: 10")
  grep -q "$name" <<<"$answer" || die "smoke: the container's host name is not the pod's: $answer"
  grep -q ' inet 10\.' <<<"$answer" || die "smoke: the container has no address: $answer"
  cri StopPodSandbox "pod_sandbox_id: '$pod'" >/dev/null
  cri RemovePodSandbox "pod_sandbox_id: '$pod'" >/dev/null
  ! cri ListPodSandbox | grep -q "$pod" || die "smoke: the pod is still listed"
  echo "smoke: a pod ran with handler $handler"
}

[ $# -ge 2 ] || usage
name_things "$2"
case $1 in
  start | stop | halt) [ "$(id -u)" = 0 ] || die "$1 needs root" ;;
esac
case $1 in
  start) start ;;
  stop) stop ;;
  halt) end_containerd "${3:-TERM}" ;;
  config) print_config ;;
  env)
    cat <<TEXT
CONTAINERD_ADDRESS=$socket
CONTAINER_RUNTIME_ENDPOINT=unix://$socket
MOORING_NETWORK=$network
MOORING_SUBNET=$subnet
CNI_CONF_DIR=$dir/cni/net.d
CNI_IPAM_DIR=$dir/cni/ipam
CNI_PATH=$deps/cni/bin
TEXT
    ;;
  cri) shift 2; cri "$@" ;;
  smoke) smoke "${3:-runc}" ;;
  *) usage ;;
esac
