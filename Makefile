# make run     set up and run the slides' experiment        make run NAME=fashion-mnist   the real images (goes on if killed)
# make test    set up and run every notebook and test       make lab                      JupyterLab on the book
# make nbs     export, run, save and clean the notebooks    make results                  remake the committed results
# make bench   time our routes and other libraries           make gradcheck N=1000         hypergradients against differences
# make soak    kill trainings, make all wrong calls        make suites                    remake the regime suites of chapter 54

NAME ?= synthetic
N ?= 1000
SEED0 ?= 0
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export TF_CPP_MIN_LOG_LEVEL ?= 3

ifneq ($(wildcard ../shared/data),)
export DISTILLNB_DATA ?= $(abspath ../shared/data)
endif

INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
FACTS := settings.ini setup.py constraints.txt pyproject.toml

.PHONY: run test lab nbs readme results suites bench gradcheck soak clean FORCE
.DEFAULT_GOAL := run

run: .venv/installed
	distillnb run $(NAME) --out runs/$(NAME) --resume

test: .venv/installed-dev
	python tools/execute.py
	python -m pytest

lab: .venv/installed-lab
	jupyter lab --notebook-dir=. nbs/index.ipynb

nbs: .venv/installed-dev
	python tools/contents.py
	nbdev-export
	python tools/execute.py
	cd executed && find . -name '*.ipynb' -exec cp {} ../nbs/{} ';'
	$(MAKE) readme

readme: # code marked as Python, and the links of nbs/index.ipynb as seen from the top
	jupyter nbconvert --log-level=ERROR --to markdown --output-dir=. --output=README nbs/index.ipynb
	awk '/^```$$/ && ++n % 2 { $$0 = "```python" } 1' README.md | cat -s > README.tmp && mv README.tmp README.md
	sed -i.bak -E -e 's,(\]\(|src=")\.\./,\1,g' -e 's,(\]\()([0-9]_|reference/),\1nbs/\2,g' README.md && rm README.md.bak

RESULTS := synthetic-clean synthetic-authors fashion-mnist-clean fashion-mnist-authors reduced-cifar10-clean reduced-cifar10-authors
PUBLISHED := none fixed random gradient lines-10 tpe # the rows of the paper's table on CIFAR-10

results: $(RESULTS:%=results/%) # each may be killed, and goes on

results/%: .venv/installed FORCE
	distillnb run $(patsubst %-authors,%,$(patsubst %-clean,%,$*)) --protocol $(lastword $(subst -, ,$*)) \
	  $(if $(filter reduced-cifar10-authors,$*),--methods $(PUBLISHED)) --out runs/$* --resume
	mkdir -p $@
	cd runs/$* && cp records.jsonl environment.json table.* comparison.* *.png ../../$@

SUITES := suite-fashion-mnist suite-reduced-cifar10
NO_SEARCH := labels half-1 half-4 half-10 mostly-labels mostly-teacher teacher-1 teacher-4 teacher-10 standardised \
  half-normalized mostly-labels-normalized gradient lines

suites: $(SUITES:%=results/%-development) $(SUITES:%=results/%)

results/suite-%: .venv/installed FORCE
	distillnb suite $(patsubst %-development,%,$*) $(if $(filter %-development,$*),--development --seeds 5 --methods $(NO_SEARCH)) --out runs/suite-$* --resume
	mkdir -p $@
	cd runs/suite-$* && cp records.jsonl environment.json table.md suite.png ../../$@

FORCE:

bench: .venv/installed
	python -m benchmarks.bench

gradcheck: .venv/installed # make gradcheck N=1000 SEED0=0: so many problems, one process for each core
	python benchmarks/gradcheck.py $(N) --first $(SEED0)

soak: .venv/installed-dev
	SOAK=100 python -m pytest tests/core/test_store.py -k kill
	SOAK=1 python -m pytest tests/wrong_calls

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "distillnb needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python $(FACTS)
	$(INSTALL) --editable '.[experiments]'
	touch $@

.venv/installed-lab: .venv/installed
	$(INSTALL) --editable '.[lab]'
	touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info runs executed
