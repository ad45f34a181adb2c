# make install | run | test | test-all | smoke | docs | clean; every target installs what it needs.
PYTHON = python3
# modern: the newest of everything, RecBole without its dependencies (Python 3.10 to 3.13);
# stock: RecBole's own pins (3.10 and 3.11). A file of requirements/ says what each asks for.
SET = modern
# Handed to `pip install` as written. The index has builds for the CPU alone, of 200 MB; without it
# Linux gets PyPI's build for CUDA, of 5 GB. A GPU user chooses one, say
#   make install TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130"
TORCH = torch==2.13.0 --extra-index-url https://download.pytorch.org/whl/cpu

RECBOLE = recbole==1.2.1
EXTRAS = minilm,llm,xlsx,tune,docs,dev
VENV = .venv
PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest
# What breaks first where numpy, pandas or Ray move on.
SMOKE = $(addprefix tests/test_,floors.py packaging.py registry.py run.py sentences.py)
PAGES = README.md CHANGELOG.md CONTRIBUTING.md benchmarks dataset/README.md docs LICENSE
# To which pages link, and which are lists there.
FOLDERS = $(shell find dataset/toy examples properties requirements results -type d ! -name __pycache__)

export TORCH

.PHONY: install run test test-all smoke docs clean
.DELETE_ON_ERROR:

install: $(VENV)/installed

run: install
	$(VENV)/bin/python run_recbole.py --model=JEPA4Rec --dataset=ml-100k

test: install
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(PYTEST)

# A marked test that the machine cannot run says why it was skipped.
test-all: install
	$(PYTEST) -m "" -rs

smoke: install
	$(PYTEST) $(SMOKE)

# The pages as a site, build/site; they lie in build/pages as they do here, so that links hold.
docs: install
	rm -rf build/pages build/site
	mkdir -p build/pages
	cp -r --parents $(PAGES) $(FOLDERS) build/pages
	for folder in $(FOLDERS); do ( cd build/pages/$$folder; { echo "# $$folder"; echo; \
	    ls -p | grep -v README.md | sed 's/.*/- [&](&)/'; } > README.md ); done
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

clean:
	rm -rf $(VENV) .venv-stock build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache

# torch's own requirements come with the next line, from the index that pip knows.
$(VENV)/installed: $(wildcard requirements/*.txt)
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/pip install --no-deps $$TORCH
	$(VENV)/bin/pip install -e ".[$(EXTRAS)$(if $(filter stock,$(SET)),$(comma)stock)]"
	$(VENV)/bin/pip install --no-deps $(RECBOLE)
	echo "$(MADE)" > $@

comma = ,
MADE = $(SET) $(PYTHON) $(TORCH)

ifeq ($(filter modern stock,$(SET)),)
$(error SET is $(SET); allowed: modern, stock)
endif
# A SET, PYTHON or TORCH named on the command line rebuilds an environment made with another.
ifneq ($(filter command,$(origin SET) $(origin PYTHON) $(origin TORCH)),)
ifneq ($(shell cat $(VENV)/installed 2>/dev/null),$(MADE))
.PHONY: $(VENV)/installed
endif
endif
