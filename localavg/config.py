"""The settings of a training run: a frozen dataclass, a sentence of help at every field. Standard
library only.

The command line is made from these fields, and the run file stores them, so a setting is named
once. A field says itself where its option has an effect (`only_with`, `not_with`).
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
    """Where an option has an effect: with one of these `values` of another setting, or with any but
    these where it is `inverted`; without values, with any but None, False, 0 and the like.

    value: the rule is about this value of the option alone. or_algorithm: under which the option
    has an effect in any case. because: what to tell of the other setting's value. lenient: the
    option may be given at its default.
    """

    setting: str
    values: tuple[Any, ...] = ()
    inverted: bool = False
    value: Any = None
    or_algorithm: str = ""
    because: str = ""
    lenient: bool = False

    def broken(self, c: TrainConfig, value: Any, is_default: bool) -> bool:
        """Whether the option with this value does nothing under the settings c."""
        if (self.lenient and is_default) or self.value not in (None, value):
            return False
        if c.algorithm == self.or_algorithm:
            return False
        beside = getattr(c, self.setting)
        allowed = (beside in self.values) != self.inverted if self.values else bool(beside)
        return not allowed

    def error(self, c: TrainConfig, name: str, value: Any) -> UserError:
        """What is wrong with the option under the settings c, and what to do."""
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


def only_with(setting: str, *values: Any, **more: Any) -> Rule:
    """The rule of an option that needs one of these values of another setting."""
    return Rule(setting, values, **more)


def not_with(setting: str, *values: Any, **more: Any) -> Rule:
    """The rule of an option that does nothing beside these values of another setting."""
    return Rule(setting, values, inverted=True, **more)


def said(name: str, value: Any) -> str:
    """A setting and its value as errors write them."""
    if value is True:
        return f"`{name}`"
    text = " ".join(map(str, value)) if isinstance(value, tuple) else value
    return f"`{name} = {text}`"


def option(default: Any, help: str, *rules: Rule, group: str, **extra: Any) -> Any:
    """A dataclass field with its help text, where it has an effect, its group in ``--help`` and
    what argparse should know.
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

    Raises UserError for a value that breaks its rule, and for a setting that has no effect beside
    the others.
    """

    algorithm: str = field(metadata={"help": "which algorithm", "group": ""})
    options: Mapping[str, Any] = field(
        default_factory=dict, metadata={"help": "the algorithm's own options", "group": ""}
    )

    data: str = option(
        "epsilon-like",
        "data to train on: a prepared .h5 file, or epsilon-like[:ROWSxFEATURES], digits, "
        "cifar10-like[:ROWS]",
        group="data",
    )
    problem: str | None = option(
        None,
        "what is minimised: logistic regression or a network's cross-entropy (default: what the "
        "data and --model call for)",
        group="data",
        choices=("logistic", "network"),
    )
    l2: float = option(
        1e-4, "weight λ of the ℓ2 term (λ/2)‖w‖²; the weight decay of a network", group="data"
    )
    sampling: str = option(
        "iid", "how a learner draws its examples", group="data", choices=SAMPLING
    )
    force_block: bool = option(
        False, "allow block sampling of data that was not shuffled when prepared", group="data"
    )

    model: str | None = option(None, "network to train", NETWORK, group="network", metavar="NAME")
    no_augment: bool = option(
        False,
        "train on the images as they are, without random crops and flips",
        NETWORK,
        group="network",
    )
    statistics: str = option(
        "average",
        "what an average does to BatchNorm's running mean and variance",
        NETWORK,
        SYNCHRONOUS,
        group="network",
        choices=("average", "keep"),
    )
    calibrate: int = option(
        0,
        "mini-batches from which BatchNorm's statistics are estimated anew before an evaluation",
        NETWORK,
        group="network",
    )
    precision: str = option(
        "float32",
        "arithmetic of the network; weights are always float32, and tf32 needs a GPU",
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
        "replay gradients as CUDA graphs, the learners of a GPU side by side; not yet run on a GPU",
        NETWORK,
        only_with("device", "cuda", because="and graphs are a GPU's"),
        not_with("compile", True, because="which rebuilds the gradient too"),
        group="network",
    )

    learners: int | None = option(
        None, "number of learners P, at least one a rank (default: one a rank)", group="learners"
    )
    ranks_per_node: int | None = option(
        None,
        "treat every N ranks of a host as one node (default: all ranks of a host)",
        SYNCHRONOUS,
        group="learners",
    )
    transport: str = option(
        "auto",
        "how a mean travels between learners",
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
        None, "length T of the run, in local updates per learner", group="training"
    )
    epochs: float | None = option(
        None,
        "length of the run, in passes over the data by all learners together (default: 1)",
        group="training",
    )
    batch_size: int = option(
        128, "mini-batch B of a learner, in examples per update", group="training"
    )
    optimizer: str = option(
        "sgd", "local update of a learner", SYNCHRONOUS, group="training", choices=OPTIMIZERS
    )
    momentum: float = option(
        0.9,
        "momentum coefficient in [0, 1) of --optimizer momentum and nesterov; δ of eamsgd",
        not_with("algorithm", "downpour"),
        only_with("optimizer", "nesterov", "momentum", or_algorithm="eamsgd"),
        group="training",
    )
    state: str = option(
        "keep",
        "what an average does to the optimizer's state",
        SYNCHRONOUS,
        group="training",
        choices=STATES,
    )
    seed: int = option(0, "seed of every random draw", group="training")

    lr: float = option(
        0.01,
        "step size γ",
        not_with("lr_schedule", "inverse", because="whose γ_t is 4/(μ(t+a))"),
        group="step size",
    )
    lr_schedule: str = option(
        "constant",
        "how γ_t changes: not at all (constant), multiplied at --milestones or every --decay-every "
        "epochs (steps), or 4/(μ(t+a)) (inverse)",
        group="step size",
        choices=STEP_SIZES,
    )
    factor: float = option(
        0.1, "number that multiplies γ at every milestone", STEPS, group="step size"
    )
    milestones: tuple[float, ...] = option(
        (), "multiply γ after these numbers of epochs", STEPS, group="step size", metavar="X"
    )
    decay_every: float | None = option(
        None, "multiply γ after every X epochs", STEPS, group="step size"
    )
    warmup_epochs: float = option(
        0.0, "raise γ linearly over the first X epochs", group="step size"
    )
    warmup_from: float | None = option(
        None,
        "step size at the start of the warm-up (default: lr / 10)",
        only_with("warmup_epochs"),
        group="step size",
    )
    pl_constant: float | None = option(
        None, "PL constant μ of --lr-schedule inverse", INVERSE, group="step size"
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
        False, "store the weights in the run file: /initial_weights and /weights", group="output"
    )
    variance: str = option(
        "no",
        "record the learners' variance: S at averages, or at every step V_t too, which takes one "
        "more mean a step outside the clock",
        SYNCHRONOUS,
        group="output",
        choices=("no", "averages", "steps"),
    )
    grad_norm: bool = option(
        False,
        "record ‖∇F(w̄)‖² at every evaluation, which takes another pass over the data",
        group="output",
    )
    log_every: int | None = option(
        None, "updates between two rows of /train (default: T / 100)", group="output"
    )
    eval_every: int | None = option(
        None, "updates between two evaluations (default: T / 20)", group="output"
    )
    eval_examples: int | None = option(
        None, "evaluate on N examples of each split, spread over it (default: all)", group="output"
    )

    checkpoint_every: str | None = option(
        None,
        "time between two checkpoints: 10min, 2h, or a number of updates (default: only when "
        "stopped)",
        *KEPT,
        group="stopping and resuming",
        metavar="TIME",
    )
    time_limit: str | None = option(
        None,
        "save a checkpoint and stop after this time: 90s, 50min, 2h or H:MM:SS; the exit status is "
        "75 (default: no limit)",
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
        "let the servers serve learners in the order of this run",
        only_with("algorithm", *ASYNCHRONOUS),
        not_with("simulate", True, because="which repeats itself"),
        group="stopping and resuming",
        metavar="RUN.h5",
    )

    simulate: bool = option(
        False,
        "use a modelled clock in place of a measured one: downpour and eamsgd run in its order, on "
        "one rank; other algorithms train as usual and record its times",
        group="simulated time",
    )
    timing_from: str | None = option(
        None,
        "take the model of time from this measured run of 2 ranks or more, such as one of kavg",
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
        "standard deviation of a local update's time over its mean, lognormal (default: 0.1)",
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
        "time of a server for one exchange without its bytes, in seconds (default: 1e-4)",
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
        """Refuse a setting that has no effect beside the others: one that is not at its default, or
        one of `given`.
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
