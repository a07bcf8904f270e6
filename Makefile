# The only things needed: Python 3.11 or later, gcc, make. All else goes into .venv.
#
# Three stamps make the second time quick, and let it work offline: the environment is made once,
# packages are installed when pyproject.toml changes, extensions compiled when their sources do.
# A step that was interrupted has left no stamp, and is done again.

PYTHON ?= python3
ARGS   ?=
# Tests at once: more than two cores can run, since many of them wait.
JOBS   ?= 3
FUZZ_SECONDS ?= 3600

BIN := .venv/bin
EXT := setup.py $(wildcard ext/*.pyx ext/*.h fastecho/_native/*.pxd)
ALL := $(EXT) pytest_fastecho.py $(shell find fastecho -name '*.py')
PAST := $(wildcard .benchmarks/*/*.json)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:  # tests and benchmarks measure time
.PHONY: help run test sanitize fuzz bench ledger versus check format lint types layers coverage \
	smoke build dist clean

help:  ## List what can be made
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

run: build  ## Start the daemon on 127.0.0.1:12345, TCP and UDP; ARGS="-v :7777"
	@exec $(BIN)/fastecho $(ARGS)

test: build  ## Run the whole test suite, both backends (5 minutes); ARGS="-k name"
	@rm -f .coverage .coverage.*
	$(BIN)/coverage run -m pytest --numprocesses=$(JOBS) $(ARGS); status=$$?; \
		$(BIN)/coverage combine --quiet; exit $$status

# What measures memory would measure the sanitizers', and hiredis reads past a buffer of its own.
# Captured, a report would end with its process.
sanitize: build/sanitize/.built  ## Run it under ASan, UBSan and Cython's checks (10 minutes); ARGS
	tests/sanitize/run $(BIN)/pytest --numprocesses=$(JOBS) --capture=sys --timeout=300 \
		--deselect tests/test_memory.py --deselect \
		tests/interop/test_hiredis.py::test_a_verbatim_string_does_not_depend_on_cuts --deselect \
		tests/test_volume.py::test_a_pipe_comes_back_complete_at_constant_memory $(ARGS)

fuzz: build/fuzz/.built  ## Fuzz the compiled code under them (needs clang); FUZZ_SECONDS=3600
	for target in lines streams datagrams; do \
		mkdir -p build/fuzz/corpus/$$target && \
		tests/fuzz/run $$target -max_total_time=$$(($(FUZZ_SECONDS) / 3)) -max_len=1024 \
			build/fuzz/corpus/$$target tests/fuzz/corpus/$$target || exit 1; \
	done

bench: build  ## Run the benchmarks and compare with the last run; ARGS="-k name"
	$(BIN)/pytest bench --timeout=0 -W "default:Benchmark machine_info" --benchmark-autosave \
		--benchmark-columns=median,iqr,rounds $(if $(PAST),--benchmark-compare) $(ARGS)

ledger: build  ## Count instructions, system calls and allocations per message, and keep them
	$(BIN)/python bench/ledger.py --write $(ARGS)

versus: build  ## Compare with servers in other languages (20 minutes); ARGS="--only tcp-1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check matplotlib \
		--requirement bench/versus/requirements.txt
	$(BIN)/python bench/versus/run.py $(ARGS)
	$(BIN)/python bench/versus/report.py

check: lint types layers test coverage smoke  ## Do all that CI does

format: .venv/.installed  ## Format the sources
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

lint: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	PATH=$(BIN):$$PATH cython-lint ext fastecho/_native

types: .venv/.installed
	$(BIN)/mypy

layers: .venv/.installed
	$(BIN)/lint-imports --no-logo

coverage:  # of the last `make test`
	$(BIN)/coverage report

smoke: build  # each benchmark once
	$(BIN)/pytest bench --benchmark-disable

build: .venv/.built  ## Set up .venv and compile the extension modules in place

dist: .venv/.installed  ## Build the sdist and, from it, the wheel
	FASTECHO_BUILD_EXT=yes $(BIN)/python -m build --no-isolation

clean:  ## Remove everything that was made
	rm -rf .venv .benchmarks .coverage .coverage.* .hypothesis .mypy_cache .import_linter_cache \
		.pytest_cache .ruff_cache build dist *.egg-info fastecho/_native/*.so
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/.made:
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'  # --group
	@touch $@

# The installation itself compiles nothing: the next rule does, and only what changed.
.venv/.installed: pyproject.toml .venv/.made
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev
	FASTECHO_BUILD_EXT=no $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-build-isolation --editable .
	@touch $@

.venv/.built: $(EXT) .venv/.installed
	FASTECHO_BUILD_EXT=yes $(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

# Beside the build in place, not instead of it; and no module is there that is none any more.
build/sanitize/.built build/fuzz/.built: $(ALL) .venv/.installed
	@mkdir -p $(@D)/lib && find $(@D)/lib -name '*.py' -delete
	FASTECHO_BUILD_EXT=checked $(BIN)/python setup.py --quiet build \
		--build-base $(@D) --build-lib $(@D)/lib
	@touch $@

# gcc has no coverage that libFuzzer knows.
build/fuzz/.built: export CC = clang
build/fuzz/.built: export LDSHARED = clang -shared
build/fuzz/.built: export CFLAGS = -fsanitize=fuzzer-no-link
build/fuzz/.built: build/fuzz/lines build/fuzz/libfuzzer.so

build/fuzz/lines: tests/fuzz/lines.c $(wildcard ext/*.h)
	@mkdir -p $(@D)
	clang -O1 -g -Wall -Wextra -fsanitize=address,undefined,fuzzer \
		-fno-sanitize-recover=undefined -Iext $< -o $@

build/fuzz/libfuzzer.so:
	@mkdir -p $(@D)
	clang -shared -o $@ -Wl,--whole-archive \
		"$$(clang -print-file-name=libclang_rt.fuzzer_no_main-$$(uname -m).a)" \
		-Wl,--no-whole-archive -lstdc++ -lm
