# Needs Python >= 3.12, a C compiler and make. Everything else goes into .venv. `make help` lists the targets.

PYTHON ?= python3

VENV := .venv
PROVIDER := packaging/fenics-dolfinx
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MANIFESTS := pyproject.toml $(PROVIDER)/pyproject.toml
# folders too: their time changes when a file in them is added or removed
SOURCES := $(shell find npde_fem -name __pycache__ -prune -o -print)
# both discretisations, schemes, derivatives, output, MPI: what depends on PETSc's scalars, in a few minutes
COMPLEX_TESTS := $(patsubst %,tests/test_%.py,jacobian fem_linearised time_order agreement probe checkpoints tape pdeco \
	output complex_pairs complex_gradients) "tests/test_mpi.py::test_any_number_of_ranks_gives_the_same_answer[2]" \
	tests/test_mpi.py::test_petsc_options_are_honoured
BENCHMARKS := $(wildcard benchmarks/[a-z]*.py)

.PHONY: help install demo test test-complex lint bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile
	@echo "make TARGET PYTHON=python3.12 builds .venv with that Python"

install: $(STAMP) ## make .venv and install npde_fem with all it needs

demo: install ## run the demos; their pictures go to figures/
	$(BIN)/python demos/glioma.py --output figures
	$(BIN)/python demos/scratch_assay.py --output figures
	$(BIN)/python demos/gray_scott.py --output figures
	$(BIN)/python demos/tunnelling.py --output figures
	$(BIN)/python demos/double_slit.py --output figures
	$(BIN)/python demos/lens.py --output figures
	$(BIN)/python demos/inverse_design.py --output figures
	$(BIN)/python demos/waves.py --output figures
	$(BIN)/python demos/learned_laws.py --output figures
	$(BIN)/python demos/picture_to_pde.py --output figures
	$(BIN)/python demos/wave_memory.py --output figures
	$(BIN)/python demos/network_on_other_grids.py --output figures
	$(BIN)/python demos/digits_as_physics.py --output figures
	$(BIN)/npde learn optics-digits --plot figures/optics_digits.png

test: lint ## check the sources, then run the tests
	OMP_NUM_THREADS=1 $(BIN)/pytest

test-complex: ## test with the DOLFINx whose scalars are complex, in .venv-complex
	$(MAKE) install VENV=.venv-complex PROVIDER=packaging/fenics-dolfinx-complex
	OMP_NUM_THREADS=1 .venv-complex/bin/pytest $(COMPLEX_TESTS)

lint: install ## ruff, mypy and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install ## run the benchmarks, with the packages they compare with
	$(BIN)/pip install ".[benchmark]"
	for script in $(BENCHMARKS); do OMP_NUM_THREADS=1 $(BIN)/python $$script || exit 1; done

clean: ## remove .venv, figures and caches
	rm -rf .venv .venv-complex figures build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A changed source needs only the package anew, from what is there already; a changed manifest everything.
$(STAMP): $(MANIFESTS) $(SOURCES)
	$(if $(filter $(MANIFESTS),$?),$(install-all),$(install-package))
	@touch $@

define install-all
@command -v "$(PYTHON)" >/dev/null || { echo "There is no '$(PYTHON)' here. Python 3.12 or newer is needed; \
name it, for example: make install PYTHON=python3.12" >&2; exit 1; }
@"$(PYTHON)" packaging/preflight.py
"$(PYTHON)" -m venv $(VENV)
$(BIN)/pip install ./$(PROVIDER) ".[test]"
endef

define install-package
$(BIN)/pip install --quiet --no-deps --no-build-isolation --force-reinstall .
endef
