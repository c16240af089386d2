# The same checks as in CI, in the environment that is active.
.PHONY: check test lint types

check: lint types test

test:
	python -m pytest

lint:
	ruff check .
	ruff format --check .

types:
	pyright --pythonpath "$$(python -c 'import sys; print(sys.executable)')"
