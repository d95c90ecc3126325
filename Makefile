# `make demo` shows what callgate does; `make test` passes all checks and tests. Both install what they need.

CARGO ?= cargo
# Where .cargo/config.toml makes cargo put what it builds.
CALLGATE = target/x86_64-unknown-linux-gnu/release/callgate

# What has a table of cases.
SAMPLES = $(patsubst plugins/%/cases.json,%,$(wildcard plugins/*/cases.json))

.PHONY: build ctl plugins demo test bench lint deny aarch64 schema

build:
	@.ci/setup build
	$(CARGO) build --release --locked

# For laptops and CI: writes, tests and ships plugins. It has an HTTP client and more in it, which `callgate` must not have.
ctl:
	@.ci/setup build
	$(CARGO) build --release --locked --package callgate --features ctl --bin callgatectl

# The sample plugins as components, in target/plugins.
plugins: ctl
	@mkdir -p target/plugins
	@for sample in $(SAMPLES); do \
		$(CALLGATE)ctl plugin build plugins/$$sample --output target/plugins/$$sample.wasm || exit 1; \
	done

demo:
	@.ci/setup demo
	$(CARGO) build --release --locked
	@tests/demo $(CALLGATE)

test: lint aarch64
	$(CARGO) test --release --locked --workspace --all-features

# What it costs: a table, and bench.json. On an idle machine it takes some minutes, with QUICK=1 one. See BENCHMARKS.md.
bench: build plugins
	@.ci/setup bench
	tests/bench/run $(CALLGATE) --plugin target/plugins/drift.wasm $(if $(QUICK),--quick)

lint:
	@.ci/setup test
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets --all-features -- -D warnings

# Licences, sources and bans of dependencies; `cargo deny check advisories` needs the network. Installing takes minutes, so it
# is no part of `make test`.
deny:
	@cargo deny --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check bans licenses sources

# The code for aarch64 compiles; where its standard library cannot be had, that is not looked at.
aarch64:
	@if .ci/setup aarch64; then \
		$(CARGO) check --release --locked --package callgate --target aarch64-unknown-linux-gnu; \
	fi

# Writes the JSON Schemas in policies/ anew, from the types.
schema:
	CALLGATE_WRITE_SCHEMA=1 $(CARGO) test --release --locked --package callgate --all-features --test schema
