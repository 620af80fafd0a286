#!/usr/bin/env bash
# Fuzzes what Mooring reads of others (docs/fuzzing.md): every target, or those named, each for a time.
#
# cargo-fuzz is built once, unoptimised, into the private folder. No nightly compiler is needed: stable instruments code
# for libFuzzer too, only not for a sanitizer, of which a program in safe Rust has little use.
#
# usage: fuzz.sh TIME [TARGET…]     TIME as in 30s, 10m, 1h
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
deps=${MOORING_DEPS:-$root/.deps}
version=0.13.2
# In bytes: what is read is small, and a larger input only takes longer.
longest=4096
# In seconds, and in MiB: an input that takes more is a finding.
slow=20 much=2048

fail() { echo "fuzz.sh: $*" >&2; exit 2; }

seconds() {
  [[ $1 =~ ^([0-9]+)([smh]?)$ ]] || fail "TIME is a number with s, m or h, not \"$1\""
  case ${BASH_REMATCH[2]} in m) echo $((BASH_REMATCH[1] * 60)) ;; h) echo $((BASH_REMATCH[1] * 3600)) ;; *) echo "${BASH_REMATCH[1]}" ;; esac
}

install_it() {
  mkdir -p "$deps"
  exec 9>"$deps/cargo-fuzz.lock"
  flock 9
  if [ "$("$deps/cargo/bin/cargo-fuzz" --version 2>/dev/null)" = "cargo-fuzz $version" ]; then return 0; fi
  echo "cargo-fuzz: building version $version into $deps/cargo"
  local work
  work=$(mktemp -d)
  if ! CARGO_PROFILE_DEV_DEBUG=0 cargo install "cargo-fuzz@$version" --locked --debug --quiet \
    --root "$deps/cargo" --target-dir "$work" 2>"$work/log"; then
    tail -n 20 "$work/log" >&2
    rm -rf "$work"
    fail "the build of cargo-fuzz $version failed"
  fi
  rm -rf "$work"
}

# The release's own profile is made for size and takes minutes to link.
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=2 CARGO_PROFILE_RELEASE_STRIP=none
export CARGO_PROFILE_RELEASE_DEBUG=line-tables-only
built=(--sanitizer none -O -a --codegen-units 16 --target-dir "$root/fuzz/target")

cargo_fuzz() { ( cd "$root" && "$deps/cargo/bin/cargo-fuzz" "$@" ); }

# fuzz_one TARGET SECONDS
fuzz_one() {
  local target=$1 log=$root/fuzz/target/$1.log corpus=$root/fuzz/corpus/$1 found=$root/fuzz/artifacts/$1
  mkdir -p "$corpus" "$found"
  local code=0
  TMPDIR=$scratch cargo_fuzz run "${built[@]}" "$target" "$corpus" "$root/fuzz/seeds/$target" -- \
    -max_total_time="$2" -max_len="$longest" -timeout="$slow" -rss_limit_mb="$much" -print_final_stats=1 \
    >"$log" 2>&1 || code=$?
  local runs covered
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -n 1)
  covered=$(grep -o 'cov: [0-9]* ft: [0-9]*' "$log" | tail -n 1)
  printf '%-12s %12s runs   %-26s %5s inputs kept\n' "$target" "${runs:-?}" "${covered:-nothing covered}" \
    "$(find "$corpus" -type f | wc -l)"
  [ "$code" != 0 ] || return 0
  echo "$target: a finding (exit code $code); the input is below, the whole log is $log" >&2
  grep -E -B 2 -A 12 'panicked at|ERROR: libFuzzer|Test unit written' "$log" | tail -n 40 >&2
  return 1
}

[ $# -ge 1 ] || fail "usage: fuzz.sh TIME [TARGET…]"
time=$(seconds "$1")
shift
install_it
"$here/deps.sh" machine g++
[ $# -gt 0 ] || mapfile -t targets < <(cargo_fuzz list)
[ $# -eq 0 ] || targets=("$@")
# Files that inputs become, in memory where that is to be had, and gone whatever ends this.
scratch=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")")
trap 'rm -rf "$scratch"' EXIT
echo "fuzz: building ${#targets[@]} of the targets"
for target in "${targets[@]}"; do cargo_fuzz build "${built[@]}" "$target"; done
findings=0
for target in "${targets[@]}"; do fuzz_one "$target" "$time" || findings=$((findings + 1)); done
echo "fuzz: $findings of ${#targets[@]} targets with a finding"
[ "$findings" = 0 ]
