#!/bin/bash
# The first process of the machine that vm.sh boots: pods on each handler where there is cgroup v2 and nothing else.
# Prints "PASS name" or "FAIL name" for each check, and "DONE" at the end.
set -uo pipefail
export PATH=/usr/sbin:/usr/bin LC_ALL=C HOME=/root

prepare() {
  mount -t proc proc /proc
  mount -t sysfs sysfs /sys
  mkdir -p /dev/pts /dev/shm
  mount -t devpts devpts /dev/pts
  local at
  for at in /dev/shm /run /tmp /var /etc; do mount -t tmpfs tmpfs $at; done
  echo 'root:x:0:0:root:/root:/bin/sh' >/etc/passwd
  echo 'root:x:0:' >/etc/group
  echo '127.0.0.1 localhost' >/etc/hosts
  echo 'nameserver 192.0.2.53' >/etc/resolv.conf
  hostname guest
  mkdir -p /var/lib /var/tmp
  ln -s /run /var/run
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
  sed 's/\([a-z_0-9]*\) */+\1 /g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
  local module
  for module in overlay erofs bridge br_netfilter veth nf_tables nft_compat nft_chain_nat xt_comment xt_MASQUERADE xt_mark \
    xt_addrtype xt_multiport xt_nat xt_conntrack; do modprobe "$module" || echo "no module $module"; done
  ip link set lo up
}

. /payload/settings
prepare
export MOORING_DEPS=$deps MOORING_SHIM=/payload/containerd-shim-mooring-v1 MOORING_RUNC=$deps/bin/runc
lab=/tmp/lab image=docker.io/library/mooring-test:latest
started=$SECONDS

pass() { echo "PASS $handler: $1 ($((SECONDS - started)) s)"; }
# Says why, and where containerd's log ends.
fail() {
  echo "FAIL $handler: $1"
  [ ! -f /tmp/error ] || tail -n 5 /tmp/error
  grep -E 'level=(warn|error|info)' "$lab/containerd.log" | tail -n 12 | cut -c1-400
}
# check NAME COMMAND…
check() {
  local what=$1
  shift
  if "$@" >/tmp/output 2>/tmp/error; then pass "$what"; else fail "$what"; return 1; fi
}

cri() { /payload/cri.sh "$lab/c.sock" "$@"; }
id_of() { sed -n 's/^[a-z_]*_id: "\(.*\)"/\1/p'; }
pod_config() {
  echo "metadata: { name: '$name' uid: '$name' namespace: 'default' } hostname: '$name' log_directory: '$lab/logs'
    linux: { cgroup_parent: '/pods/$name' }"
}
run_pod() {
  pod=$(cri RunPodSandbox "runtime_handler: '${handler%-crun}' config: { $(pod_config) }" | id_of) || return
  echo "$pod" >>/tmp/ids
}
# run NAME LIMIT COMMAND…: sets container
run() {
  local called=$1 limit=$2
  shift 2
  container=$(cri CreateContainer "pod_sandbox_id: '$pod' sandbox_config: { $(pod_config) } config: {
    metadata: { name: '$called' } image: { image: '$image' } command: ['/bin/sh', '-c', '$*'] log_path: '$called.log'
    linux: { resources: { memory_limit_in_bytes: $limit } } }" | id_of) || return
  echo "$container" >>/tmp/ids
  cri StartContainer "container_id: '$container'"
}
answers() { cri ExecSync "container_id: '$1' cmd: ['/bin/sh', '-c', '$2'] timeout: 20" | tee /tmp/answer | grep -q "$3"; }
has_stats() {
  cri ContainerStats "container_id: '$1'" | tr -d '\n' | grep -q 'working_set_bytes { *value: [1-9]' &&
    cri PodSandboxStats "pod_sandbox_id: '$pod'" | tr -d '\n' | grep -q 'working_set_bytes { *value: [1-9]'
}
# The answer of one that has ended, once it has.
ended() {
  local until=$((SECONDS + ${3:-15}))
  until cri ContainerStatus "container_id: '$1'" | tee /tmp/answer | grep -q CONTAINER_EXITED; do
    [ $SECONDS -lt $until ] || { cat /tmp/answer >&2; return 1; }
    sleep 0.2
  done
  grep -q "$2" /tmp/answer || { cat /tmp/answer >&2; return 1; }
}
stop() { cri StopPodSandbox "pod_sandbox_id: '$pod'"; }
remove() { cri RemovePodSandbox "pod_sandbox_id: '$pod'"; }
nothing_left() {
  # Nobody made the pod's parent cgroup beforehand; Mooring takes away what it made, containerd's sandboxes do not.
  if [ "$handler" = runc ]; then
    rmdir "/sys/fs/cgroup/pods/$name" || return
  elif [ -d "/sys/fs/cgroup/pods/$name" ]; then
    echo "cgroup /pods/$name" >&2
    return 1
  fi
  /payload/audit.sh "$lab" check /tmp/before /tmp/ids
}

whole_life() {
  name=life-$handler
  check "run a pod" run_pod || return
  check "start a container" run one 0 "echo hello; sleep 1000" || return
  local one=$container
  check "start a second container" run two 0 "sleep 1000" || return
  check "exec" answers "$one" "hostname; cat /proc/self/cgroup" "$name"
  check "the containers share the network" answers "$container" "ip -4 -o addr show eth0" "inet 10"
  check "statistics of container and pod" has_stats "$one"
  check "log" grep -q "stdout F hello" "$lab/logs/one.log"
  if check "start a container that eats memory" run eater 33554432 "tail /dev/zero"; then
    check "its end is told as OOMKilled" ended "$container" OOMKilled
  fi
  check "stop the pod" stop
  check "stop it again" stop
  check "remove the pod" remove
  check "nothing is left" nothing_left
}

killed_shim() {
  name=killed-$handler
  check "run a pod whose shim will be killed" run_pod || return
  check "start its container" run one 0 "sleep 1000" || return
  local one=$container shim
  check "start its second container" run two 0 "sleep 1000" || return
  for shim in /proc/[0-9]*; do
    if { tr '\0' ' ' <"$shim/cmdline"; } 2>/dev/null | grep -q "shim-mooring.*$pod"; then kill -KILL "${shim#/proc/}"; fi
  done
  check "its containers are shown exited" ended "$one" exit_code 10 && check "and the other one" ended "$container" exit_code 10
  check "stop what is left of the pod" stop
  check "remove what is left of the pod" remove
  check "nothing is left of the killed shim's pod" nothing_left
}

through_handlers() {
  handler=machine
  check "containerd boots" /payload/containerd.sh start "$lab" || return
  /payload/audit.sh "$lab" before >/tmp/before
  mkdir -p /sys/fs/cgroup/pods
  for handler in ${handlers:-runc mooring mooring-crun}; do
    : >/tmp/ids
    # A shim reads the configuration when its pod starts.
    case $handler in *-crun) sed -i "s#^BinaryName = .*#BinaryName = '$deps/bin/crun'#" "$lab/mooring.toml" ;; esac
    whole_life
    case $handler in mooring*) : >/tmp/ids; killed_shim ;; esac
  done
  handler=machine
  check "containerd ends and leaves nothing" /payload/containerd.sh stop "$lab"
}

echo
through_handlers
echo DONE
sync
echo b >/proc/sysrq-trigger
sleep 10
