# stprompt: needs python3 (3.10-3.13) and make, nothing else. Requirements are in settings.ini and installed into .venv on first use.
PYTHON ?= python3
BIN    := .venv/bin
STAMP  := .venv/.installed
OUT    ?= out/demo
JOBS   ?= 2
unexport MPLBACKEND  # set, it would keep the pictures out of executed notebooks
export PYDEVD_DISABLE_FILE_VALIDATION = 1

.PHONY: help demo test bench results index site lab notebooks export readme install clean distclean
help:           ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

install: $(STAMP)   ## everything into .venv (done by the others on first use)
$(STAMP): settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 10) <= v < (3, 14) else f"stprompt needs Python 3.10 to 3.13, found {v.major}.{v.minor}; call make PYTHON=python3.12")'
	@$(PYTHON) -m venv .venv || { echo "python3 -m venv failed: install your system's python3-venv package, or call make PYTHON=..."; exit 1; }
	@echo "installing stprompt and its tools into .venv (minutes, once) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

PAPERMILL := $(BIN)/papermill --no-request-save-on-cell-execute
demo: $(STAMP)      ## train, evaluate and draw on the bundled benchmark; minutes on two cores
	@mkdir -p $(OUT)
	$(PAPERMILL) nbs/train.ipynb $(OUT)/train.ipynb -p out $(OUT)
	@echo; echo "the executed notebook: $(OUT)/train.ipynb"; echo "metrics, figures and the trained model: $(OUT)/"; ls $(OUT)

test: export STPROMPT_CACHE ?= $(CURDIR)/cache
test: $(STAMP)      ## code in step with notebooks, ruff, component notebooks, pytest; JOBS processes
	@echo "== exported code in step with the notebooks, notebooks clean"
	@$(BIN)/python tests/in_step.py
	@echo "== ruff on notebooks and tests"
	@$(BIN)/ruff check nbs tests docs setup.py
	@echo "== component notebooks (jobs are run by pytest, in a smoke size)"
	@OMP_NUM_THREADS=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdev_test --path nbs --n_workers $(JOBS) --timing
	@echo "== pytest"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal tests

bench: $(STAMP)     ## the ratios the README quotes, measured here, into out/bench
	$(BIN)/python -m stprompt.bench

results: $(STAMP)   ## what results/ holds, made again where it is out of date; CLIPS=folder, PED2=folder: real footage too
	$(BIN)/python -m stprompt.remake $(if $(CLIPS),--clips $(CLIPS)) $(if $(PED2),--ped2 $(PED2))
	$(MAKE) readme

index: $(STAMP)     ## results/README.md from the files beside it
	$(BIN)/python -c 'from stprompt.results import write_index; print(write_index("results"))'

SITE := .venv/.site
$(SITE): $(STAMP) settings.ini
	@echo "installing the site's tools into .venv (once) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[site]'
	@touch $@

site: $(SITE)       ## every notebook, table and figure as pages, out/site/index.html; opens offline
	@rm -rf out/site.parts
	@$(BIN)/sphinx-build -q -E -c docs -d out/site.parts/doctrees . out/site.parts/html
	@rm -rf out/site && mv out/site.parts/html out/site && rm -rf out/site.parts
	@echo "open out/site/index.html"

lab: $(STAMP)       ## JupyterLab on the notebooks
	$(BIN)/jupyter lab nbs

export: $(STAMP)    ## notebooks -> stprompt/*.py
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdev_export

notebooks: export   ## execute the component notebooks again, with their pictures, and clean them
	$(BIN)/python tests/in_step.py --execute

readme: $(STAMP)    ## README.md from nbs/index.ipynb, with the tables of results/
	env -u MPLBACKEND $(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute --inplace nbs/index.ipynb
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdev_clean --fname nbs/index.ipynb
	$(BIN)/jupyter nbconvert --log-level WARN --to markdown nbs/index.ipynb --output-dir . --output README \
	  --TagRemovePreprocessor.enabled True --TagRemovePreprocessor.remove_cell_tags remove-cell --TagRemovePreprocessor.remove_input_tags remove-input
	@cat -s README.md > README.tmp && mv README.tmp README.md

clean:          ## remove what was made, but not .venv and the cache
	rm -rf out build dist *.egg-info .pytest_cache .hypothesis .ruff_cache
	find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -print | xargs rm -rf

distclean: clean    ## ... and those too
	rm -rf .venv cache
