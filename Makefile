# Two commands set everything up: `make quickstart` and `make test`. README.md says how to do without make.
PYTHON ?= python3
VENV ?= .venv
# More arguments for pip. To download less where there is no GPU, name the index of PyTorch's CPU builds here
# (it stands on PyTorch's installation page): make quickstart PIP_ARGS="--extra-index-url URL"
PIP_ARGS ?=
# A file's tests stay together, because they share what was made for them.
SIDE_BY_SIDE ?= -n auto --maxprocesses 8 --dist loadfile
PROMPT ?= Normalise the date: the 3rd of March 2021

.PHONY: quickstart install test test-fast lint clean

quickstart: $(VENV)/.installed
	$(VENV)/bin/workflow quickstart "$(PROMPT)"

install: $(VENV)/.installed

test: lint
	$(VENV)/bin/python -m pytest $(SIDE_BY_SIDE)

test-fast: lint
	$(VENV)/bin/python -m pytest $(SIDE_BY_SIDE) -m "not slow"

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# A stamp is touched when an installation is complete, so that one that was interrupted is done again.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt torch==2.13.0
	$(VENV)/bin/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
