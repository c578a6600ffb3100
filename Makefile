# What .venv is made with, once: make clean install PYTHON=python3.13
PYTHON ?= $(or $(realpath .venv/bin/python),python3)

BIN := .venv/bin
INSTALLED := .venv/installed
UV := $(shell uv --version 2>/dev/null)
PIP := $(if $(UV),uv pip install --python $(BIN)/python,$(BIN)/pip install --disable-pip-version-check)
COMPILE := $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate
AUDIT := pip-audit@2.10.1
SLUG := {{cookiecutter.project_slug}}

.DEFAULT_GOAL := help
.PHONY: help install demo test test-newest soak lint audit bench pictures lock upgrade release clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## bring .venv to what requirements-dev.txt pins

$(INSTALLED): requirements-dev.txt | $(BIN)/python
	$(PIP) --require-hashes -r requirements-dev.txt
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "This needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
			"Name another one: make install PYTHON=python3.13" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv

demo: $(INSTALLED)  ## generate a project into build/, start it on every CPU given, show what it counts
	rm -rf build/my-service
	$(BIN)/cookiecutter . --no-input --default-config --output-dir build >/dev/null
	$(MAKE) --no-print-directory -C build/my-service install
	@exec $(BIN)/python scripts/demo.py build/my-service

test: $(INSTALLED)  ## generate every supported combination and prove it
	$(BIN)/pytest

test-newest: $(INSTALLED)  ## the runtime's tests with the newest aiohttp 3, which no project has yet
	rm -rf build/newest
	$(BIN)/cookiecutter . --no-input --default-config --output-dir build/newest >/dev/null
	$(MAKE) --no-print-directory -C build/newest/my-service install
	$(BIN)/uv pip install --quiet --python build/newest/my-service/.venv/bin/python \
		--require-hashes --requirement tests/runtime/requirements.txt
	$(BIN)/uv pip install --python build/newest/my-service/.venv/bin/python --upgrade "aiohttp >=3,<4"
	cd tests/runtime && PROJECT=$(CURDIR)/build/newest/my-service \
		$(CURDIR)/build/newest/my-service/.venv/bin/python -m pytest

soak: $(INSTALLED)  ## the same behaviour under load, at full length
	SOAK=1 $(BIN)/pytest tests/test_rolling.py tests/test_runtime.py -k "rolling or at_length"

lint: $(INSTALLED)  ## check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	cd tests/runtime && ../../$(BIN)/mypy --config-file ../../pyproject.toml .

audit: $(INSTALLED)  ## look for known vulnerabilities in what is pinned, here and in the generated project
	for pins in requirements-dev.txt tests/runtime/requirements.txt "$(SLUG)"/*requirements-[bdl]*; do \
		$(BIN)/uv tool run --quiet $(AUDIT) --strict --disable-pip --vulnerability-service osv \
			--requirement "$$pins" || exit 1; \
	done

bench: $(INSTALLED)  ## measure a generated project: make bench NAME=telemetry|peers|growth|breakdown|compute|memory|...
	rm -rf build/bench
	$(BIN)/cookiecutter . --no-input --default-config --output-dir build/bench >/dev/null
	$(MAKE) --no-print-directory -C build/bench/my-service install
	PROJECT=build/bench/my-service build/bench/my-service/.venv/bin/python benchmarks/$(NAME).py

pictures: $(INSTALLED)  ## make docs/pictures anew from a real run; takes chromium, and the ports 8080 and 8081
	rm -rf build/pictures
	$(BIN)/cookiecutter . --no-input --default-config --output-dir build/pictures >/dev/null
	$(MAKE) --no-print-directory -C build/pictures/my-service install
	$(BIN)/uv pip install --quiet --python build/pictures/my-service/.venv/bin/python \
		--require-hashes --requirement tests/runtime/requirements.txt
	$(BIN)/python scripts/pictures.py build/pictures/my-service docs/pictures

lock: $(INSTALLED)  ## pin what is new, here and in the generated project; what is pinned stays
	$(COMPILE) --group dev --output-file requirements-dev.txt >/dev/null
	for queue in none redis; do \
		rm -rf build/lock && \
		$(BIN)/cookiecutter . --no-input --default-config --output-dir build/lock job_queue=$$queue >/dev/null && \
		$(MAKE) --no-print-directory -C build/lock/my-service $(or $(LOCK),lock) && \
		cp build/lock/my-service/requirements-build.txt build/lock/my-service/requirements-load.txt '$(SLUG)' && \
		for name in requirements requirements-dev; do \
			cp build/lock/my-service/$$name.txt \
				"$(SLUG)/{% if cookiecutter.job_queue == '$$queue' %}$$name.txt{% endif %}" || exit 1; \
		done || exit 1; \
	done
	$(COMPILE) tests/runtime/requirements.in --constraint build/lock/my-service/requirements-dev.txt \
		--output-file tests/runtime/requirements.txt >/dev/null

upgrade: COMPILE += --upgrade
upgrade: LOCK := upgrade
upgrade: lock  ## the same with the newest versions that are allowed

release:  ## check that pyproject.toml, CHANGELOG.md and cookiecutter.json name one version, and tag it
	@$(PYTHON) scripts/release.py

clean:  ## remove everything that the other targets made
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache
