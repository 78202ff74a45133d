# What a person types. Every target says what it does before it does it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

PLUGIN := /usr/share/orthanc/plugins/libOrthancDicomWeb.so
ARCHIVE := orthanc orthanc-dicomweb dicom3tools

VIEWER := $(CURDIR)/$(VENV)/ohif

# Where the training of deepgrow_3d goes on from, and for how long.
PROMPTABLE ?= build/deepgrow_3d
MINUTES ?= 600

# Files of tests run side by side, one on each processor.
TOGETHER := -n logical --maxprocesses 4 --dist loadfile

.PHONY: docs install orthanc viewer demo test test-slow test-browser lint format weights clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "==> making the environment $(VENV) (a few minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rayapp needs Python 3.11 or newer")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "==> installing torch, then rayapp and what it needs"
	@$(BIN)/pip install -q --constraint constraints.txt torch
	@$(BIN)/pip install -q --constraint constraints.txt --editable '.[dev]'
	@echo "==> installing the client of MONAI Label, which the contract tests drive (alone, without its dependencies)"
	@$(BIN)/pip install -q --no-deps monailabel==0.8.5
	@touch $@

demo: install
	@echo "==> starting the demo: generated studies, shipped models; Ctrl-C stops it"
	@$(BIN)/rayapp demo

# The DICOM archive and the validator of DICOM that some tests need. Root, as in a container, has them installed.
orthanc:
	@test -e $(PLUGIN) -a -x "$$(command -v dciodvfy)" || { \
		echo "==> tests with a DICOM archive need: apt-get install $(ARCHIVE)"; \
		if test "$$(id -u)" = 0; then \
			echo "==> installing these"; \
			{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $(ARCHIVE); } \
				>/dev/null 2>&1; \
		fi || echo "==> that did not work here"; }

# The viewer and the browser that some tests need.
viewer: install
	@test -e $(VIEWER)/rayapp.json || { \
		echo "==> tests in a browser need OHIF: fetching it by npm"; \
		RAYAPP_OHIF=$(VIEWER) $(BIN)/rayapp ohif install >/dev/null || echo "==> that did not work here"; }
	@test -x "$$(command -v chromium)" || { \
		echo "==> tests in a browser need: apt-get install chromium"; \
		if test "$$(id -u)" = 0; then \
			echo "==> installing it"; \
			{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium; } \
				>/dev/null 2>&1; \
		fi || echo "==> that did not work here"; }

test: install orthanc
	@echo "==> running the fast tests (the slow proofs: make test-slow; in a browser: make test-browser)"
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q $(TOGETHER)

test-browser: install orthanc viewer
	@echo "==> clicking in OHIF in headless Chromium"
	@RAYAPP_OHIF=$(VIEWER) OMP_NUM_THREADS=1 $(BIN)/pytest -q -m browser $(TOGETHER)

test-slow: install orthanc
	@echo "==> running the slow proofs"
	@$(BIN)/pytest -q -m slow

lint: install
	@echo "==> ruff and mypy"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: install
	@echo "==> building the documentation into build/site"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: install
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

weights: install
	@echo "==> training the shipped models on generated phantoms (tens of minutes on two cores)"
	@$(BIN)/python -m rayapp.apps.radiology.make_weights
	@echo "==> training deepgrow_3d on random scenes for $(MINUTES) minutes more; Ctrl-C keeps what is learnt: $(PROMPTABLE)"
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m rayapp.training.synthetic.train $(PROMPTABLE) --minutes $(MINUTES)
	@$(BIN)/python -m rayapp.training.synthetic.export $(PROMPTABLE) rayapp/apps/radiology/weights/deepgrow_3d

clean:
	rm -rf $(VENV) build *.egg-info
