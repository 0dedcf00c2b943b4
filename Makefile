# The jobs of a developer and of CI. `make` alone lists them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo demo-cluster figures-cluster faults-cluster conformance images test chaos cluster-up cluster-down scale bench fuzz lint fmt reference manifests deny advisories install-tools

# The tools that scripts/setup installs, and the servers that Debian keeps in sbin.
export PATH := $(CURDIR)/target/venv/bin:$(PATH):/usr/sbin:/sbin

# CI builds what Cargo.lock says; a developer who adds a dependency gets it written there.
LOCKED := $(if $(CI),--locked)
# Seconds that `make fuzz` gives each target.
SECONDS_EACH ?= 20

help: ## List these jobs
	@if [ -t 1 ] && [ -z "$${NO_COLOR:-}" ]; then name=$$'\e[36m' bold=$$'\e[1m' off=$$'\e[0m'; else name= bold= off=; fi; \
	echo "$${bold}Weft$${off}: make JOB"; \
	awk -v n="$$name" -v o="$$off" -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %s%-15s%s %s\n", n, $$1, o, $$2}' Makefile

demo: ## An online store in a mesh under load: rolled out, scaled, parts killed, nothing lost (ARGS=...)
	@scripts/setup demo
	cargo build --release $(LOCKED) -p weft-proxy -p weft-controller
	cargo run --release $(LOCKED) -p weft-cli --bin weft -- demo $(ARGS)

demo-cluster: ## The online store in a real Kubernetes under load: rolled out, scaled, killed, nothing lost (root)
	@scripts/setup test
	tests/cluster/cluster run cargo run $(LOCKED) -p weft-tests --bin demo-cluster

figures-cluster: ## How long a change takes to 50 sidecars in a real Kubernetes, and their memory (root)
	@scripts/setup test
	tests/cluster/cluster run cargo run $(LOCKED) -p weft-tests --bin figures-cluster

conformance: ## Gateway API's conformance suite against Weft in a real Kubernetes; the report goes to docs/conformance/ (root)
	@scripts/setup test
	tests/cluster/cluster run cargo run $(LOCKED) -p weft-tests --bin conformance

faults-cluster: ## Controllers and the API server of a real Kubernetes killed under load: what is lost, how long it takes to heal (root; ARGS="leader all")
	@scripts/setup test
	tests/cluster/cluster run cargo run $(LOCKED) -p weft-tests --bin faults-cluster -- $(ARGS)

images: ## Container images of proxy and controller: target/images/*.tar (PREFIX=, TAG=, PROFILE=quick, BUILDER=docker|buildah)
	@scripts/setup images
	scripts/images

test: ## Install what the tests need, then run every test (ARGS=... for cargo test)
	@scripts/setup test
	cargo build --workspace $(LOCKED) --bins
	tests/cluster/cluster run cargo test --workspace $(LOCKED) $(ARGS)

cluster-up: ## A real Kubernetes on this machine, built from source at the first time (root; minutes, then seconds)
	@tests/cluster/cluster up
	@tests/cluster/cluster env

cluster-down: ## End it, and take away what it made
	@tests/cluster/cluster down

chaos: ## The fault matrix: every fault under load of every protocol; target/chaos.json (ARGS="rollout h1-get ...")
	@scripts/setup test
	cargo build $(LOCKED) -p weft-proxy -p weft-controller
	cargo run $(LOCKED) -p weft-tests --bin chaos -- $(ARGS)

scale: ## 1,000 simulated proxies, 2,000 services, 20,000 endpoints at a real controller and API server; target/scale.json (root; PROXIES=, SERVICES=, ENDPOINTS=, CHANGES=)
	@scripts/setup test
	cargo build --release $(LOCKED) -p weft-controller
	cargo build --release $(LOCKED) -p weft-tests --bin scale
	tests/cluster/cluster alone target/release/scale

bench: ## What a hop and an mTLS pair cost beside nginx, HAProxy, Envoy; the mesh's figures (CASES=a,b or mesh, SUBJECTS=a,b)
	@scripts/setup bench
	cargo build --release $(LOCKED) -p weft-proxy -p weft-controller
	$(if $(filter mesh,$(CASES)),,cargo run --release $(LOCKED) -p weft-benches --bin hop -- --install $(if $(CASES),--cases $(CASES)) $(if $(SUBJECTS),--subjects $(SUBJECTS)) $(ARGS))
	$(if $(filter-out mesh,$(CASES)),,cargo run --release $(LOCKED) -p weft-benches --bin hop -- mesh $(if $(SUBJECTS),--subjects $(SUBJECTS)))

fuzz: ## Run each fuzz target for SECONDS_EACH (20)
	@scripts/setup fuzz
	@# The sanitizers are unstable flags: a nightly has them, and so has the pinned compiler when asked.
	@if cargo +nightly --version >/dev/null 2>&1; then export RUSTUP_TOOLCHAIN=nightly; else export RUSTC_BOOTSTRAP=1; fi; \
	for target in $$(cargo fuzz list); do \
	    echo "== fuzz $$target, $(SECONDS_EACH) s"; \
	    cargo fuzz run $$target -- -max_total_time=$(SECONDS_EACH) -verbosity=0 -print_final_stats=1; \
	done

lint: ## rustfmt and clippy, warnings denied
	@scripts/setup lint
	cargo fmt --all --check
	cargo clippy --workspace --all-targets $(LOCKED) -- -D warnings

fmt: ## Format the code
	cargo fmt --all

reference: ## Write docs/reference.md and the chart's definitions anew from the types
	WEFT_WRITE_REFERENCE=1 cargo test $(LOCKED) -p weft-controller --test reference --test definitions

manifests: ## Write cli/manifests.yaml, what `weft install` applies, anew from the chart
	eval "$$(tests/cluster/cluster env)" && "$$WEFT_CLUSTER_BIN/helm" template weft charts/weft --namespace weft-system > cli/manifests.yaml

deny: ## Licences, duplicates, the one crypto provider and sources of our dependencies
	@scripts/setup lint
	cargo deny $(LOCKED) check licenses bans sources

advisories: ## Known vulnerabilities in our dependencies (fetches the RustSec database: needs the open network)
	@scripts/setup lint
	cargo deny $(LOCKED) check advisories

install-tools: ## Install what every other job needs, so that none of them waits for it later
	@for job in lint test demo bench fuzz; do scripts/setup $$job; done
