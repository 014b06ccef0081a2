"""The settings of a training run: a frozen dataclass, one line of help a field. Standard library
only.

The command line is made from these fields, and the run file stores them, so a setting is named
once.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from localavg.errors import UserError, at_least, bad, check_choice, positive


def option(default: Any, help: str, *, group: str, **extra: Any) -> Any:
    """A dataclass field with its help text, its group in ``--help`` and what argparse should know
    beside.
    """
    return field(default=default, metadata={"help": help, "group": group, **extra})


SAMPLING = ("iid", "shuffle", "shard", "block")
OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam")
STATES = ("keep", "average", "reset")
STEP_SIZES = ("constant", "steps", "inverse")
UNITS_S = {"s": 1, "min": 60, "h": 3600}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that defines a training run; `options` are those of the algorithm."""

    algorithm: str = field(metadata={"help": "which algorithm", "group": ""})
    options: Mapping[str, Any] = field(
        default_factory=dict, metadata={"help": "the algorithm's own options", "group": ""}
    )

    data: str = option(
        "epsilon-like",
        "a prepared .h5 file, or epsilon-like[:ROWSxFEATURES], digits, cifar10-like[:ROWS]",
        group="data",
    )
    problem: str | None = option(
        None,
        "the loss (default: what the data and --model call for)",
        group="data",
        choices=("logistic", "network"),
    )
    l2: float = option(
        1e-4, "λ of the ℓ2 term (λ/2)‖w‖²; for networks the weight decay", group="data"
    )
    sampling: str = option("iid", "which examples a learner draws", group="data", choices=SAMPLING)
    force_block: bool = option(
        False, "allow block sampling of data that was not shuffled", group="data"
    )

    model: str | None = option(None, "the network", group="network", metavar="NAME")
    no_augment: bool = option(
        False, "train on the images as they are: no random crops and flips", group="network"
    )
    statistics: str = option(
        "average",
        "BatchNorm's running mean and variance at an average",
        group="network",
        choices=("average", "keep"),
    )
    calibrate: int = option(
        0,
        "re-estimate BatchNorm's statistics from so many mini-batches before an evaluation",
        group="network",
    )
    precision: str = option(
        "float32",
        "of the arithmetic; weights are always float32; tf32: of GPUs",
        group="network",
        choices=("float32", "tf32", "bf16"),
    )
    compile: bool = option(False, "torch.compile the network", group="network")
    cuda_graphs: bool = option(
        False,
        "replay gradients as CUDA graphs, the learners of a GPU side by side; needs --device "
        "cuda, not yet run on a GPU",
        group="network",
    )

    learners: int | None = option(
        None, "P, one a rank at least (default: one a rank)", group="learners"
    )
    ranks_per_node: int | None = option(
        None, "split each machine into nodes of so many ranks", group="learners"
    )
    transport: str = option(
        "auto",
        "how a mean travels",
        group="learners",
        choices=("auto", "shared", "mpi", "cuda_aware", "staged", "nccl"),
    )
    device: str = option(
        "cpu", "where the learners compute", group="learners", choices=("cpu", "cuda")
    )

    steps: int | None = option(None, "T, local updates per learner", group="training")
    epochs: float | None = option(
        None, "passes over the data by all learners together (default: 1)", group="training"
    )
    batch_size: int = option(128, "B, mini-batch per learner", group="training")
    optimizer: str = option("sgd", "the local update", group="training", choices=OPTIMIZERS)
    momentum: float = option(
        0.9, "coefficient of momentum and nesterov; δ of eamsgd", group="training"
    )
    state: str = option(
        "keep", "the optimiser's state at an average", group="training", choices=STATES
    )
    seed: int = option(0, "of all random draws", group="training")

    lr: float = option(0.01, "γ, the step size", group="step size")
    schedule: str = option(
        "constant",
        "γ_t: constant, multiplied at --milestones or --every epochs (steps), or "
        "4/(μ(t+a)) (inverse)",
        group="step size",
        choices=STEP_SIZES,
    )
    factor: float = option(0.1, "multiplies γ at every milestone", group="step size")
    milestones: tuple[float, ...] = option(
        (), "epochs after which γ is multiplied", group="step size"
    )
    every: float | None = option(None, "multiply γ after every so many epochs", group="step size")
    warmup_epochs: float = option(0.0, "linear warm-up over so many epochs", group="step size")
    warmup_from: float | None = option(
        None, "γ at the start of the warm-up (default: lr / 10)", group="step size"
    )
    pl_constant: float | None = option(None, "μ of the inverse schedule", group="step size")
    shift: float | None = option(None, "a of the inverse schedule", group="step size")

    out: str | None = option(
        None, "the run file (default: runs/ALGORITHM-sSEED.h5)", group="output"
    )
    save_weights: bool = option(False, "store /initial_weights and /weights", group="output")
    variance: str = option(
        "no",
        "record the learners' variance: S at averages, or V_t too, which takes one more mean a "
        "step "
        "outside the clock (steps)",
        group="output",
        choices=("no", "averages", "steps"),
    )
    grad_norm: bool = option(
        False, "‖∇F(w̄)‖² at every evaluation, another pass over the data", group="output"
    )
    log_every: int | None = option(
        None, "steps between rows of /train (default: T / 100)", group="output"
    )
    eval_every: int | None = option(
        None, "steps between evaluations (default: T / 20)", group="output"
    )

    eval_examples: int | None = option(
        None,
        "evaluate on so many examples of each split, spread over it (default: all)",
        group="output",
        metavar="N",
    )
    checkpoint_every: str | None = option(
        None, "save so often: 10min, 2h, or a number of steps", group="keeping", metavar="TIME"
    )
    time_limit: str | None = option(
        None,
        "save and stop after 90s, 50min, 2h or H:MM:SS (exit status 75)",
        group="keeping",
        metavar="TIME",
    )
    simulate: bool = option(
        False,
        "a modelled clock in place of a measured one: downpour and eamsgd run in its order, on one "
        "rank; other algorithms train as usual and record its times",
        group="simulated time",
    )
    machine: str | None = option(
        None,
        "take the model from this measured run of 2 ranks or more, such as one of kavg",
        group="simulated time",
        metavar="RUN.h5",
    )
    step_s: float | None = option(
        None, "mean seconds of a local update (default: 0.01)", group="simulated time"
    )
    step_cv: float | None = option(
        None,
        "their standard deviation over their mean, lognormal (default: 0.1)",
        group="simulated time",
    )
    latency_s: float | None = option(
        None, "seconds of a message (default: 5e-6)", group="simulated time"
    )
    bandwidth_bytes_per_s: float | None = option(
        None, "of a learner's or server's link (default: 1e10)", group="simulated time"
    )
    service_s: float | None = option(
        None,
        "seconds of a server for an exchange beside its bytes (default: 1e-4)",
        group="simulated time",
    )
    replay: str | None = option(
        None,
        "let the servers of downpour or eamsgd serve in the order of this run",
        group="keeping",
        metavar="RUN.h5",
    )
    resume: bool = option(
        False,
        "go on with the run in --out from its checkpoint; done already: do nothing",
        group="keeping",
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            check_choice(f.name, getattr(self, f.name), f.metadata.get("choices"))
        at_least("learners", self.learners, 1)
        at_least("ranks_per_node", self.ranks_per_node, 1)
        at_least("steps", self.steps, 1)
        at_least("batch_size", self.batch_size, 1)
        at_least("log_every", self.log_every, 1)
        at_least("eval_every", self.eval_every, 1)
        at_least("eval_examples", self.eval_examples, 1)
        at_least("seed", self.seed, 0)
        at_least("calibrate", self.calibrate, 0)
        positive("lr", self.lr)
        positive("epochs", self.epochs)
        positive("factor", self.factor)
        positive("every", self.every)
        positive("warmup_from", self.warmup_from)
        positive("pl_constant", self.pl_constant)
        for name in ("l2", "warmup_epochs", "shift", *(("milestones",) if self.milestones else ())):
            value = getattr(self, name)
            for x in value if isinstance(value, tuple) else (value,):
                if x is not None and not 0 <= x < math.inf:
                    raise bad(name, x, "must be a finite number of at least 0")
        lengths = [("milestones", m) for m in self.milestones]
        for name, x in [("epochs", self.epochs), ("warmup_epochs", self.warmup_epochs), *lengths]:
            if x is not None and x > 1e9:
                raise bad(name, x, "must be at most 1e9 epochs")
        if not 0 <= self.momentum < 1:
            raise bad("momentum", self.momentum, "must lie in [0, 1)")
        if self.seed >= 2**63:
            raise bad("seed", self.seed, "must be below 2^63")
        if self.steps is not None and self.epochs is not None:
            raise UserError(
                f"--steps {self.steps} and --epochs {self.epochs:g} both set the length: give one "
                "of them"
            )
        self._check_schedule()
        if self.problem == "logistic" and self.model:
            raise UserError(
                f"--model {self.model} means nothing to --problem logistic; leave one of them out"
            )
        if self.cuda_graphs:
            self._check_cuda_graphs()
        if self.checkpoint_every and self.checkpoint_every.isdecimal():
            at_least("checkpoint_every", int(self.checkpoint_every), 1)
        else:
            seconds("checkpoint_every", self.checkpoint_every)
        seconds("time_limit", self.time_limit)

    def _check_cuda_graphs(self) -> None:
        if self.problem == "logistic":
            raise UserError(
                "--cuda-graphs means nothing to --problem logistic; leave one of them out"
            )
        if self.device != "cuda":
            raise UserError(
                f"--cuda-graphs with --device {self.device}: graphs are a GPU's; add --device cuda "
                "or leave it out"
            )
        if self.compile:
            raise UserError(
                "--cuda-graphs and --compile both rebuild the gradient: give one of them"
            )

    def _check_schedule(self) -> None:
        given = {
            name
            for name in ("milestones", "every", "pl_constant", "shift")
            if getattr(self, name) not in (None, ())
        }
        used = {
            "constant": set(),
            "steps": {"milestones", "every"},
            "inverse": {"pl_constant", "shift"},
        }[self.schedule]
        if stray := sorted(given - used):
            needs = "steps" if stray[0] in ("milestones", "every") else "inverse"
            raise UserError(
                f"--{stray[0].replace('_', '-')} means nothing to --schedule {self.schedule}: "
                f"add --schedule {needs} or leave it out"
            )
        if self.schedule == "steps" and len(given) != 1:
            raise UserError("--schedule steps needs one of --milestones and --every, in epochs")
        if self.schedule == "inverse" and self.pl_constant is None:
            raise UserError("--schedule inverse needs --pl-constant, the μ of γ_t = 4/(μ(t+a))")

    @property
    def path(self) -> str:
        """Where the run file goes."""
        return self.out or os.path.join("runs", f"{self.algorithm}-s{self.seed}.h5")


def seconds(name: str, text: str | None) -> float | None:
    """The seconds that an option's text stands for: a number with s, min or h, or H:MM:SS."""
    if text is None:
        return None
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h)", text):
        total = float(match[1]) * UNITS_S[match[2]]
    elif match := re.fullmatch(r"(\d+):([0-5]?\d):([0-5]?\d)", text):
        total = int(match[1]) * 3600.0 + int(match[2]) * 60 + int(match[3])
    else:
        raise bad(name, text, "must be a time such as 90s, 50min, 2h or 1:30:00")
    positive(name, total)
    return total
