# strata: make run, make test. Everything lives in .venv, built from constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint bench clean

run: .venv/installed
	$(BIN)/strata run conf/digits.yaml

test: .venv/tested
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow and not alone"
	$(BIN)/python -m pytest -m "alone and not slow"

lint: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/measured
	$(BIN)/python -m pytest -m slow tests -s

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: constraints.txt pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/tested: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

.venv/measured: .venv/tested
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
