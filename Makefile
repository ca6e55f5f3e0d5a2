# Thin recipes over cargo, maturin, pip and pytest. Needs Python >= 3.11, a Rust toolchain and a C compiler; everything
# else goes into .venv. Nothing is built or installed twice: stamps and file times decide.

SHELL := /bin/bash
.DEFAULT_GOAL := build
.DELETE_ON_ERROR:

# The first interpreter that is new enough.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
# maturin finds the environment by this variable; RUSTFLAGS of the caller would rebuild everything.
export VIRTUAL_ENV := $(abspath $(VENV))
export PIP_DISABLE_PIP_VERSION_CHECK := 1
PIP := $(BIN)/python -m pip install --quiet
MATURIN := $(BIN)/maturin

RUST_SOURCES := Cargo.toml Cargo.lock $(shell find rust -name '*.rs' -o -name Cargo.toml)
PYTHON_SOURCES := $(shell find python -type f -not -name '*.so' -not -name '*.pyc')
NATIVE := python/tollkeeper/_native.abi3.so
STUB := python/tollkeeper/_native.pyi

# Passed to pytest; with it only the Python tests run: make test ARGS="tests/policy -k uid"
ARGS ?=

HOSTS := .venv-hosts/.created .venv-hosts-oldest/.created

.PHONY: run test test-rust test-python test-hosts test-conformance test-verifiers hosts build wheel lint fmt fmt-check types stubs stubs-check docs bench bench-audit bench-budget bench-gate bench-hosts bench-mcp instr fuzz loom clean soak

build: $(NATIVE)

# The main job on real input: the tool calls of a public benchmark, decided, and some of its attacks played from end to
# end. Status 3 says that it cannot be fetched; then the example that `tollkeeper init` writes is decided instead. After
# that the requests of a public trace, through budgets: TOLLKEEPER_AZURE_TRACES names its folder, and requests are made
# up where it is absent.
run: build
	@$(BIN)/python examples/agentdojo/run.py || { status=$$?; [ $$status -eq 3 ] || exit $$status; \
	folder=$$(mktemp -d) && $(BIN)/tollkeeper init $$folder && cd $$folder && $(abspath $(BIN))/tollkeeper decide actions.jsonl; }
	@echo
	@$(BIN)/python examples/budget_replay/run.py

# --- environment ------------------------------------------------------------------------------------------------

$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 found; set PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.test: $(VENV)/.created requirements/test.txt
	$(PIP) -r requirements/test.txt
	@touch $@

$(VENV)/.lint: $(VENV)/.test requirements/lint.txt
	$(PIP) -r requirements/lint.txt
	@touch $@

# --- build ------------------------------------------------------------------------------------------------------

# Release, because the tests have to run what is shipped and nobody should measure a debug build by mistake.
$(NATIVE): $(RUST_SOURCES) pyproject.toml $(VENV)/.test
	$(MATURIN) develop --release --quiet
	@touch $@

