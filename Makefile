# Each target does its own set-up: Python >= 3.11 and make are all that a machine needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := pipelines/demo/pipeline.toml

.PHONY: bench-coverage bench-feed bench-inspect bench-read bench-embed bench-heatmap bench-embed-gpu bench-scale bench-train bench-train-gpu bench-view help demo demo-random-weights test test-slow test-gpu test-browser test-dask lint format clean test-chaos test-docker test-slurm

help:
	@echo "make demo                 draw a cohort, tile -> embed -> train -> heatmap -> report (minutes)"
	@echo "make demo-random-weights  the same with an untrained encoder: what the pretrained one is worth"
	@echo "make test                 the default tests: CPU, no network, two processes"
	@echo "make test-slow            tests that take minutes"
	@echo "make test-gpu             tests that need a CUDA device"
	@echo "make bench-tile           drawn slides of known tissue, speed against the field's way, real patches"
	@echo "make test-browser         the viewer and the report in headless Chromium (chromium, chromium-driver)"
	@echo "make bench-read           patches per second against OpenSlide, tiffslide, cuCIM, the decoder alone"
	@echo "make bench-inspect        wsi-mil inspect over 200 slides, and a slide behind a URL"
	@echo "make bench-coverage       how often the 95 % intervals hold the true score, on drawn cohorts (minutes)"
	@echo "make bench-embed          embedding against the field's loop and the encoder alone (an hour)"
	@echo "make bench-feed           reading alone, and a simulated device of a set rate kept busy (minutes)"
	@echo "make bench-heatmap        seconds and memory of the heatmap of a slide with 100,000 patches"
	@echo "make bench-embed-gpu      the same on a CUDA device"
	@echo "make bench-train          training against the field's loop, torchmil's and CLAM's trainers (an hour)"
	@echo "make bench-train-gpu      five folds on a CUDA device against one"
	@echo "make bench-scale          Dask workers against one, against local processes; workers killed (half an hour)"
	@echo "make test-dask            a Dask cluster whose workers and scheduler are killed (minutes)"
	@echo "make test-chaos           files that hang, crash or starve their reader, sixty at a time (minutes; gcc)"
	@echo "make bench-view           20 clients of the viewer on a slide of 100,000 x 100,000 pixels"
	@echo "make test-docker          the image and the compose commands, with a real Docker engine (a build is 6 GB)"
	@echo "make test-slurm           the jobs of pipelines/slurm, with a Slurm started here (root; Debian's packages)"
	@echo "make lint                 ruff (lint and format) and mypy --strict"
	@echo "make format               let ruff format"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "wsi-mil needs Python 3.11 or newer; this is " + sys.version.split()[0] + " (make PYTHON=python3.12 ...)")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/python -m pipelines.demo.cohort demo
	$(BIN)/wsi-mil run $(DEMO)
	@$(BIN)/python -m pipelines.demo.summary demo/run demo/truth

demo-random-weights: $(READY)
	$(BIN)/python -m pipelines.demo.cohort demo
	$(BIN)/python -m pipelines.demo.random_weights demo/random.safetensors
	$(BIN)/wsi-mil tile --config $(DEMO) --run demo/run-random
	$(BIN)/wsi-mil embed --config $(DEMO) --run demo/run-random --weights demo/random.safetensors
	$(BIN)/wsi-mil train --config $(DEMO) --run demo/run-random
	$(BIN)/wsi-mil heatmap --config $(DEMO) --run demo/run-random
	@$(BIN)/python -m pipelines.demo.summary demo/run-random demo/truth

# make bench-tile TILES=DIR CLAM=DIR: real patches by class (NCT-CRC-HE, Kather 2016), a checkout of CLAM; left
# out without.
bench-tile: $(READY)
	$(BIN)/python -m benchmarks.tile --folder bench --append $(if $(TILES),--tiles $(TILES)) $(if $(CLAM),--clam $(CLAM))

# cuCIM is one of the baselines, where it installs; it works on a CPU with these two packages alone.
bench-read: $(READY)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps cucim-cu13 lazy-loader
	$(BIN)/python -m benchmarks.read --folder bench --append

bench-inspect: $(READY)
	$(BIN)/python -m benchmarks.inspect_slides --folder bench --append

bench-coverage: $(READY)
	$(BIN)/python -m benchmarks.coverage --append

bench-embed: $(READY)
	$(BIN)/python -m benchmarks.embed --folder bench --append

bench-feed: $(READY)
	$(BIN)/python -m benchmarks.feed --folder bench --append

bench-heatmap: $(READY)
	$(BIN)/python -m benchmarks.heatmap --folder bench --append

bench-embed-gpu: $(READY)
	$(BIN)/python -m benchmarks.embed_gpu --folder bench --append

# make bench-train CLAM=DIR, with your own copy of mahmoodlab/CLAM (GPL-3, no part of this project).
bench-train: $(READY)
	$(if $(CLAM),$(BIN)/python -m pip install --quiet --disable-pip-version-check pandas)
	$(BIN)/python -m benchmarks.train --folder bench --append $(if $(CLAM),--clam $(CLAM))

bench-train-gpu: $(READY)
	$(BIN)/python -m benchmarks.train_gpu --folder bench --append

bench-scale: $(READY)
	$(BIN)/python -m benchmarks.scale --folder bench --append

bench-view: $(READY)
	$(BIN)/python -m benchmarks.view --folder bench --append

# Two processes of a core each; a file's tests stay together, since they share what they made.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# As root it also tests machines with addresses of their own (network namespaces).
test-dask: $(READY)
	$(BIN)/python -m pytest -m dask

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu

# Debian: apt-get install chromium chromium-driver. Without a browser these tests are skipped, and say so.
test-browser: $(READY)
	$(BIN)/python -m pytest -m browser

# Where no image registry can be reached: WSI_MIL_TEST_BASE=IMAGE, an image with Python, venv and pip that is there;
# where the engine has no bridge network: WSI_MIL_TEST_BUILD_NETWORK=host.
test-docker: $(READY)
	$(BIN)/python -m pytest -m docker -s

# Needs gcc: a small library is preloaded that strikes by the files' names.
test-chaos: $(READY)
	$(BIN)/python -m pytest -m chaos -s

test-slurm: $(READY)
	$(BIN)/python -m pytest -m slurm

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
