# Every target works as the first command after a clone: it makes the environment it needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin

# What the targets work on; override as in `make shards DATA=my.yaml RUN=runs/mine`.
DATA   ?= data_configs/scenes.yaml
RUN    ?= runs/scenes
TRAIN  ?= tcjepa/configs/scenes_tiny.yaml
# A name in tcjepa/ablate/studies, or `all`; each runs at its reduced size, in a folder of STUDIED.
STUDY  ?= noise
STUDIED ?= runs/ablation
STUDIES := $(sort $(basename $(notdir $(wildcard tcjepa/ablate/studies/*.yaml))))
# Further `key.sub=value` overrides of the command at hand.
ARGS   ?=

.PHONY: setup shards pretrain ablation test check bench figures clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else "Python 3.11 or 3.12 is needed, this is %d.%d; set PYTHON=path" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

shards: setup
	$(BIN)/python -m pipeline shards $(DATA) run=$(RUN) $(ARGS)

pretrain: setup
	@test -f $(RUN)/shards/manifest.json || $(MAKE) --no-print-directory shards
	$(BIN)/python -m tcjepa pretrain $(TRAIN) run=$(RUN)/pretrain data.shards=$(RUN)/shards $(ARGS)

ablation: setup
	@for study in $(if $(filter all,$(STUDY)),$(STUDIES),$(STUDY)); do \
		$(MAKE) --no-print-directory study-$$study || exit 1; done

# Studies of captions that were corrupted before scoring, and of other captioners, need shards of
# their own.
study-remedies study-filtering: $(STUDIED)/derangement/shards/manifest.json
study-captioners: $(STUDIED)/captioners/shards/manifest.json
study-omission: $(STUDIED)/omission/shards/manifest.json
SHARDS_captioners = $(STUDIED)/captioners/shards
SHARDS_omission = $(STUDIED)/omission/shards
CAPTIONERS_captioners = {kind: annotations, name: weak, max_captions: 8, error_rate: 0.5, seed: 1}
CAPTIONERS_omission = {kind: annotations, name: half, max_captions: 8, omission_rate: 0.5}, \
	{kind: annotations, name: bare, max_captions: 8, omission_rate: 1.0}
ARGS_remedies = constants.derangement=$(STUDIED)/derangement/shards
ARGS_filtering = $(ARGS_remedies)

study-%: setup $(STUDIED)/world/shards/manifest.json
	$(BIN)/python -m tcjepa ablate $* --reduced run=$(STUDIED)/$* \
		shards=$(or $(SHARDS_$*),$(STUDIED)/world/shards) $(ARGS_$*) $(ARGS)

$(STUDIED)/world/shards/manifest.json: | setup
	$(BIN)/python -m pipeline shards data_configs/studies_cpu.yaml run=$(STUDIED)/world

$(STUDIED)/derangement/shards/manifest.json: $(STUDIED)/world/shards/manifest.json
	rm -rf $(STUDIED)/derangement
	$(BIN)/python -m tcjepa.ablate.noisy_shards $(STUDIED)/world/shards $(STUDIED)/derangement \
		kind=derangement rate=0.4
	$(BIN)/python -m pipeline shards $(STUDIED)/derangement/noisy.yaml

OTHER_CAPTIONERS := $(foreach study,captioners omission,$(STUDIED)/$(study)/shards/manifest.json)
$(OTHER_CAPTIONERS): $(STUDIED)/%/shards/manifest.json: | setup
	$(BIN)/python -m pipeline shards data_configs/studies_cpu.yaml run=$(STUDIED)/$* \
		'recaption.captioners=[{kind: annotations, max_captions: 8}, $(CAPTIONERS_$*)]' \
		recaption.max_captions=24

test: setup
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term:skip-covered --cov-fail-under=85

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m tcjepa bench
	$(BIN)/python -m pipeline bench

# Tables, numbers and plots of README and docs, from the files in docs/results.
figures: setup
	$(BIN)/python -m tcjepa.figures $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
