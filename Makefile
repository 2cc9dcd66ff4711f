# Every target makes its own environment in .venv: with uv where it is installed, else with venv and pip.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.made

.PHONY: demo test browser slow check bench docs constraints clean

$(STAMP): pyproject.toml constraints.txt
	@if command -v uv >/dev/null; then \
	  uv venv --quiet --allow-existing --python $(PYTHON) .venv && uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'; \
	else \
	  $(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	fi
	@touch $(STAMP)

demo: $(STAMP)      ## the whole pipeline on simulated smears, with a report to open
	$(BIN)/hemomil demo -o demo --force

test: $(STAMP)      ## every test but the slow ones
	$(BIN)/python -m pytest -n 2

browser: $(STAMP)   ## report and viewer driven in Chromium, which Debian and Ubuntu have as a package
	@command -v chromium >/dev/null || { apt-get -qq update && apt-get -qq install -y chromium; } \
	  || echo "no chromium here, and none could be installed: these tests are skipped"
	$(BIN)/python -m pytest -m browser tests/browser

slow: $(STAMP)      ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

check: $(STAMP)     ## style, types, and which room may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)     ## ratios to the plain way, side by side, one thread; then docs/speed.md from what was found
	@for name in mil store scale jury intervals table1 detect coverage assumptions speed; do \
	  OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$name.py || exit 1; done

docs: $(STAMP)      ## docs/commands.md from the commands themselves
	$(BIN)/typer hemomil.cli utils docs --name hemomil --title "hemomil: commands" --output docs/commands.md

constraints:        ## lock the versions, without addresses
	uv pip compile --universal --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
	  --python-version 3.11 --extra dev --extra energy --quiet -o constraints.txt pyproject.toml

clean:
	rm -rf .venv demo
