# Everything a person or a machine runs. Needs Python >= 3.11, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: help study power-cuts calibration test bench bench-check bench-traces bench-peers lab lint clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# pip is upgraded inside the environment first: the one that comes with Python can be years old.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("vmbk needs Python >= 3.11, and $(PYTHON) is %d.%d; try: make PYTHON=python3.12 ..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

study: $(VENV)/.ready  ## set everything up, run the main job, print the table
	$(BIN)/vmbk study --out results

power-cuts: $(VENV)/.ready  ## judge crash states by the thousand anew, for notebooks/06_consistency
	$(BIN)/python -m vmbk.study.power_cuts --out notebooks

calibration: $(VENV)/.ready  ## measure anew what dispersion costs, on a quiet machine, some minutes
	$(BIN)/python -m vmbk.study.calibration --out notebooks

test: $(VENV)/.ready  ## set everything up, pass the checks and the tests, notebooks included
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m vmbk.kernels & kernels=$$!; $(BIN)/mypy && wait $$kernels
	$(BIN)/pytest --numprocesses=$(JOBS) --dist=worksteal
	$(BIN)/pytest --nbval --nbval-cell-timeout=120 --numprocesses=$(JOBS) --dist=loadfile notebooks

bench: $(VENV)/.ready  ## measure kernels beside their baselines, print ratios, append to the history
	$(BIN)/python -m benchmarks $(BENCH)

bench-check: $(VENV)/.ready  ## measure the same, keep nothing, fail where a ratio is below its floor
	$(BIN)/python -m benchmarks --check $(BENCH)

bench-traces: $(VENV)/.ready  ## measure traces at scale: 100 million requests, some minutes
	$(BIN)/python -m benchmarks.traces $(BENCH)

bench-peers: $(VENV)/.ready  ## vmbk beside restic and borg (benchmarks/peers/install.sh), some minutes
	$(BIN)/python -m benchmarks.peers $(BENCH)

lab: $(VENV)/.ready  ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir=notebooks

lint: $(VENV)/.ready  ## mend style and imports, check types
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

clean:  ## remove the environment and what runs made
	rm -rf $(VENV) results .pytest_cache .mypy_cache .ruff_cache .hypothesis
