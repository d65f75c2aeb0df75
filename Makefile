# The commands of a working day. Each uses the Python that is first on PATH: activate a virtual environment.
PYTHON ?= python

.PHONY: setup test slow lint imports bench

setup: ## install the checkout itself, with everything that the tests need
	$(PYTHON) -m pip install -e '.[test]'

test: ## the fast tests, under five minutes
	$(PYTHON) -m pytest

slow: ## the others
	$(PYTHON) -m pytest -m slow

lint: build/tree imports ## what must hold besides the tests
	ruff check .
	ruff format --check .
	mypy

# An editable install puts a hook before everything that finds modules, and what draws the graph of imports would see
# the checkout's root through it; -S leaves the hook out.
imports: build/tree ## which package may import which
	PYTHONPATH="build/tree:$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
		$(PYTHON) -S -c 'from importlinter.cli import lint_imports_command as lint; lint()' --no-cache

bench: ## what v2v-bench says of this machine, in a few minutes
	v2v-bench --quick

# The folders under the names that Python knows them by (tool.scikit-build.wheel.packages in pyproject.toml), for tools
# that look for files instead of importing them.
build/tree: pyproject.toml $(wildcard */__init__.py)
	rm -rf $@
	mkdir -p $@/v2v
	sed -n 's|^"v2v/\([a-z]*\)" = "\([a-z]*\)"$$|\1 \2|p' pyproject.toml | \
		while read -r name folder; do ln -s "$(CURDIR)/$$folder" "$@/v2v/$$name"; done
	ln -s "$(CURDIR)/src/v2v/__init__.py" "$(CURDIR)/src/v2v/py.typed" $@/v2v/
