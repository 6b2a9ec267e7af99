# The doors of the house. Everything behind them is `cargo`, `cargo xtask` and the program itself.

CARGO ?= cargo
# Arguments for the program: make e2e ARGS="--instance-image cirros-0.6.3"
ARGS ?=
STACKPROOF = $(CARGO) run --quiet --release --bin stackproof --
# The same program, built with the tests: for what is done before them.
STACKPROOF_DEV = $(CARGO) run --quiet --bin stackproof --

.DEFAULT_GOAL := help
.PHONY: help setup setup-run fmt lint unit vmtest test compiled e2e bench

help: ## show this
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install the host tools that are missing (with apt, when root)
	$(STACKPROOF_DEV) host setup

# QEMU alone: `images build` asks for the tools to build an image where one must be built.
setup-run:
	$(STACKPROOF_DEV) host setup --run-only

fmt: ## check the format and the lints
	$(CARGO) fmt --all --check
	$(CARGO) clippy --all-targets --workspace -- -D warnings

lint: ## lint the workflows and the scripts of ci/, and test them
	ci/lint-workflows
	ci/test-scripts

unit: ## the tests that need no guest
	$(CARGO) xtask unit

vmtest: setup-run ## the tests against real guests (builds the images they need)
	$(STACKPROOF_DEV) images build probe-guest
	$(CARGO) xtask vmtest

# Compiled together, the library and its tests take both of two cores.
test: compiled setup-run unit vmtest ## set up, then every test
compiled:
	$(CARGO) test --workspace --no-run

e2e: ## set up, boot a cloud in VMs and prove from outside that it works
	@mkdir -p target
	$(STACKPROOF) e2e --json target/e2e.json $(ARGS)

bench: ## measure: a table, and target/bench/results.json
	$(STACKPROOF) bench $(ARGS)
