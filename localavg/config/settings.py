"""The settings of a training run: a frozen dataclass with a help text at every field.

A field also has the check of its value, and the rules that say where its option has an effect.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field, fields

from localavg.config import samplings
from localavg.config.rules import (
    anything,
    below_1,
    in_epochs,
    not_negative,
    not_with,
    only_with,
    option,
    positive,
    time,
    time_or_updates,
    whole,
)
from localavg.config.state import MOMENTS, OPTIMIZERS, check_moments, valid_state
from localavg.errors import UserError, check_choice
from localavg.interfaces import Settings

STEP_SIZES = ("constant", "steps", "inverse")
ASYNCHRONOUS = ("downpour", "eamsgd")  # the algorithms with servers in place of averages
UNAVERAGED = ("sgd", "sync", "qsgd")  # the algorithms that average no weights
STEERED = ("adacomm", "adpsgd", "adalupa")  # the algorithms whose feedback decides the periods
WITH_AUTO = ("kavg", "mavg", "diloco", "slowmo", "postlocal", "fedavg")  # whose K may be auto
TRANSPORTS = ("auto", "shared", "mpi", "cuda_aware", "staged", "nccl")
DEVICES = ("auto", "cpu", "cuda")
ENGINES = ("auto", "loop", "graph", "batch")

NETWORK = not_with("problem", "logistic")
STEPS = only_with("lr_schedule", "steps")
INVERSE = only_with("lr_schedule", "inverse")
SYNCHRONOUS = not_with(
    "algorithm", *ASYNCHRONOUS, lenient=True, because="whose local update and messages are its own"
)
KEPT = not_with("simulate", True, because="which makes no checkpoints")
STATEFUL = tuple(name for name, moments in MOMENTS.items() if moments)
NO_STATE = "which has no state"
MODELLED = only_with("simulate", because="whose time is measured")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that defines a training run; `options` are those of the algorithm.

    Raises UserError for a value that breaks its rule, and for a setting that has no effect together
    with the others.
    """

    algorithm: str = field(metadata={"help": "which algorithm", "group": ""})
    options: Settings = field(
        default_factory=dict, metadata={"help": "the algorithm's own options", "group": ""}
    )

    data: str = option(
        "epsilon-like",
        "data to train on: a prepared .h5 file, epsilon-like[:ROWSxFEATURES], digits, "
        "cifar10-like[:ROWS] or fashion-mnist",
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
        1e-4,
        "weight λ of the ℓ2 term (λ/2)‖w‖²; for a network, its weight decay",
        group="data",
        valid=not_negative,
    )
    sampling: str = option(
        "iid",
        "how a learner draws its examples: at random with replacement (iid), its part of a common "
        "random order that is new in every epoch (shuffle), its own part of the data in random "
        "order (shard), consecutive rows from a random place (block), or rows of its own in random "
        "order that it got by their classes: ⌊n/P⌋ rows of classes with random frequencies, which "
        "are the less even the smaller A is (dirichlet:A), a random share of each class "
        "(dirichlet-class:A), S of SP blocks of the rows sorted by class (shards:S), or rows of "
        "exactly C classes (labels:C). With the last four an epoch is as many updates as let all "
        "learners together see as many examples as they have",
        group="data",
        valid=samplings.check,
        metavar="|".join(samplings.FORMS),
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
        valid=whole(0),
    )
    precision: str = option(
        "float32",
        "arithmetic of the network; the weights are always float32, and tf32 needs a GPU",
        NETWORK,
        only_with("device", "auto", "cuda", value="tf32"),
        group="network",
        choices=("float32", "tf32", "bf16"),
    )
    deterministic: str = option(
        "yes",
        "whether a GPU computes the network with kernels that give the same bits in every run, or "
        "with its fastest",
        NETWORK,
        only_with("device", "auto", "cuda", value="no"),
        group="network",
        choices=("yes", "no"),
    )
    compile: bool = option(
        False, "compile the network with torch.compile", NETWORK, group="network"
    )
    learners: int | None = option(
        None,
        "number of learners P, at least one per rank (default: one per rank)",
        group="learners",
        valid=whole(1),
    )
    ranks_per_node: int | None = option(
        None,
        "number of ranks of a host that count as one node (default: all ranks of the host)",
        SYNCHRONOUS,
        group="learners",
        valid=whole(1),
    )
    transport: str = option(
        "auto",
        "how a mean travels between ranks: from host memory by shared memory in a node (shared) "
        "or by MPI alone (mpi); from GPU memory by NCCL (nccl), by MPI on GPU memory (cuda_aware) "
        "or by MPI on copies in host memory (staged); or by the best of these that work (auto): "
        "between GPUs the fastest, which is measured at the start of the run",
        SYNCHRONOUS,
        group="learners",
        choices=TRANSPORTS,
    )
    device: str = option(
        "auto",
        "where the learners compute: on the CPU (cpu), on GPUs (cuda), or on GPUs if every rank "
        "sees one and the problem gains by it, else on the CPU (auto), which a resumed run keeps; "
        "learners of asynchronous algorithms take GPUs only if told so",
        group="learners",
        choices=DEVICES,
    )
    engine: str = option(
        "auto",
        "how the gradients of a rank's learners are computed: one learner after the other (loop), "
        "all in one CUDA graph (graph), all as one batched model (batch), or by the fastest of "
        "those that work, which is measured at the start of the run (auto) and is loop on the CPU",
        not_with(
            "algorithm",
            *ASYNCHRONOUS,
            lenient=True,
            because="whose learners compute one gradient at a time",
        ),
        not_with("problem", "logistic", value="graph"),
        only_with("device", "auto", "cuda", value="graph", because="and graphs are a GPU's"),
        not_with("compile", True, value="graph", because="which rebuilds the gradient too"),
        not_with("compile", True, value="batch", because="which compiles one learner's network"),
        group="learners",
        choices=ENGINES,
    )

    steps: int | None = option(
        None,
        "length T of the run, in local updates per learner (default: --epochs counts)",
        group="training",
        valid=whole(1),
    )
    epochs: float | None = option(
        None,
        "length of the run, in passes over the data by all learners together (default: 1)",
        group="training",
        valid=in_epochs(positive),
    )
    batch_size: int = option(
        128,
        "size B of a learner's mini-batch, in examples per update",
        group="training",
        valid=whole(1),
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
        valid=below_1,
    )
    weight_decay: float | None = option(
        None,
        "weight decay λ of --optimizer adamw, which takes w ← (1 − γλ)w before each update, apart "
        "from --l2, which is a part of the gradient (default: 0.01)",
        SYNCHRONOUS,
        only_with("optimizer", "adamw"),
        group="training",
        valid=not_negative,
    )
    state: str = option(
        "keep",
        "what happens to the optimizer's state at an average: keep, average or reset, for all of "
        "it or by moment, such as m=reset,v=average; adam and adamw have the moments m and v, "
        "momentum and nesterov have v; a moment that is not named is kept "
        "(for fedavg the default is reset)",
        SYNCHRONOUS,
        not_with("algorithm", *UNAVERAGED, lenient=True, because="which averages no weights"),
        only_with("optimizer", *STATEFUL, or_algorithm="fedavg", lenient=True, because=NO_STATE),
        only_with("optimizer", *STATEFUL, value="average", because=NO_STATE),
        group="training",
        valid=valid_state,
        metavar="POLICY",
    )
    seed: int = option(
        0, "seed of all random numbers", group="training", valid=whole(0, below=2**63)
    )

    lr: float = option(
        0.01,
        "step size γ",
        not_with("lr_schedule", "inverse", because="whose γ_t is 4/(μ(t+a))"),
        group="step size",
        valid=positive,
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
        valid=positive,
    )
    milestones: tuple[float, ...] = option(
        (),
        "numbers of epochs after which γ is multiplied by --factor (default: none)",
        STEPS,
        group="step size",
        valid=in_epochs(not_negative),
        metavar="X",
    )
    decay_every: float | None = option(
        None,
        "number of epochs between two multiplications of γ by --factor (default: none)",
        STEPS,
        group="step size",
        valid=positive,
    )
    warmup_epochs: float = option(
        0.0,
        "length of the linear warm-up of γ, in epochs",
        group="step size",
        valid=in_epochs(not_negative),
    )
    warmup_from: float | None = option(
        None,
        "step size at the start of the warm-up (default: --lr / 10)",
        only_with("warmup_epochs"),
        group="step size",
        valid=positive,
    )
    pl_constant: float | None = option(
        None,
        "PL constant μ of --lr-schedule inverse, which needs it (default: none)",
        INVERSE,
        group="step size",
        valid=positive,
    )
    shift: float | None = option(
        None,
        "shift a of --lr-schedule inverse, in updates (default: 0)",
        INVERSE,
        group="step size",
        valid=not_negative,
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
        None,
        "number of updates between two rows of /train (default: T / 100)",
        group="output",
        valid=whole(1),
    )
    eval_every: int | None = option(
        None,
        "number of updates between two evaluations (default: T / 20)",
        group="output",
        valid=whole(1),
    )
    eval_examples: int | None = option(
        None,
        "number of examples of each split to evaluate, spread over the split (default: all)",
        group="output",
        valid=whole(1),
    )

    checkpoint_every: str | None = option(
        None,
        "time between two checkpoints, such as 90s, 10min, 2h or H:MM:SS, or a number of updates "
        "(default: save only before a stop)",
        KEPT,
        group="stopping and resuming",
        valid=time_or_updates,
        metavar="TIME",
    )
    time_limit: str | None = option(
        None,
        "time since the start of the process after which to save a checkpoint and stop with exit "
        "status 75, such as 90s, 50min, 2h or H:MM:SS (default: no limit)",
        KEPT,
        group="stopping and resuming",
        valid=time,
        metavar="TIME",
    )
    resume: bool = option(
        False,
        "resume the run in --out from its checkpoint; do nothing if it is finished",
        group="stopping and resuming",
    )
    on_failure: str = option(
        "end",
        "what happens when a rank dies: the job ends (end), or the other ranks take over its "
        "learners and go on from the last average of everyone (continue), of which a node keeps "
        "two copies of a learner's weights; for downpour and eamsgd from the center, while a lost "
        "server ends the job; that needs Open MPI 5 and mpirun --with-ft ulfm, and with --delay, "
        "--fragments and gossip --recovery-state all",
        KEPT,
        group="stopping and resuming",
        choices=("end", "continue"),
    )
    recovery_state: str = option(
        "policy",
        "what --on-failure continue keeps of the optimizer's state: what --state average or mean "
        "gradients make the same for all learners, while other moments are zero after a recovery "
        "(policy), or also every learner's moments, and with --delay, --fragments and gossip every "
        "learner's weights (all); of these a node keeps two copies for its own learners, and two "
        "for those of another node, which sends them",
        only_with("on_failure", "continue", lenient=True),
        not_with(
            "algorithm", *ASYNCHRONOUS, lenient=True, because="whose learners go on from the center"
        ),
        group="stopping and resuming",
        choices=("policy", "all"),
    )
    replay: str | None = option(
        None,
        "repeat what this run did: serve the learners in its order, for downpour and eamsgd "
        "(default: in the order of arrival), or average after the same updates, for adacomm, "
        "adpsgd, adalupa and K = auto (default: as their rules decide)",
        only_with("algorithm", *ASYNCHRONOUS, *WITH_AUTO, *STEERED),
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
            f.metadata.get("valid", anything)(f.name, getattr(self, f.name))
        if self.steps is not None and self.epochs is not None:
            raise UserError(
                f"`steps = {self.steps}` and `epochs = {self.epochs:g}` both set the length: give "
                "one of them"
            )
        self.refuse_useless()
        check_moments(self.state, self.optimizer)
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
                if rule.broken(vars(self), value, is_default):
                    raise rule.error(vars(self), f.name, value)

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
    def names_network(self) -> bool:
        """Whether a network is trained, as far as the settings tell without the data."""
        return self.model is not None or self.problem == "network"

    @property
    def path(self) -> str:
        """The path of the run file."""
        return self.out or os.path.join("runs", f"{self.algorithm}-s{self.seed}.h5")
