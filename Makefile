# Every target builds its own prerequisites. You only need make and Python 3.11 or later.
PYTHON ?= python3
BIN := .venv/bin
MODEL ?= fashion
FASHION_MNIST ?= /usr/share/datasets/fashion-mnist

.PHONY: install demo test test-kernels coverage lint format train-fashion train-fashion-fast train-scenes tables figures notebooks docs reproduce reproduce-quick bench bench-quick dist clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/python examples/demo.py --model $(MODEL)

# Each test computes in one thread. Each worker runs whole files, so that the fixtures of a file are built once.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

test: lint
	$(PYTEST)
	$(MAKE) test-kernels

# Run the tests and report line and branch coverage. This takes a third longer.
coverage: .venv/installed
	$(PYTEST) --cov=diffusion_classifier --cov-report=term:skip-covered

# Run the tests that compare float32 sums in two processes: one without vector instructions, one with AVX2 and
# perturbed last bits (tests/rounding.py). Other processors ignore the variables.
KERNELS := tests/test_reference.py tests/search/test_caption_scores.py tests/test_classifier.py \
  $(addprefix tests/runs/test_evaluators.py::,test_rows_are_what_the_classifier_says test_pairs_have_the_null_condition) \
  $(addprefix tests/runs/test_evaluation.py::,test_rows_are_what_the_classifier_says test_parts_make_the_whole) \
  tests/search/test_candidates.py::test_elimination_with_several_prompts \
  tests/search/test_engine.py::test_equals_a_plain_loop tests/search/test_shortlists.py::TestAnySearchFollows
AVX2 := $(shell grep -qsm1 avx2 /proc/cpuinfo && echo avx2 || echo default)

test-kernels: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not slow' --dist each \
	  --tx popen//env:ATEN_CPU_CAPABILITY=default//env:ONEDNN_MAX_CPU_ISA=SSE41 \
	  --tx popen//env:ATEN_CPU_CAPABILITY=$(AVX2)//env:ONEDNN_MAX_CPU_ISA=AVX2//env:MKL_ENABLE_INSTRUCTIONS=AVX2//env:OTHER_BITS=1 \
	  $(KERNELS)

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Needs the four IDX files of Fashion-MNIST in $(FASHION_MNIST). On Debian: apt-get install dataset-fashion-mnist.
train-fashion: .venv/installed
	$(BIN)/diffusion-classifier train $(FASHION_MNIST) --out build/fashion --validation 5000 --seed 0 \
	  --class-names 'T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot' \
	  --objective v_prediction --beta-schedule squaredcos_cap_v2 --patch-size 2 --channels 64,128 --layers 2 \
	  --epochs 5.5 --batch-size 32 --optimizer muon --learning-rate 2e-3 --warmup 200 --ema 0.999

# Train on the same images with late conditioning (shared backbone and class-conditional head) and a joint
# classification loss. Times of low noise are sampled more often.
train-fashion-fast: .venv/installed
	$(BIN)/diffusion-classifier train $(FASHION_MNIST) --out build/fashion-fast --validation 5000 --seed 0 \
	  --class-names 'T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot' \
	  --objective v_prediction --beta-schedule squaredcos_cap_v2 --patch-size 2 --channels 64,128 --layers 2 \
	  --head 32 --head-layers 1 --features 64 --joint 0.05 --rivals 3 --flip --times tools/fashion_fast_times.json \
	  --epochs 20 --batch-size 64 --optimizer muon --learning-rate 2e-3 --warmup 200 --ema 0.999

SCENES_UNET = --objective v_prediction --beta-schedule squaredcos_cap_v2 --channels 64,128 --layers 2 --attention \
  --epochs 3 --batch-size 96 --optimizer muon --learning-rate 2e-3 --warmup 200 --ema 0.999

# Compose scenes of the same images. The contrastive model and the autoencoder are trained once. The U-Net is trained
# on one set of scenes, then on another.
train-scenes: .venv/installed
	for seed in 0 1; do test -e build/scenes-$$seed.parquet || $(BIN)/diffusion-classifier scenes \
	  --data $(FASHION_MNIST) --split train --number 200000 --seed $$seed --out build/scenes-$$seed.parquet || exit; done
	$(BIN)/diffusion-classifier train build/scenes-0.parquet --out build/scenes-0 --seed 0 --contrastive epochs=3.5 \
	  --autoencoder channels=16/32/64,epochs=0.4,batch_size=32,learning_rate=1.5e-3 $(SCENES_UNET)
	$(BIN)/diffusion-classifier train build/scenes-1.parquet --out build/scenes-1 --seed 1 --start build/scenes-0 \
	  --contrastive build/scenes-0/contrastive --autoencoder build/scenes-0/vae $(SCENES_UNET)

# Reproduce the paper's tables 1 and 3 at small scale. This takes hours; an interrupted run resumes.
tables: .venv/installed
	$(BIN)/python experiments/tables.py $(FASHION_MNIST) build/tables docs

# Execute the notebooks in place and store their outputs.
notebooks: .venv/installed
	$(BIN)/python tools/notebooks.py notebooks/*.ipynb

# Draw counterparts of the paper's figures with the bundled models.
figures: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/figures.py docs/figures

# Test the paper's claims on the bundled models: build/reproduce/whole/report.html, or quick/report.html.
reproduce: .venv/installed
	$(BIN)/diffusion-classifier reproduce --out build/reproduce

reproduce-quick: .venv/installed
	$(BIN)/diffusion-classifier reproduce --quick --out build/reproduce

# Measure speed on this machine, as ratios to the plain reference loop (benchmarks/reference.py).
bench: .venv/installed
	$(BIN)/python benchmarks/run.py --model $(MODEL)

bench-quick: .venv/installed
	$(BIN)/python benchmarks/run.py --quick --model $(MODEL)

# Build the documentation as pages that a browser opens from disk: build/site/index.html.
docs: .venv/installed
	$(BIN)/mkdocs build --quiet --strict

# Build the distributions: dist/*.whl and *.tar.gz.
dist: .venv/installed
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf .venv build dist demo.png
