# The same checks as in CI, in the environment that is active.
.PHONY: check test lint types site wheel

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

# The documentation as HTML; to look at it while writing: mkdocs serve -f docs/mkdocs.yml
SITE ?= $(or $(TMPDIR),/tmp)/tsm_jax_site
site:
	NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict -f docs/mkdocs.yml --site-dir "$(SITE)"

wheel:
	.ci/wheel
