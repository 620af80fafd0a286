# Mooring's tasks. Everything they need beside Rust is fetched by themselves, as root, on Debian 12 (see tools/deps.sh).
#
#   make build     the shim (static) and the operator's tool, optimised, into target/dist
#   make install   them and example configuration below DESTDIR and PREFIX
#   make lint      formatting, clippy, dependencies' licences and advisories, shell syntax
#   make test      unit tests, end-to-end tests against a private containerd, the cgroup v2 machine
#   make demo      one pod's life, from RunPodSandbox to nothing left behind
#   make test-vm   the end-to-end tests on emulated machines, e.g. VM="runc crun" FILTER=cri_io,::a_shim_killed; FILTER=all
#   make bench     Mooring beside containerd's own sandboxes, side by side in one run
#   make lab       a private containerd to play with (lab-stop ends it)

include tools/deps.mk

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo
HOST := $(shell rustc -vV | sed -n 's/^host: //p')
DIST := $(CURDIR)/target/dist
BUILT := target/$(HOST)/release
DEBUG := $(CURDIR)/target/debug
SHIM := containerd-shim-mooring-v1

.DEFAULT_GOAL := build
.PHONY: build install lint test test-unit test-e2e test-vm test-build demo bench clean machine

# What a build needs of the machine: a linker and protoc.
machine:
	@tools/deps.sh machine

# Static and at a fixed address: a shim must not depend on the node's libc, and each page that needs no relocation is
# one that all pods share. The flags go to the target alone, so that procedural macros remain loadable.
build: machine
	RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static' \
	  $(CARGO) build --release --locked --target $(HOST) -p $(SHIM) -p mooring-cli
	@mkdir -p $(DIST)
	@for one in $(SHIM) mooring; do cp $(BUILT)/$$one $(DIST)/$$one.new && mv -f $(DIST)/$$one.new $(DIST)/$$one; done
	@tools/static.sh $(DIST)/$(SHIM) $(DIST)/mooring

install:
	@test -x $(DIST)/$(SHIM) || { echo 'nothing is built: run "make build" first' >&2; exit 1; }
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/mooring
	install -m 0755 $(DIST)/$(SHIM) $(DIST)/mooring $(DESTDIR)$(PREFIX)/bin/
	install -m 0644 examples/config.toml examples/containerd.toml examples/runtimeclass.yaml $(DESTDIR)$(PREFIX)/share/mooring/

lint: machine
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features --locked -- -D warnings
	$(CARGO) clippy --locked -p mooring -p $(SHIM) -p mooring-cli -- -D warnings
	tools/cargo-deny.sh
	for one in .ci/run tools/*.sh; do bash -n $$one || exit 1; done

test: test-unit test-e2e test-vm

# Always the same selection, for another one would have cargo build the dependencies anew with other features.
test-build: machine
	$(CARGO) build --workspace --all-targets --all-features --locked

test-unit: deps test-build
	$(CARGO) test --workspace --all-features --locked --lib --bins

test-e2e: deps test-build
	MOORING_SHIM=$(DEBUG)/$(SHIM) $(CARGO) test --workspace --all-features --locked --test '*'

# With the release wherever a test needs no failpoints, so that what is shipped has run. VM names machines, FILTER parts
# of tests' names; without one a choice of the suite is run, with FILTER=all the whole.
test-vm: deps build test-build
	tools/deps-vm.sh
	MOORING_SHIM=$(DEBUG)/$(SHIM) $(DEBUG)/vm --release $(DIST) \
	  $(if $(FILTER),$(if $(filter all,$(FILTER)),,--only '$(FILTER)'),--core) $(VM)

demo: deps build
	MOORING_SHIM=$(DIST)/$(SHIM) tools/demo.sh

bench: deps build
	MOORING_SHIM=$(DIST)/$(SHIM) $(CARGO) run --release --locked -p mooring-e2e --bin bench -- $(BENCH)

clean:
	$(CARGO) clean
