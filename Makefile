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
	# What a user of the public names sees, with pyright's defaults and in its strict mode.
	pyright --pythonpath "$$(python -c 'import sys; print(sys.executable)')" -p tests/typed
