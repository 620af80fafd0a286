# Included by the root Makefile: the private container parts, and a private containerd to play with.
# Recipes run from the repository's root.

MOORING_DEPS ?= $(CURDIR)/.deps
export MOORING_DEPS

# Where "make lab" builds its containerd. Short, because sockets lie in it.
LAB ?= /tmp/mooring-lab

.PHONY: deps deps-versions lab lab-stop lab-smoke

# Root on a fresh machine; afterwards anybody, at once and without network.
deps:
	@tools/deps.sh

deps-versions: deps
	@tools/deps.sh versions

lab: deps
	@tools/containerd.sh start $(LAB)
	@tools/containerd.sh env $(LAB)

lab-stop:
	@tools/containerd.sh stop $(LAB)

# One pod with one container through CRI with containerd's own shim: is this machine fit for the tests at all?
lab-smoke: deps
	@tools/containerd.sh start $(LAB)
	@tools/containerd.sh smoke $(LAB) runc; code=$$?; tools/containerd.sh stop $(LAB) && exit $$code
