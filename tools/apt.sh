# Sourced by deps.sh and deps-vm.sh: packages of other Debian suites, unpacked into the private folder through an apt
# configuration of our own, and ordinary tools of the machine's own suite. Expects deps (the folder), log (a file) and
# machine_tools to be set.
# shellcheck shell=bash disable=SC2154

step="start"
failed=
fail() { failed=yes; echo "${0##*/}: step \"$step\" failed: $*" >&2; exit 1; }

# Runs a command with its chatter in the log; what the log says is shown only when the command fails.
quietly() {
  echo "+ $*" >>"$log"
  "$@" >>"$log" 2>&1
}

# Mirrors hiccup: three attempts, then the end of the log and a sentence that names the step.
retry() {
  local attempt
  for attempt in 1 2 3; do
    if quietly "$@"; then return 0; fi
    [ "$attempt" = 3 ] || sleep $((attempt * 3))
  done
  tail -n 15 "$log" >&2
  fail "\"$*\" did not succeed in 3 attempts (whole log: $log)"
}

# --- the machine's own suite --------------------------------------------------------------------------------------

# machine_tools lists what the machine must have, as "command-or-file package".
have() { case $1 in /*) [ -e "$1" ] ;; *) command -v "$1" >/dev/null ;; esac; }

missing_packages() {
  local tool package
  while read -r tool package; do
    [ -z "$tool" ] || have "$tool" || echo "$package"
  done <<<"$machine_tools"
}

machine_index_done=
machine_index() {
  [ -z "$machine_index_done" ] || return 0
  # A third party's source that is down must not stop us: what counts is whether the install works afterwards.
  quietly apt-get -q update || quietly apt-get -q update || true
  machine_index_done=yes
}

install_machine_tools() {
  step="install the machine's ordinary tools"
  local packages
  packages=$(missing_packages)
  [ -n "$packages" ] || return 0
  machine_index
  # shellcheck disable=SC2086
  retry apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends $packages
  packages=$(missing_packages)
  [ -z "$packages" ] || fail "installed, but still not found: $packages"
}

# --- other suites, through an apt of their own ----------------------------------------------------------------------

# Sets uri to the mirror that the machine itself uses for its main suite, so that no host is named here.
find_mirror() {
  step="find the Debian mirror in the machine's apt sources"
  local codename
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  # shellcheck disable=SC2016
  uri=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
    awk -v suite="$codename" '$2 == suite && $3 == "main" { print $1; exit }')
  [ -n "$uri" ] || fail "no apt source serves \"main\" of this machine's suite \"$codename\""
}

# apt_of NAME COMMAND…: apt's COMMAND on the private indexes called NAME. The dpkg status is empty on purpose: the
# dependencies of an unpacked package must come along even where the machine has an older version installed. The cache
# of the parsed index is switched on by name: container images of Debian switch it off, and every call would parse anew.
apt_of() {
  local root=$deps/apt/$1 tool=$2
  shift 2
  "$tool" -q -o Dir::Etc::SourceList="$root/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::Etc::PreferencesParts=/dev/null -o Dir::State::Lists="$root/lists" -o Dir::Cache="$root/cache" \
    -o Dir::Cache::pkgcache=pkgcache.bin -o Dir::Cache::srcpkgcache=srcpkgcache.bin \
    -o Dir::State::Status="$root/status" -o APT::Sandbox::User=root -o APT::Default-Release= "$@"
}

# write_sources NAME SUITE…
write_sources() {
  local root=$deps/apt/$1 keyring=/usr/share/keyrings/debian-archive-keyring.gpg options="target=Packages" one
  shift
  mkdir -p "$root/lists/partial" "$root/cache/archives/partial"
  : >"$root/status"
  # Without the keyring file apt falls back on its trusted keys; it never takes unsigned indexes.
  [ ! -f "$keyring" ] || options="$options signed-by=$keyring"
  for one in "$@"; do echo "deb [$options] $uri $one main"; done >"$root/sources.list"
}

# fetch NAME SPEC FOLDER: downloads one package and unpacks it into FOLDER.
fetch() {
  local folder=$deps/apt/debs/$1-${2%%=*}
  rm -rf "$folder"
  mkdir -p "$folder" "$3"
  ( cd "$folder" && retry apt_of "$1" apt-get download "$2" )
  quietly dpkg -x "$folder"/*.deb "$3" || fail "cannot unpack $2"
  rm -rf "$folder"
}

# Every package that the named ones need, themselves included.
closure() {
  apt_of "$suite" apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
    --no-replaces --no-enhances "$@" | grep '^[a-z0-9]' | sort -u
}

# place FROM TO: by rename, because a containerd that somebody runs from here must keep its old file.
place() {
  [ -f "$1" ] || fail "expected file $1 is not in its package"
  mkdir -p "$(dirname "$2")"
  cp "$1" "$2.new"
  chmod 0755 "$2.new"
  mv -f "$2.new" "$2"
}

# shellcheck disable=SC2154
trap 'code=$?; [ $code = 0 ] || [ -n "$failed" ] || [ "$step" = start ] || echo "${0##*/}: stopped at step \"$step\" (log: $log)" >&2' EXIT
