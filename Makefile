# Everything on a fresh machine: `make demo` installs and runs the main job, `make test` installs and passes the tests.
# An environment holds the versions of one file (LOCK) and is made again when that file changes. `make floor` and
# `make newest` solve for the oldest and the newest versions that setup.cfg allows, each in an environment of its own.
PYTHON ?= python3
VENV ?= .venv
LOCK ?= requirements/lock.txt
TESTS ?=

BIN := $(VENV)/bin
UV := $(BIN)/uv
MADE := $(VENV)/.made-$(shell cksum < $(LOCK) | cut -d' ' -f1)
INSTALLED := $(VENV)/.installed-$(shell (pwd; cat $(LOCK) setup.cfg pyproject.toml) | cksum | cut -d' ' -f1)

# what stands on other libraries most, the checks of the doctor among it, in about four minutes
SUBSET := tests/eval/test_doctor.py tests/adapters tests/contracts/test_cache.py tests/families/test_generation.py \
	tests/families/test_turns.py

.PHONY: demo docs doctor gpu test test-serving subset lint format floor newest solve-floor solve-newest clean

demo: $(INSTALLED)
	$(BIN)/tokenreduce demo

test: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 $(TESTS)

# vLLM with the plugin, on a CPU, in an environment of its own (about 4 GB); outside of what `test` runs. One thread: with models
# as small as these, several wait for each other
test-serving: $(VENV)-serving/.made-$(shell (pwd; cat requirements/serving.txt requirements/serving_cpu.py setup.cfg) | cksum | cut -d' ' -f1)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VENV)-serving/bin/python -m pytest $(or $(TESTS),tests/serving)

$(VENV)-serving/.made-%: requirements/serving.txt requirements/serving_cpu.py
	$(PYTHON) -m venv --clear $(VENV)-serving
	$(VENV)-serving/bin/python -m pip install --quiet --requirement requirements/serving.txt --editable '.[serve]'
	$(VENV)-serving/bin/python requirements/serving_cpu.py
	touch $@

# on a machine with a GPU: what is to be measured there, what matters most first, into benchmarks/results/gpu
gpu: $(INSTALLED)
	$(BIN)/python benchmarks/gpu.py

doctor: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(BIN)/tokenreduce doctor

subset: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 $(SUBSET)

# the site, into build/site, with tools in an environment of their own: they read the sources, and run nothing of them
docs: $(VENV)-docs/.made-$(shell cksum < requirements/docs.txt | cut -d' ' -f1)
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build

$(VENV)-docs/.made-%: requirements/docs.txt
	$(PYTHON) -m venv --clear $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --requirement requirements/docs.txt
	touch $@

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/types && mkdir -p build/types && cp -r tokenreduce build/types && cp -r adapters kernels eval build/types/tokenreduce
	cd build/types && $(abspath $(BIN))/mypy --config-file $(CURDIR)/setup.cfg -p tokenreduce

format: $(INSTALLED)
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

floor newest: %: solve-%
	$(MAKE) doctor test VENV=$(VENV)-$@ LOCK=build/$@.txt
	cp build/$@.txt $(KEPT)
	$(BIN)/python requirements/tested.py
	$(BIN)/uv pip list --python $(VENV)-$@ --outdated

floor: KEPT := requirements/floor.txt
newest: KEPT := requirements/lock.txt

# both files hold for every platform and for Python 3.11 and later, and constrain pip as well as uv
solve-floor: RESOLUTION := lowest-direct
solve-newest: RESOLUTION := highest
solve-floor solve-newest: solve-%: $(INSTALLED)
	mkdir -p build
	$(UV) pip compile --quiet --upgrade --resolution $(RESOLUTION) --universal --python-version 3.11 --all-extras \
		--strip-extras --no-annotate --no-header setup.cfg -o build/$*.txt

# uv installs in a fraction of pip's time; pip does where uv cannot
$(INSTALLED): $(MADE)
	rm -f $(VENV)/.installed-*
	$(BIN)/python -m pip install --quiet --constraint $(LOCK) uv && \
		$(UV) pip install --quiet --python $(BIN)/python --constraint $(LOCK) --build-constraint $(LOCK) \
			--editable '.[dev]' || \
		$(BIN)/python -m pip install --quiet --constraint $(LOCK) --editable '.[dev]'
	touch $@

$(MADE):
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-docs $(VENV)-serving $(VENV)-floor $(VENV)-newest build dist *.egg-info demo_out
