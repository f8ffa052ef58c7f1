# Every target creates the environment if it is missing. `make demo` and `make test` are all a newcomer needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# A stamp: a pyproject.toml or constraints.txt newer than it installs again.
READY := $(VENV)/ready

.PHONY: setup demo test test-slow sanitize check bench docs clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]' --group dev
	touch $(READY)

demo: $(READY)
	$(BIN)/normsmith demo

test: $(READY) docs
	$(BIN)/python -m pytest -m "not slow" --numprocesses auto --dist loadscope

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow --numprocesses auto --dist loadscope

# On a machine with a GPU: the tests of its kernels under compute-sanitizer, which comes with the CUDA toolkit. Without torch's cache of
# memory, so that an access beyond a tensor is one beyond an allocation.
sanitize: $(READY)
	@command -v compute-sanitizer >/dev/null || { echo "make sanitize expects compute-sanitizer of the CUDA toolkit on the PATH: got none" >&2; exit 1; }
	for tool in memcheck racecheck; do PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
		$(BIN)/python -m pytest -m "not slow" tests/kernels/test_cuda.py tests/kernels/test_cuda_small.py \
		tests/kernels/test_cuda_whole.py tests/kernels/test_cuda_mixtures.py tests/kernels/test_cuda_node.py || exit 1; done

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/generate.py --check

bench: $(READY)
	$(BIN)/normsmith bench --save benchmarks/results

# The generated pages and the type stub of the public names, from the catalog.
docs: $(READY)
	$(BIN)/python tools/generate.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests -name __pycache__ -prune -exec rm -rf {} +
