"""The settings of a training run: a frozen dataclass with a help text at every field.

The command line is made from these fields, and the run file stores them, so every setting has one
name. The rules at a field say where its option has an effect (`only_with`, `not_with`). This file
imports the standard library only.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from localavg.errors import UserError, at_least, bad, check_choice, positive

SAMPLING = ("iid", "shuffle", "shard", "block")
OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam")
STATES = ("keep", "average", "reset")
STEP_SIZES = ("constant", "steps", "inverse")
ASYNCHRONOUS = ("downpour", "eamsgd")  # the algorithms with servers in place of averages
TRANSPORTS = ("auto", "shared", "mpi", "cuda_aware", "staged", "nccl")
UNITS_S = {"s": 1, "min": 60, "h": 3600}


@dataclass(frozen=True)
class Rule:
    """Where an option has an effect: with one of these `values` of another `setting`.

    inverted: with any value but these. Without `values`: with any value but None, False, 0 and the
    like. value: the rule is about this value of the option alone. or_algorithm: an algorithm with
    which the option has an effect in any case. because: what the error adds about the other
    setting's value. lenient: whether the option may be given at its default.
    """

    setting: str
    values: tuple[object, ...] = ()
    inverted: bool = False
    value: object = None
    or_algorithm: str = ""
    because: str = ""
    lenient: bool = False

    def broken(self, c: TrainConfig, value: object, is_default: bool) -> bool:
        """Return whether the option with this value has no effect under the settings c."""
        if (self.lenient and is_default) or self.value not in (None, value):
            return False
        if c.algorithm == self.or_algorithm:
            return False
        beside = getattr(c, self.setting)
        allowed = (beside in self.values) != self.inverted if self.values else bool(beside)
        return not allowed

    def error(self, c: TrainConfig, name: str, value: object) -> UserError:
        """Make the error: what is wrong with the option under the settings c, and what to do."""
        beside = getattr(c, self.setting)
        if self.setting == "algorithm":
            beside = c.algorithm
        elif beside is True:
            beside = f"a run with `{self.setting}`"
        elif not beside:
            beside = f"a run without `{self.setting}`"
        else:
            beside = f"`{self.setting} = {beside}`"
        remedy = "leave it out"
        if not self.values:
            remedy = f"add `{self.setting}`, or {remedy}"
        elif not self.inverted and self.setting != "algorithm":
            remedy = f"use `{self.setting} = {self.values[-1]}`, or {remedy}"
        because = f", {self.because}" if self.because else ""
        return UserError(f"{said(name, value)} means nothing to {beside}{because}; {remedy}")


def only_with(setting: str, *values: object, **more: Any) -> Rule:
    """Make the rule of an option that needs one of these values of another setting."""
    return Rule(setting, values, **more)


def not_with(setting: str, *values: object, **more: Any) -> Rule:
    """Make the rule of an option that has no effect with these values of another setting."""
    return Rule(setting, values, inverted=True, **more)


def said(name: str, value: object) -> str:
    """Return a setting and its value as errors write them."""
    if value is True:
        return f"`{name}`"
    text = " ".join(map(str, value)) if isinstance(value, tuple) else value
    return f"`{name} = {text}`"


def option(default: Any, help: str, *rules: Rule, group: str, **extra: Any) -> Any:
    """Make a dataclass field with the help text of an option and the rules of its effect.

    group: the group of the option in ``--help``. extra: keyword arguments for argparse.
    """
    return field(default=default, metadata={"help": help, "rules": rules, "group": group, **extra})


NETWORK = not_with("problem", "logistic")
STEPS = only_with("lr_schedule", "steps")
INVERSE = only_with("lr_schedule", "inverse")
SYNCHRONOUS = not_with(
    "algorithm", *ASYNCHRONOUS, lenient=True, because="whose local update and messages are its own"
)
KEPT = (
    not_with("algorithm", *ASYNCHRONOUS, because="which makes no checkpoints"),
    not_with("simulate", True, because="which makes no checkpoints"),
)
MODELLED = only_with("simulate", because="whose time is measured")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that defines a training run; `options` are those of the algorithm.

    Raises UserError for a value that breaks its rule, and for a setting that has no effect together
    with the others.
    """

    algorithm: str = field(metadata={"help": "which algorithm", "group": ""})
    options: Mapping[str, Any] = field(
        default_factory=dict, metadata={"help": "the algorithm's own options", "group": ""}
    )

    data: str = option(
        "epsilon-like",
        "data to train on: a prepared .h5 file, epsilon-like[:ROWSxFEATURES], digits or "
        "cifar10-like[:ROWS]",
        group="data",
    )
    problem: str | None = option(
        None,
        "what to minimise: the loss of logistic regression, or a network's cross-entropy "
        "(default: network with --model or images, else logistic)",
        group="data",
        choices=("logistic", "network"),
    )
    l2: float = option(
        1e-4, "weight λ of the ℓ2 term (λ/2)‖w‖²; for a network, its weight decay", group="data"
    )
    sampling: str = option(
        "iid",
        "how a learner draws its examples: at random with replacement (iid), its part of a common "
        "random order that is new in every epoch (shuffle), its own part of the data in random "
        "order (shard), or consecutive rows from a random place (block)",
        group="data",
        choices=SAMPLING,
    )
    force_block: bool = option(
        False,
        "allow --sampling block for data that was not shuffled when it was prepared",
        group="data",
    )

    model: str | None = option(
        None, "network to train (default: none)", NETWORK, group="network", metavar="NAME"
    )
    no_augment: bool = option(
        False,
        "train on the stored images, without random crops and flips",
        NETWORK,
        group="network",
    )
    statistics: str = option(
        "average",
        "what happens to BatchNorm's running mean and variance at an average",
        NETWORK,
        SYNCHRONOUS,
        group="network",
        choices=("average", "keep"),
    )
    calibrate: int = option(
        0,
        "number of mini-batches from which to estimate BatchNorm's statistics again before an "
        "evaluation; 0 keeps the statistics",
        NETWORK,
        group="network",
    )
    precision: str = option(
        "float32",
        "arithmetic of the network; the weights are always float32, and tf32 needs a GPU",
        NETWORK,
        only_with("device", "cuda", value="tf32"),
        group="network",
        choices=("float32", "tf32", "bf16"),
    )
    compile: bool = option(
        False, "compile the network with torch.compile", NETWORK, group="network"
    )
    cuda_graphs: bool = option(
        False,
        "compute gradients by CUDA graphs, with the learners of a GPU in parallel; not yet tested "
        "on a GPU",
        NETWORK,
        only_with("device", "cuda", because="and graphs are a GPU's"),
        not_with("compile", True, because="which rebuilds the gradient too"),
        group="network",
    )

    learners: int | None = option(
        None,
        "number of learners P, at least one per rank (default: one per rank)",
        group="learners",
    )
    ranks_per_node: int | None = option(
        None,
        "number of ranks of a host that count as one node (default: all ranks of the host)",
        SYNCHRONOUS,
        group="learners",
    )
    transport: str = option(
        "auto",
        "how a mean travels between ranks: from host memory by shared memory in a node (shared) "
        "or by MPI alone (mpi); from GPU memory by NCCL (nccl), by MPI on GPU memory (cuda_aware) "
        "or by MPI on copies in host memory (staged); or by the first of these that works (auto)",
        SYNCHRONOUS,
        group="learners",
        choices=TRANSPORTS,
    )
    device: str = option(
        "cpu",
        "where the learners compute",
        not_with(
            "algorithm",
            *ASYNCHRONOUS,
            value="cuda",
            because="whose learners compute on the CPU so far",
        ),
        group="learners",
        choices=("cpu", "cuda"),
    )

    steps: int | None = option(
        None,
        "length T of the run, in local updates per learner (default: --epochs counts)",
        group="training",
    )
    epochs: float | None = option(
        None,
        "length of the run, in passes over the data by all learners together (default: 1)",
        group="training",
    )
    batch_size: int = option(
        128, "size B of a learner's mini-batch, in examples per update", group="training"
    )
    optimizer: str = option(
        "sgd",
        "optimiser of a learner's local updates",
        SYNCHRONOUS,
        group="training",
        choices=OPTIMIZERS,
    )
    momentum: float = option(
        0.9,
        "momentum coefficient of --optimizer momentum and nesterov, in [0, 1); for eamsgd, its δ",
        not_with("algorithm", "downpour"),
        only_with("optimizer", "nesterov", "momentum", or_algorithm="eamsgd"),
        group="training",
    )
    state: str = option(
        "keep",
        "what happens to the optimizer's state at an average",
        SYNCHRONOUS,
        group="training",
        choices=STATES,
    )
    seed: int = option(0, "seed of all random numbers", group="training")

    lr: float = option(
        0.01,
        "step size γ",
        not_with("lr_schedule", "inverse", because="whose γ_t is 4/(μ(t+a))"),
        group="step size",
    )
    lr_schedule: str = option(
        "constant",
        "how γ_t changes: not at all (constant), by --factor at --milestones or every "
        "--decay-every epochs (steps), or as 4/(μ(t+a)) (inverse)",
        group="step size",
        choices=STEP_SIZES,
    )
    factor: float = option(
        0.1,
        "number that multiplies γ at --milestones or every --decay-every epochs",
        STEPS,
        group="step size",
    )
    milestones: tuple[float, ...] = option(
        (),
        "numbers of epochs after which γ is multiplied by --factor (default: none)",
        STEPS,
        group="step size",
        metavar="X",
    )
    decay_every: float | None = option(
        None,
        "number of epochs between two multiplications of γ by --factor (default: none)",
        STEPS,
        group="step size",
    )
    warmup_epochs: float = option(
        0.0, "length of the linear warm-up of γ, in epochs", group="step size"
    )
    warmup_from: float | None = option(
        None,
        "step size at the start of the warm-up (default: --lr / 10)",
        only_with("warmup_epochs"),
        group="step size",
    )
    pl_constant: float | None = option(
        None,
        "PL constant μ of --lr-schedule inverse, which needs it (default: none)",
        INVERSE,
        group="step size",
    )
    shift: float | None = option(
        None,
        "shift a of --lr-schedule inverse, in updates (default: 0)",
        INVERSE,
        group="step size",
    )

    out: str | None = option(
        None, "run file to write (default: runs/ALGORITHM-sSEED.h5)", group="output"
    )
    save_weights: bool = option(
        False,
        "store the first and the last weights in the run file, as /initial_weights and /weights",
        group="output",
    )
    variance: str = option(
        "no",
        "what to record of the learners' variance: nothing (no), S at every average (averages), "
        "or in addition V_t of every period (steps), which takes one more mean per step; wall_s "
        "leaves its time out",
        SYNCHRONOUS,
        group="output",
        choices=("no", "averages", "steps"),
    )
    grad_norm: bool = option(
        False,
        "record ‖∇F(w̄)‖² at every evaluation, which takes one more pass over the data",
        group="output",
    )
    log_every: int | None = option(
        None, "number of updates between two rows of /train (default: T / 100)", group="output"
    )
    eval_every: int | None = option(
        None, "number of updates between two evaluations (default: T / 20)", group="output"
    )
    eval_examples: int | None = option(
        None,
        "number of examples of each split to evaluate, spread over the split (default: all)",
        group="output",
    )

    checkpoint_every: str | None = option(
        None,
        "time between two checkpoints, such as 90s, 10min, 2h or H:MM:SS, or a number of updates "
        "(default: save only before a stop)",
        *KEPT,
        group="stopping and resuming",
        metavar="TIME",
    )
    time_limit: str | None = option(
        None,
        "time after which to save a checkpoint and stop with exit status 75, such as 90s, 50min, "
        "2h or H:MM:SS (default: no limit)",
        *KEPT,
        group="stopping and resuming",
        metavar="TIME",
    )
    resume: bool = option(
        False,
        "resume the run in --out from its checkpoint; do nothing if it is finished",
        group="stopping and resuming",
    )
    replay: str | None = option(
        None,
        "serve the learners in the order of this run (default: in the order of arrival)",
        only_with("algorithm", *ASYNCHRONOUS),
        not_with("simulate", True, because="which repeats itself"),
        group="stopping and resuming",
        metavar="RUN.h5",
    )

    simulate: bool = option(
        False,
        "model the times in place of measuring them: downpour and eamsgd run on one rank, in the "
        "modelled order; other algorithms train as usual and record modelled times",
        group="simulated time",
    )
    timing_from: str | None = option(
        None,
        "take the modelled times from this measured run of kavg or another algorithm, on 2 ranks "
        "or more (default: the values below)",
        MODELLED,
        group="simulated time",
        metavar="RUN.h5",
    )
    step_s: float | None = option(
        None,
        "mean time of a local update, in seconds (default: 0.01)",
        MODELLED,
        group="simulated time",
    )
    step_cv: float | None = option(
        None,
        "standard deviation of a local update's time, divided by its mean; the times are lognormal "
        "(default: 0.1)",
        MODELLED,
        group="simulated time",
    )
    latency_s: float | None = option(
        None, "latency of a message, in seconds (default: 5e-6)", MODELLED, group="simulated time"
    )
    bandwidth_bytes_per_s: float | None = option(
        None,
        "bandwidth of a learner's or server's link, in bytes per second (default: 1e10)",
        MODELLED,
        group="simulated time",
    )
    service_s: float | None = option(
        None,
        "time that a server needs for one exchange, without the transfer, in seconds (default: "
        "1e-4)",
        only_with("algorithm", *ASYNCHRONOUS, because="which has no servers"),
        MODELLED,
        group="simulated time",
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            check_choice(f.name, getattr(self, f.name), f.metadata.get("choices"))
        self._check_ranges()
        if self.steps is not None and self.epochs is not None:
            raise UserError(
                f"`steps = {self.steps}` and `epochs = {self.epochs:g}` both set the length: give "
                "one of them"
            )
        self.refuse_useless()
        self._check_lr_schedule()

    def refuse_useless(self, given: Collection[str] = ()) -> None:
        """Raise UserError for a setting that has no effect together with the others.

        Settings at their default are not checked, unless they are `given`.
        """
        for f in fields(self):
            value = getattr(self, f.name)
            if (is_default := value == f.default) and f.name not in given:
                continue
            for rule in f.metadata.get("rules", ()):
                if rule.broken(self, value, is_default):
                    raise rule.error(self, f.name, value)

    def _check_ranges(self) -> None:
        for name in (
            "learners",
            "ranks_per_node",
            "steps",
            "batch_size",
            "log_every",
            "eval_every",
        ):
            at_least(name, getattr(self, name), 1)
        at_least("eval_examples", self.eval_examples, 1)
        at_least("seed", self.seed, 0)
        at_least("calibrate", self.calibrate, 0)
        for name in ("lr", "epochs", "factor", "decay_every", "warmup_from", "pl_constant"):
            positive(name, getattr(self, name))
        lengths = [("milestones", m) for m in self.milestones]
        lengths.append(("warmup_epochs", self.warmup_epochs))
        for name, x in [("l2", self.l2), ("shift", self.shift), *lengths]:
            if x is not None and not 0 <= x < math.inf:
                raise bad(name, x, "must be a finite number of at least 0")
        for name, x in [("epochs", self.epochs), *lengths]:
            if x is not None and x > 1e9:
                raise bad(name, x, "must be at most 1e9 epochs")
        if not 0 <= self.momentum < 1:
            raise bad("momentum", self.momentum, "must lie in [0, 1)")
        if self.seed >= 2**63:
            raise bad("seed", self.seed, "must be below 2^63")
        if self.checkpoint_every and self.checkpoint_every.isdecimal():
            at_least("checkpoint_every", int(self.checkpoint_every), 1)
        else:
            seconds("checkpoint_every", self.checkpoint_every)
        seconds("time_limit", self.time_limit)

    def _check_lr_schedule(self) -> None:
        decays = bool(self.milestones) + (self.decay_every is not None)
        if self.lr_schedule == "steps" and decays != 1:
            raise UserError(
                "`lr_schedule = steps` needs one of `milestones` and `decay_every`, in epochs"
            )
        if self.lr_schedule == "inverse" and self.pl_constant is None:
            raise UserError(
                "`lr_schedule = inverse` needs `pl_constant`, the μ of γ_t = 4/(μ(t+a))"
            )

    @property
    def path(self) -> str:
        """The path of the run file."""
        return self.out or os.path.join("runs", f"{self.algorithm}-s{self.seed}.h5")


def seconds(name: str, text: str | None) -> float | None:
    """Return the seconds in an option's text: a number with s, min or h, or H:MM:SS."""
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
