# SPDX-License-Identifier: Apache-2.0
PYTHON ?= python3
VENV = .venv
export WORDS =
SET =
SEED = 1
WORKERS = auto
THREADS = 1

# A stamp is written when its extra is wholly installed, and is out of date when the requirements change.
QUICKSTART = $(VENV)/.installed-quickstart
COMPARISON = $(VENV)/.installed-comparison
BENCHMARK = $(VENV)/.installed-benchmark
DEV = $(VENV)/.installed-dev
DOCS = $(VENV)/.installed-docs
PIP = $(VENV)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt

help:
	@echo "make quickstart [WORDS=\"words to pronounce\"]   Transformer and RNN learn to pronounce English: 8 minutes"
	@echo "make compare     the two in speed, long range and quality: runs/compare/report.md, at most 15 minutes"
	@echo "make bench-decode   speed of decoding beside MarianMT and CTranslate2: runs/benchmark/decode.json, 10 minutes"
	@echo "make bench-train    speed of training beside MarianMT and others: runs/benchmark/train.json, 40 minutes"
	@echo "make test        all tests but the slow ones"
	@echo "make test-random SEED=1   all tests but the slow ones, in another order (WORKERS=2 processes, of THREADS=1)"
	@echo "make test-slow   the slow ones: real training, several processes"
	@echo "make test-versions   published folders across transformers 5.17 to 5.24: a table, 10 minutes"
	@echo "make test-toolkits   imports of models that JoeyNMT, OpenNMT-py, eole, fairseq and transformers train: a table"
	@echo "make check       ruff and pyright"
	@echo "make docs        the documents as a site: build/site/index.html"
	@echo "make clean       remove caches and builds (runs/ and $(VENV) stay)"
	@echo "Variables: PYTHON=$(PYTHON) (3.11 or newer; it creates $(VENV)), SET=\"section.key=value ...\" (quickstart, compare, bench-decode, bench-train)"

quickstart: $(QUICKSTART)
	@$(VENV)/bin/vanilla-transformer quickstart $$WORDS $(foreach change,$(SET),--set $(change))

compare: $(COMPARISON)
	@$(VENV)/bin/vanilla-transformer compare configs/compare.yaml $(SET)

bench-decode: $(BENCHMARK)
	@$(VENV)/bin/python scripts/benchmark.py decode configs/benchmark_decode.yaml $(SET)

bench-train: $(BENCHMARK)
	@$(VENV)/bin/python scripts/benchmark.py train configs/benchmark_train.yaml $(SET)

# In the order of the folders: by number of tests, the longest files come last, and one core waits for the other.
IN_PROCESSES = OMP_NUM_THREADS=$(THREADS) $(VENV)/bin/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(DEV)
	$(IN_PROCESSES)

# The files in an order that the seed decides, and the tests within each.
test-random: $(DEV)
	$(IN_PROCESSES) --random-order-bucket module --random-order-seed $(SEED)

test-slow: $(DEV) .zero
	$(VENV)/bin/python -m pytest -m slow --ignore tests/distributed/test_deepspeed_zero.py
	PYTHONPATH=.zero $(VENV)/bin/python -m pytest -m slow tests/distributed/test_deepspeed_zero.py

# The versions of transformers go into build/versions, beside the environment's torch, the pinned one. torch 2.11, the
# oldest that is supported, is not among them: pip has it for Linux with CUDA only, which is gigabytes.
test-versions: $(DEV)
	$(VENV)/bin/python -m tests.versions.published

# The toolkits go into build/toolkits, each beside the environment. fairseq is compiled, by gcc.
test-toolkits: $(DEV)
	$(VENV)/bin/python -m tests.importing.real_toolkits

check: $(DEV)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

# From standard input: see the head of docs/mkdocs.yml.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet -f - < docs/mkdocs.yml
	@echo "build/site/index.html"

clean:
	rm -rf build dist .zero .pytest_cache .ruff_cache
	find vanilla_transformer scripts tests -type d -name __pycache__ -prune -exec rm -rf {} +

# torch first and alone: it is most of the download, and of the builds on offer the pinned one is taken.
$(VENV)/.installed-torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@echo "Creating $(VENV) and installing torch (the largest download) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@touch $@

$(QUICKSTART): $(VENV)/.installed-torch pyproject.toml constraints.txt
	@echo "Installing vanilla-transformer and what training needs ..."
	@$(PIP) -e ".[quickstart]"
	@touch $@

$(COMPARISON): $(VENV)/.installed-torch pyproject.toml constraints.txt
	@echo "Installing vanilla-transformer and what comparing needs ..."
	@$(PIP) -e ".[comparison]"
	@touch $@ $(QUICKSTART)

$(BENCHMARK): $(VENV)/.installed-torch pyproject.toml constraints.txt
	@echo "Installing vanilla-transformer and what benchmarks need ..."
	@$(PIP) -e ".[benchmark]"
	@touch $@

$(DEV): $(VENV)/.installed-torch pyproject.toml constraints.txt
	@echo "Installing vanilla-transformer and the development tools ..."
	@$(PIP) -e ".[dev]"
	@touch $@ $(BENCHMARK) $(COMPARISON) $(DOCS) $(QUICKSTART)

$(DOCS): $(VENV)/.installed-torch pyproject.toml constraints.txt
	@echo "Installing vanilla-transformer and what its site needs ..."
	@$(PIP) -e ".[docs]"
	@touch $@

# DeepSpeed beside the environment, not within: once it is there, Accelerate imports it in every process, for seconds. It
# asks for torch, which is there.
.zero: constraints.txt
	@echo "Installing DeepSpeed into $@ ..."
	@rm -rf $@
	@$(PIP) --target $@ --no-deps --no-build-isolation deepspeed einops hjson msgpack ninja py-cpuinfo pydantic pydantic-core annotated-types typing-inspection
	@touch $@

.PHONY: help quickstart compare bench-decode bench-train test test-random test-slow test-versions test-toolkits check docs clean