# One wheel for every CPython >= 3.11. ZIG=1 links against an older C library: see CONTRIBUTING.md.
WHEEL_FLAGS := $(if $(ZIG),--zig --target $(shell rustc -vV | sed -n 's|host: ||p') --compatibility manylinux_2_28)
wheel: dist/.built
dist/.built: $(RUST_SOURCES) $(PYTHON_SOURCES) pyproject.toml README.md LICENSE $(NATIVE)
	rm -rf dist && mkdir dist
	PATH="$(abspath $(BIN)):$$PATH" $(MATURIN) build --release --quiet --auditwheel check --out dist $(WHEEL_FLAGS)
	@ls -l dist/*.whl
	@touch $@

# --- test -------------------------------------------------------------------------------------------------------

ifeq ($(strip $(ARGS)),)
test: test-rust test-python test-hosts
else
test: test-python
endif

test-rust:
	cargo test --locked --quiet --package tollkeeper-core

# What runs a host or the MCP SDK as a process of its own finds them by the variable. The contract suite is left out: here
# it could only be skipped.
test-python: build wheel .venv-hosts/.created
	TOLLKEEPER_HOSTS_PYTHON=$(abspath .venv-hosts/bin/python) \
	$(BIN)/python -m pytest $(or $(ARGS),--ignore=tests/adapters/contract)

# The adapters inside the frameworks themselves: the newest of each, then the oldest that is supported. A host that the
# variable names and that cannot be imported is a failure.
ALL_HOSTS := PYTHONPATH=python TOLLKEEPER_HOSTS=maf,langchain,openai_agents
test-hosts: build hosts
	$(ALL_HOSTS) .venv-hosts/bin/python -m pytest tests/adapters $(ARGS)
	$(ALL_HOSTS) .venv-hosts-oldest/bin/python -m pytest tests/adapters $(ARGS)

# Writes what the contract suite finds into the package, for `tollkeeper hosts`: read the difference.
guarantees: build hosts
	TOLLKEEPER_KEEP_GUARANTEES=1 $(ALL_HOSTS) .venv-hosts/bin/python -m pytest tests/adapters/contract

hosts: $(HOSTS)
$(HOSTS): .venv-%/.created: requirements/%.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --no-compile --no-deps -r $<
	@touch $@

# The public conformance suite of MCP, directly against our fixture server and through `tollkeeper mcp`: the same checks
# have to pass. Needs npm; the suite needs a newer Node than many machines have, so that comes from npm too.
NPM_NODE := node-linux-$(if $(filter aarch64,$(shell uname -m)),arm64,x64)
test-conformance: build .venv-hosts/.created .venv-conformance/.created
	$(BIN)/python tests/mcp/conformance.py --npm .venv-conformance --python .venv-hosts/bin/python $(ARGS)

.venv-conformance/.created: requirements/conformance.txt
	@command -v npm >/dev/null || { echo "test-conformance needs npm, which is not installed" >&2; exit 1; }
	mkdir -p .venv-conformance
	npm install --prefix .venv-conformance --no-save --no-audit --no-fund --loglevel=error \
	$$(sed '/^#/d' $< | sed "s|^node@|$(NPM_NODE)@|")
	@touch $@

# Every verifier of audit logs that we did not write: sigstore as well, in an environment of its own.
test-verifiers: build .venv-verifiers/.created
	PYTHONPATH=python .venv-verifiers/bin/python -m pytest tests/audit/test_independent.py $(ARGS)

.venv-verifiers/.created: requirements/test.txt requirements/verifiers.txt
	$(PYTHON) -m venv .venv-verifiers
	.venv-verifiers/bin/python -m pip install --quiet -r requirements/test.txt -r requirements/verifiers.txt
	@touch $@

# The races of the budget room, of the log's ring and of what gates share, in every order of their steps with at most three preemptions: some minutes to build, in
# a target folder of its own because everything is built with another flag, and seconds to run.
loom:
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom LOOM_MAX_PREEMPTIONS=3 LOOM_MAX_BRANCHES=100000 \
	cargo test --locked --quiet --package tollkeeper-core --lib loom_models

# Everything a gate does at once, from two processes, for ten minutes or as long as one likes; exit status 1 if memory grows,
# anything is refused that should not be, or the logs and the ledger do not hold what was done. Keeps some GB of disk busy.
SOAK_SECONDS ?= 600
soak: build
	$(BIN)/python tests/gate/soak.py --seconds $(SOAK_SECONDS)

# --- checks -----------------------------------------------------------------------------------------------------

fmt: $(VENV)/.lint
	cargo fmt
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only --quiet .

fmt-check: $(VENV)/.lint
	cargo fmt --check
	$(BIN)/ruff format --check .

lint: $(VENV)/.lint
	cargo clippy --locked --quiet --workspace --all-targets -- -D warnings
	$(BIN)/ruff check .
	@if command -v cargo-deny >/dev/null; then cargo deny --log-level error check bans licenses sources; \
	else echo "cargo-deny is not installed; tests/test_tidy.py checks licences and sources against deny.toml"; fi

types: build $(VENV)/.lint
	$(BIN)/mypy
	$(BIN)/basedpyright
	$(BIN)/python -m mypy.stubtest tollkeeper._native --concise

# The signatures are read back out of a build of their own; the shipped one carries none.
FRESH := target/stubs/tollkeeper/_native.pyi
define write-stub
	$(MATURIN) generate-stubs --quiet --locked --features inspect --out target/stubs
	sed -i '0,/^from /s//import collections.abc\nimport os\nimport typing\nfrom /' $(FRESH)
	$(BIN)/ruff check --quiet --isolated --fix-only --unsafe-fixes --select F401,I,PYI020,PYI034 $(FRESH)
	$(BIN)/ruff format --quiet $(FRESH)
endef

stubs: $(VENV)/.lint
	$(write-stub)
	cp $(FRESH) $(STUB)

stubs-check: $(VENV)/.lint
	$(write-stub)
	diff -u $(STUB) $(FRESH)

# The reference, out of docstrings and parsers. A test fails while a page is out of date.
docs: build
	$(BIN)/python docs/reference.py

$(VENV)/.bench: $(VENV)/.test requirements/bench.txt
	$(PIP) -r requirements/bench.txt
	@touch $@

# Ratios within one run, against cedarpy from Python and against the reference crate from Rust.
bench: build $(VENV)/.bench
	$(BIN)/python benches/python/compare.py $(ARGS)
	cargo bench --locked --quiet --package tollkeeper-core
	@$(MAKE) --no-print-directory bench-budget ARGS=

# The budget room against its peers. LiteLLM takes 340 MB and an environment of its own; where it cannot be installed,
# or redis-server is missing, the bench says so and goes on without that peer.
bench-budget: build $(VENV)/.bench
	-@$(MAKE) --no-print-directory .venv-litellm/.created
	$(BIN)/python benches/python/budget.py $(ARGS)

# The audit log against its peers, from Python and in Rust. AGT has an environment of its own; where it cannot be
# installed, the bench says so and goes on. `ARGS` are parts of the Rust bench: `make bench-audit ARGS=memory`.
bench-audit: build $(VENV)/.bench
	-@$(MAKE) --no-print-directory .venv-agt/.created
	$(BIN)/python benches/python/audit.py
	cargo bench --locked --quiet --package tollkeeper-core --bench audit -- $(ARGS)

# A full check against AGT's `govern()` and against what one would put together oneself; threads, processes, sizes of
# arguments, event loops. What is missing is left out with the reason.
bench-gate: build $(VENV)/.bench
	-@$(MAKE) --no-print-directory .venv-agt/.created
	$(BIN)/python benches/python/gate.py $(ARGS)

# What the proxy for MCP adds beside one that only passes bytes on, in the same run, over pipes and over HTTP.
bench-mcp: build .venv-hosts/.created
	TOLLKEEPER_HOSTS_PYTHON=$(abspath .venv-hosts/bin/python) $(BIN)/python benches/python/mcp_stdio.py $(ARGS)
	TOLLKEEPER_HOSTS_PYTHON=$(abspath .venv-hosts/bin/python) $(BIN)/python benches/python/mcp_http.py $(ARGS)

# Turns of agents in their own frameworks, without a gate and with one, beside the reference emitter of agent-hooks and
# Tenuo's decorator.
bench-hosts: build .venv-hosts/.bench
	PYTHONPATH=python .venv-hosts/bin/python benches/python/hosts.py $(ARGS)

.venv-hosts/.bench: .venv-hosts/.created requirements/bench-hosts.txt
	.venv-hosts/bin/python -m pip install --quiet --no-compile --no-deps -r requirements/bench-hosts.txt
	@touch $@

.venv-agt/.created: requirements/bench-agt.txt
	$(PYTHON) -m venv .venv-agt
	.venv-agt/bin/python -m pip install --quiet -r requirements/bench-agt.txt
	@touch $@

.venv-litellm/.created: requirements/bench-litellm.txt
	$(PYTHON) -m venv .venv-litellm
	.venv-litellm/bin/python -m pip install --quiet -r requirements/bench-litellm.txt
	@touch $@

# Instructions per call, counted across the boundary: the same on every run. Needs valgrind; status 1 is 2 % more than
# kept, and `make instr ARGS=--keep` keeps what is counted now.
instr: build
	$(BIN)/python benches/instr/count.py $(ARGS)

# make fuzz TARGET=name FUZZ_SECONDS=600; without TARGET each in turn. On stable: sanitizers would need nightly.
FUZZ_SECONDS ?= 60
TARGET ?= policy_text entities_json compiled_vs_reference ledger_ops ledger_file audit_verify audit_recovery audit_entry control_file \
	run_forbids
CARGO_FUZZ := $(or $(shell command -v cargo-fuzz),$(abspath target/tools/bin/cargo-fuzz))
$(abspath target/tools/bin/cargo-fuzz):
	cargo install --locked --quiet --root target/tools cargo-fuzz

fuzz: $(CARGO_FUZZ)
	python3 fuzz/seeds.py $(wildcard ../shared/data/cedar)
	cd fuzz && for target in $(TARGET); do mkdir -p corpus/$$target seeds/$$target && \
	$(CARGO_FUZZ) fuzz run --sanitizer none $$target corpus/$$target seeds/$$target -- -max_total_time=$(FUZZ_SECONDS) -max_len=16384 -len_control=0 || exit 1; done

clean:
	rm -rf $(VENV) .venv-agt .venv-conformance .venv-hosts .venv-hosts-oldest .venv-litellm .venv-verifiers dist $(NATIVE) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	cargo clean
