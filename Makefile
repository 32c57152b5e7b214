# Everything a newcomer needs: `make demo` and `make test`. Both make a virtual environment here.
# `make test` installs nothing outside this folder, except on CI: there, as root and with apt, it
# installs Chromium for the browser tests. `make browser` does that anywhere.

PYTHON := $(shell for name in python3 python3.15 python3.14 python3.13 python3.12 python3.11 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: demo demo-resume test browser check bench format clean

demo: $(VENV)/.demo
	$(BIN)/python examples/flight_delays.py

# After a demo that failed: `make demo-resume` finishes it.
demo-resume: $(VENV)/.demo
	$(BIN)/python examples/flight_delays.py --resume

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n auto

browser: $(VENV)/.dev
	$(BIN)/python tests/browser/setup --install

check: $(VENV)/.dev
	$(BIN)/python .ci/check.py

# `make bench QUICK=1` measures against the hand-written baselines alone.
bench: $(VENV)/.demo
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venvs benchmarks/.venvs build dist .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.python:
	@test -n "$(PYTHON)" || { \
		echo "flowrun needs Python 3.11 or newer, and found none on the PATH."; \
		echo "Install one (for example python3.13) and run make again."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		echo "$(PYTHON) could not make a virtual environment; on Debian and Ubuntu install python3-venv."; \
		exit 1; }
	@touch $@

# The library itself needs nothing, so the demo installs nothing but the library.
$(VENV)/.demo: $(VENV)/.python
	@echo "$(CURDIR)/src" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/flowrun-src.pth"
	@touch $@

$(VENV)/.dev: $(VENV)/.python pyproject.toml
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --group dev --group cluster --group browser
	$(BIN)/python .ci/wheels.py data examples
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable .
	-@$(BIN)/python tests/browser/setup
	@touch $@
