# Mooring's tasks. Everything they need beside Rust is fetched by themselves, as root, on Debian 12 (see tools/deps.sh).
#
#   make build     the shim (static) and the operator's tool, optimised, into target/dist
#   make install   them, manual pages, completions and example configuration below DESTDIR and PREFIX
#   make lint      formatting, clippy, dependencies' licences and advisories, shell syntax
#   make test      unit tests, end-to-end tests against a private containerd, the cgroup v2 machines
#   make demo      one pod's life, from RunPodSandbox to nothing left behind
#   make test-vm   the end-to-end tests on emulated machines, e.g. VM="runc crun" FILTER=cri_io,::a_shim_killed; FILTER=all
#   make test-upgrade  each release ends the pods that the other began; PREVIOUS is the other one's revision
#   make fuzz      TIME=10m of each fuzz target, or of TARGET="journal options" (docs/fuzzing.md)
#   make bench     Mooring beside containerd's own sandboxes, side by side in one run; BENCH="--only calls,idle" (docs/benchmarks.md)
#   make soak      random pods, execs and faults for TIME=30m: nothing may grow; SOAK="--seed 7" and other options of "lab soak"
#   make lab       a private containerd to play with (lab-stop ends it)
#   make fresh     demo and test in a bare Debian root made for it; FRESH="demo" for one of them; FRESH="deb" installs and
#                  removes the package in one
#   make deb       the Debian package, into target/pack
#   make image     an image that installs Mooring on a node, as an archive, into target/pack
#   make dist      both, an archive of the same files, bills of materials and SHA256SUMS
#
# MOORING_CONTAINERD=DIR has demo, test, bench and lab use the containerd, ctr and containerd-shim-runc-v2 in DIR.

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo
HOST := $(shell rustc -vV | sed -n 's/^host: //p')
DIST := $(CURDIR)/target/dist
BUILT := target/$(HOST)/release
DEBUG := $(CURDIR)/target/debug
SHIM := containerd-shim-mooring-v1

# The private container parts, and the folder of the containerd that "make lab" keeps up.
MOORING_DEPS ?= $(CURDIR)/.deps
export MOORING_DEPS
LAB ?= /tmp/mooring-lab
RUN_LAB := MOORING_SHIM=$(DIST)/$(SHIM) $(DEBUG)/lab --dir $(LAB)
FRESH ?= demo test

.DEFAULT_GOAL := build
PREVIOUS ?= $(shell git describe --tags --abbrev=0 2>/dev/null)

.PHONY: build deb image dist install lint test test-unit test-e2e test-vm test-upgrade test-build demo bench soak fuzz clean machine
.PHONY: deps deps-versions lab lab-stop lab-smoke fresh

# What a build needs of the machine: a linker and protoc.
machine:
	@tools/deps.sh machine

# Root on a fresh machine; afterwards anybody, at once and without network.
deps:
	@tools/deps.sh

deps-versions: deps
	@tools/deps.sh versions

# Static and at a fixed address: a shim must not depend on the node's libc, and each page that needs no relocation is
# one that all pods share. The flags go to the target alone, so that procedural macros remain loadable.
build: machine
	RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static' \
	  $(CARGO) build --release --locked --target $(HOST) -p $(SHIM) -p mooring-cli
	@mkdir -p $(DIST)
	@for one in $(SHIM) mooring; do cp $(BUILT)/$$one $(DIST)/$$one.new && mv -f $(DIST)/$$one.new $(DIST)/$$one; done
	@tools/static.sh $(DIST)/$(SHIM) $(DIST)/mooring

