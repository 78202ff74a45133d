# The commands for people who work on rayapp. Every target says what it does before it does it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

PLUGIN := /usr/share/orthanc/plugins/libOrthancDicomWeb.so
ARCHIVE := orthanc orthanc-dicomweb dicom3tools

VIEWER := $(CURDIR)/$(VENV)/ohif

NPM := $(shell command -v npm)
TSC := $(VENV)/web/node_modules/.bin/tsc

# The folder from which the training of deepgrow_3d resumes, and its duration in minutes.
PROMPTABLE ?= build/deepgrow_3d
POINTING := rayapp/apps/radiology/weights/deepgrow_3d
MINUTES ?= 600

# Test files run in parallel, one process for each processor; tests/distribution.py says which come first.
TOGETHER := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Bytecode is written also where the environment forbids it, as in containers: else each of the many processes that
# tests start compiles rayapp anew, and each test process every test.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -q

# The tests that draw histories of failures; each has a short and a long variant.
MACHINES := $(wildcard tests/*/test_*_machine.py tests/*/test_failing_disk.py tests/*/test_power_loss.py)

.PHONY: docs install ohif orthanc viewer demo test test-slow test-browser fuzz chaos faults lint lint-python lint-web format weights clean

# The type checker of the browser modules is installed too where npm is; without it everything but `lint-web` works.
install: $(VENV)/.installed
	@$(if $(NPM),test -e $(TSC) || $(MAKE) --no-print-directory $(TSC) || echo "==> not installed: make lint-web will retry")

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "==> creating the environment $(VENV) (a few minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rayapp needs Python 3.11 or newer")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "==> installing torch, then rayapp and its dependencies"
	@$(BIN)/pip install -q --constraint constraints.txt torch
	@$(BIN)/pip install -q --constraint constraints.txt --editable '.[dev]'
	@echo "==> installing MONAI Label's client for the contract tests (without its dependencies)"
	@$(BIN)/pip install -q --no-deps monailabel==0.8.5
	@touch $@

$(TSC): rayapp/web/package-lock.json | $(VENV)/.installed
	@echo "==> installing TypeScript by npm, which checks the browser modules"
	@mkdir -p $(VENV)/web
	@cp rayapp/web/package.json rayapp/web/package-lock.json $(VENV)/web
	@cd $(VENV)/web && $(NPM) ci --silent --no-fund --no-audit --fetch-retries=1
	@touch $@

demo: ohif
	@echo "==> starting the demo: generated studies, the models that ship; Ctrl-C stops it"
	@if test -e $(VIEWER)/rayapp.json; then export RAYAPP_OHIF=$(VIEWER); fi; $(BIN)/rayapp demo

# The DICOM archive and the DICOM validator that some tests need. Installed automatically only for root, as in a container.
orthanc:
	@test -e $(PLUGIN) -a -x "$$(command -v dciodvfy)" || { \
		echo "==> tests with a DICOM archive need: apt-get install $(ARCHIVE)"; \
		if test "$$(id -u)" = 0; then \
			echo "==> installing them"; \
			{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $(ARCHIVE); } \
				>/dev/null 2>&1; \
		fi || echo "==> they could not be installed: those tests will be skipped"; }

# The viewer of the demo and of the tests in a browser. Without npm or a network, both go on without it.
ohif: install
	@test -e $(VIEWER)/rayapp.json || { \
		echo "==> fetching the OHIF viewer by npm (50 MB)"; \
		RAYAPP_OHIF=$(VIEWER) $(BIN)/rayapp ohif install >/dev/null || \
			echo "==> OHIF could not be installed: there is no viewer in the browser, and its tests are skipped"; }

# The viewer and the browser that some tests need.
viewer: ohif
	@test -x "$$(command -v chromium)" || { \
		echo "==> tests in a browser need: apt-get install chromium"; \
		if test "$$(id -u)" = 0; then \
			echo "==> installing it"; \
			{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium; } \
				>/dev/null 2>&1; \
		fi || echo "==> it could not be installed: those tests will be skipped"; }

test: install orthanc
	@echo "==> running the fast tests (slow tests: make test-slow; browser tests: make test-browser)"
	@$(PYTEST) $(TOGETHER)

test-browser: install orthanc viewer
	@echo "==> running the browser tests: OHIF in headless Chromium"
	@RAYAPP_OHIF=$(VIEWER) $(PYTEST) -m browser $(TOGETHER)

test-slow: install orthanc
	@echo "==> running the slow tests"
	@$(BIN)/pytest -q -m slow

# Each round draws other headers; hypothesis keeps what failed in .hypothesis and shows the smallest example.
fuzz: install
	@echo "==> five minutes of random NIfTI, NRRD and DICOM headers, with SimpleITK and nibabel as referees"
	@end=$$(($$(date +%s) + 300)); while test $$(date +%s) -lt $$end; do \
		$(PYTEST) -x tests/imaging/test_viewers_grid.py tests/imaging/test_viewers_values.py tests/imaging/test_random_dicom.py \
			--hypothesis-seed=$$(date +%s) || exit 1; \
	done

# What stores data, at length: random histories, loss of power at every call, every error of the disk, and kill -9.
chaos: install
	@echo "==> crashes, errors of the disk and loss of power in every order that can be drawn (an hour on two cores)"
	@$(PYTEST) -m "slow or not slow" --hypothesis-seed=$$(date +%s) $(MACHINES) tests/chaos

# Undoes one mend of a fault after the other and runs the machines, which have to find the fault.
faults: install
	@echo "==> taking the mends away one by one: the machines have to find each fault (half an hour on two cores)"
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults

lint: lint-python lint-web

lint-python: install
	@echo "==> ruff and mypy"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

ifdef NPM
lint-web: $(TSC)
	@echo "==> tsc on the browser modules"
	@$(TSC) --project rayapp/web
else
lint-web:
	@echo "==> skipping the browser modules in rayapp/web: checking them needs npm (Node.js), which is not installed"
endif

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
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m rayapp.training.synthetic.train $(PROMPTABLE) --minutes $(MINUTES) \
		--start $(POINTING).safetensors
	@$(BIN)/python -m rayapp.training.synthetic.export $(PROMPTABLE) $(POINTING)

clean:
	rm -rf $(VENV) build *.egg-info
