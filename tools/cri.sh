#!/usr/bin/env bash
# A CRI client of one screen, since Debian has no crictl: one call, request and answer in protobuf's text form.
#
# usage: cri.sh SOCKET METHOD [REQUEST]     e.g. cri.sh /tmp/c/c.sock ListPodSandbox
#                                           cri.sh /tmp/c/c.sock StopPodSandbox 'pod_sandbox_id: "4f…"'
# METHOD is looked for in the image service when it speaks of images, else in the runtime service. Store/… and
# Controller/… are containerd's sandbox services, in its namespace "default".
# The messages known are those of cri.proto and sandbox.proto. Needs curl (HTTP/2) and protoc.
# environment: CRI_TIMEOUT  seconds until the call is given up, default 60
#              CRI_TIME     a file that gets the call's duration in seconds
set -euo pipefail

[ $# -ge 2 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
socket=$1 method=$2 request=${3:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

package=runtime.v1 service=RuntimeService messages=$method proto=cri.proto
case $method in
  Store/* | Controller/*)
    package=containerd.services.sandbox.v1 service=${method%/*} method=${method#*/} proto=sandbox.proto
    messages=$service$method ;;
  *Image*) service=ImageService ;;
esac

codec() { protoc --proto_path="$here" "$@" "$proto"; }

# A gRPC message is one byte of flags, four bytes of length, then the protobuf.
codec --encode="$package.${messages}Request" <<<"$request" >"$work/body"
{
  printf '%08x' "$(stat -c %s "$work/body")" | sed 's/../\\x&/g; s/^/\\x00/' | { IFS= read -r bytes || true; printf '%b' "$bytes"; }
  cat "$work/body"
} >"$work/frame"

curl -sS --http2-prior-knowledge --max-time "${CRI_TIMEOUT:-60}" --unix-socket "$socket" \
  -H 'content-type: application/grpc' -H 'te: trailers' -H 'containerd-namespace: default' \
  --data-binary @"$work/frame" \
  -D "$work/head" -o "$work/answer" -w '%{time_total}' "http://localhost/$package.$service/$method" >"${CRI_TIME:-/dev/null}"

# The outcome comes in the trailers, which curl writes after the headers.
trailer() { tr -d '\r' <"$work/head" | sed -n "s/^$1: //Ip" | tail -n 1; }
status=$(trailer grpc-status)
if [ "$status" != 0 ]; then
  echo "cri.sh: $method: code ${status:-missing}: $(trailer grpc-message)" >&2
  exit 1
fi
[ ! -s "$work/answer" ] || tail -c +6 "$work/answer" | codec --decode="$package.${messages}Response"
