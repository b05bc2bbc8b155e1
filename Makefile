# Every target does its own set-up; on a fresh Debian 12 machine, `make run` and `make test` just work.

PY := .venv/bin/python

.PHONY: run test lint format docs bench clean

run: .venv/.run       ## Run a hub with its data in ./data; ARGS="--https-port 8443" adds flags
	@exec .venv/bin/mooring serve --data $${MOORING_DATA:-data} $(ARGS)

test: .venv/.dev      ## Run all tests; ARGS="tests/wire -k mqtt" picks some
	@scripts/system-packages
	@$(PY) -m pytest $(ARGS)

lint: .venv/.dev      ## Style, types, layers, and whether the generated documentation is true
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports
	$(PY) scripts/docs.py --check

format: .venv/.dev    ## Put the code into its standard form
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: .venv/.dev      ## Generate the pages of docs/ that restate the code
	$(PY) scripts/docs.py

bench: .venv/.dev     ## Measure mooring beside Mosquitto
	@scripts/system-packages
	@$(PY) bench/bench.py $(ARGS)

clean:                ## Remove what set-up and tools have made; data stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/.run: pyproject.toml scripts/set-up
	@scripts/set-up run

.venv/.dev: pyproject.toml scripts/set-up
	@scripts/set-up dev
