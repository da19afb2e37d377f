# stprompt: needs python3 (3.10-3.13) and make, nothing else. Requirements are in settings.ini and installed into .venv on first use.
PYTHON ?= python3
BIN    := .venv/bin
STAMP  := .venv/.installed
OUT    ?= out/demo
unexport MPLBACKEND  # set, it would keep the pictures out of executed notebooks
export PYDEVD_DISABLE_FILE_VALIDATION = 1

.PHONY: help demo test bench results lab notebooks export readme install clean distclean
help:           ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

install: $(STAMP)   ## everything into .venv (done by the others on first use)
$(STAMP): settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 10) <= v < (3, 14) else f"stprompt needs Python 3.10 to 3.13, found {v.major}.{v.minor}; call make PYTHON=python3.12")'
	@$(PYTHON) -m venv .venv || { echo "python3 -m venv failed: install your system's python3-venv package, or call make PYTHON=..."; exit 1; }
	@echo "installing stprompt and its tools into .venv (minutes, once) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(STAMP)      ## train, evaluate and draw on the bundled benchmark; minutes on two cores
	@mkdir -p $(OUT)
	$(BIN)/papermill --no-request-save-on-cell-execute nbs/train.ipynb $(OUT)/train.ipynb -p out $(OUT)
	@echo; echo "the executed notebook: $(OUT)/train.ipynb"; echo "metrics, figures and the trained model: $(OUT)/"; ls $(OUT)

test: export STPROMPT_CACHE ?= $(CURDIR)/cache
test: $(STAMP)      ## code in step with notebooks, component notebooks, pytest
	@echo "== exported code in step with the notebooks, notebooks clean"
	@$(BIN)/python tests/in_step.py
	@echo "== component notebooks (jobs are run by pytest, in a smoke size)"
	@OMP_NUM_THREADS=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdev_test --path nbs --n_workers 2 --timing
	@echo "== pytest"
	@$(BIN)/python -m pytest -q tests

bench: $(STAMP)     ## the ratios the README quotes, measured here
	$(BIN)/python -m stprompt.bench

TIDY := $(BIN)/python -c 'import sys; from stprompt.results import tidy_notebook; [tidy_notebook(path) for path in sys.argv[1:]]'
PAPERMILL := $(BIN)/papermill --no-request-save-on-cell-execute
results: $(STAMP)   ## what results/ holds, again: half an hour; with CLIPS=folder and PED2=folder the real footage too
	@mkdir -p out
	$(PAPERMILL) nbs/train.ipynb out/train.ipynb && $(TIDY) out/train.ipynb && mv out/train.ipynb results/ministreet-small/train/
	$(PAPERMILL) nbs/seeds.ipynb out/seeds.ipynb && $(TIDY) out/seeds.ipynb && mv out/seeds.ipynb results/ministreet-full/seeds/
	$(if $(CLIPS),$(PAPERMILL) nbs/train.ipynb out/train.ipynb -p dataset folder -p root $(CLIPS) && $(TIDY) out/train.ipynb && mv out/train.ipynb results/$(notdir $(CLIPS))/train/)
	$(if $(PED2),$(PAPERMILL) nbs/train.ipynb out/train.ipynb -p dataset ucsd_ped2 -p root $(PED2) && $(TIDY) out/train.ipynb && mv out/train.ipynb results/ucsd_ped2/train/)
	$(BIN)/python -m stprompt.bench

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

clean:          ## remove what was made, but not .venv and the cache
	rm -rf out build dist *.egg-info .pytest_cache .hypothesis
	find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -print | xargs rm -rf

distclean: clean    ## ... and those too
	rm -rf .venv cache