SHARE = $(DESTDIR)$(PREFIX)/share
install:
	@test -x $(DIST)/$(SHIM) || { echo 'nothing is built: run "make build" first' >&2; exit 1; }
	install -d $(DESTDIR)$(PREFIX)/bin $(SHARE)/mooring $(SHARE)/bash-completion/completions \
	  $(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d
	install -m 0755 $(DIST)/$(SHIM) $(DIST)/mooring $(DESTDIR)$(PREFIX)/bin/
	install -m 0644 examples/config.toml examples/containerd.toml examples/runtimeclass.yaml $(SHARE)/mooring/
	$(DIST)/mooring man $(SHARE)/man/man1
	$(DIST)/mooring completion bash >$(SHARE)/bash-completion/completions/mooring
	$(DIST)/mooring completion zsh >$(SHARE)/zsh/site-functions/_mooring
	$(DIST)/mooring completion fish >$(SHARE)/fish/vendor_completions.d/mooring.fish

# What a node is given (pack/). The same bytes each time: of one time, SOURCE_DATE_EPOCH or that of the last commit.
deb: build
	@$(CARGO) run --quiet --locked -p mooring-pack -- deb

image: build
	@$(CARGO) run --quiet --locked -p mooring-pack -- image

dist: deb image
	@$(CARGO) run --quiet --locked -p mooring-pack -- dist --deps $(MOORING_DEPS)

lint: machine
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features --locked -- -D warnings
	$(CARGO) clippy --locked -p mooring -p $(SHIM) -p mooring-cli -- -D warnings
	tools/cargo-deny.sh
	for one in .ci/run tools/*.sh pack/files/*rm; do bash -n $$one || exit 1; done

test: test-unit test-e2e test-vm

# Always the same selection, for another one would have cargo build the dependencies anew with other features.
test-build: machine
	$(CARGO) build --workspace --all-targets --all-features --locked

test-unit: deps test-build
	$(CARGO) test --workspace --all-features --locked --lib --bins

# Some wait most of their time, for what hangs: they run beside the others, and are told at the end.
WAITING := faults_stuck soak teardown_delete teardown_hung
PROGRAMS := $(notdir $(basename $(wildcard */tests/*.rs)))
RUN_E2E = MOORING_SHIM=$(DEBUG)/$(SHIM) $(CARGO) test --workspace --all-features --locked --no-fail-fast
test-e2e: deps test-build image
	@$(RUN_E2E) $(WAITING:%=--test %) >$(DEBUG)/waiting.log 2>&1 & waiting=$$!; \
	$(RUN_E2E) $(patsubst %,--test %,$(filter-out $(WAITING),$(PROGRAMS))); others=$$?; \
	wait $$waiting; code=$$?; cat $(DEBUG)/waiting.log; [ $$others = 0 ] && [ $$code = 0 ]

# With the release wherever a test needs no failpoints, so that what is shipped has run. VM names machines, FILTER parts
# of tests' names; without one a choice of the suite is run, with FILTER=all the whole.
test-vm: deps build test-build
	tools/deps-vm.sh
	MOORING_SHIM=$(DEBUG)/$(SHIM) $(DEBUG)/vm --release $(DIST) \
	  $(if $(FILTER),$(if $(filter all,$(FILTER)),,--only '$(FILTER)'),--core) $(VM)

# This release's shim and that of another revision, each with the pods of the other. The tests are of today.
test-upgrade: deps test-build
	rm -rf target/previous && mkdir -p target/previous && git archive $(PREVIOUS) | tar -x -C target/previous
	cd target/previous && CARGO_TARGET_DIR=../previous-build $(CARGO) build --locked -p $(SHIM)
	MOORING_PREVIOUS=$(CURDIR)/target/previous-build/debug/$(SHIM) MOORING_SHIM=$(DEBUG)/$(SHIM) \
	  $(CARGO) test --workspace --all-features --locked --test upgrade

# What Mooring reads of others, under arbitrary input; exits non-zero on a finding.
fuzz: machine
	tools/fuzz.sh $(or $(TIME),1m) $(TARGET)

demo: deps build test-build
	@$(RUN_LAB) demo $(DEMO)

# Release against release: the client's own time is part of every figure.
bench: deps build
	MOORING_SHIM=$(DIST)/$(SHIM) $(CARGO) run --release --locked -p mooring-e2e --bin lab -- bench $(BENCH)

# The release, for its memory is judged; what it finds lies in target/soak.
TIME ?= 30m
soak: deps build
	@mkdir -p target/soak
	MOORING_SHIM=$(DIST)/$(SHIM) $(CARGO) run --release --locked -p mooring-e2e --bin lab -- soak --time $(TIME) \
	  --json target/soak/soak.json --markdown target/soak/soak.md --chart target/soak/soak.svg --log target/soak/soak.log $(SOAK)

lab: deps build test-build
	@$(RUN_LAB) up

lab-stop:
	@$(RUN_LAB) down

# One pod through CRI with containerd's own shim: is this machine fit for the tests at all?
lab-smoke: deps build test-build
	@$(RUN_LAB) smoke $(SMOKE)

# What README promises of a bare machine, tried on one: in namespaces of its own, and gone afterwards.
fresh: test-build $(filter deb,$(FRESH))
	@tools/deps.sh machine debootstrap git
	@$(DEBUG)/lab fresh $(FRESH)

clean:
	$(CARGO) clean
