"""Finished runs made up for the papers' claims, by claim: x, seed → runs in which the claim holds
for x > 0 and does not hold for x < 0.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from localavg.files.record import SCHEMA, WORLD, Run

EMPTY = {
    group: pd.DataFrame({name: pd.Series(dtype=float) for name in columns})
    for group, columns in SCHEMA.items()
}


def made(algorithm, seed, loss=0.1, accuracy=0.9, rounds=10, seconds=1.0, **config):
    """A finished run of these ends; `seconds` is when its loss came down to 0.35, half-way from
    0.7. variances: V_t of ten averages; periods: of the averages; train: accuracies of /eval;
    gradient: ‖∇F‖² of all evaluations. average_s: seconds of each average.
    """
    average_s = config.pop("average_s", 0.0)
    gradient = config.pop("gradient", np.nan)
    variances, periods = config.pop("variances", None), config.pop("periods", None)
    train = config.pop("train", (0.1, 0.5))
    tables = dict(EMPTY)
    wall = np.array([0.0, 2 * seconds])
    tables["eval"] = pd.DataFrame(
        {
            "t": [0, 100],
            "epoch": [0, 1],
            "wall_s": wall,
            "train_loss": [0.7, loss],
            "train_accuracy": train,
            "test_accuracy": [0.1, accuracy],
            "grad_norm_sq": gradient,
        }
    )
    if loss == 0.0:
        tables["eval"] = pd.concat([tables["eval"], tables["eval"].tail(1)])
    tables["train"] = pd.DataFrame(
        {"t": [1, 100], "step_size": 0.1, "samples": [1, 100], "wall_s": wall, "communicate_s": 0.0}
    )
    tables["averages"] = pd.DataFrame({"t": range(rounds), "scope": WORLD, "seconds": average_s})
    if variances is not None or periods is not None:
        count = len(variances if variances is not None else periods)
        tables["averages"] = pd.DataFrame(
            {
                "t": 100 * np.arange(1, count + 1) // count,
                "scope": WORLD,
                "seconds": 0.0,
                "mean_variance": variances if variances is not None else 1.0,
                "period": periods if periods is not None else 100 // count,
            }
        )
    settings = {
        "algorithm": algorithm,
        "seed": seed,
        "learners": 8,
        "lr": 0.1,
        "data": "digits",
        "problem": "x",
        **config,
    }
    return Run(
        Path(f"{algorithm}-{seed}.h5"),
        "finished",
        settings,
        {},
        **tables,
        weights=None,
        initial_weights=None,
        attrs={},
    )


def pairs(make, difference, noise, seeds):
    """Runs of `make(better by difference + noise, seed)`: the noise swings with the seed, so that
    it pairs badly.
    """
    return [
        run
        for seed in range(seeds)
        for run in make(difference + noise * (-1) ** seed * (1 + seed), seed)
    ]


LINKS = {"simulate": True, "latency_s": 0, "bandwidth_bytes_per_s": 1.25e8}
CLOCK = {"simulate": True, "latency_s": 0, "bandwidth_bytes_per_s": 1.25e10}
HIER = {"K2": 32, "K1": 4, "S": 4}
SLOW = {"K": 16, "simulate": True, "bandwidth_bytes_per_s": 1.25e7}


def spans(x, asked):
    """Four V_t, those of the second half `asked` times those of the first, less for x > 0."""
    return [1.0, 1.0, asked * np.exp(-x), asked * np.exp(-x)]


def by_K(x, s, P, gain):
    """Accuracies of K = 1, 4 and 16 with P learners."""
    cells = zip((1, 4, 16), (0.8, 0.8 + gain[0], 0.8 + gain[1]), strict=True)
    return [made("kavg", s, accuracy=a, K=K, learners=P) for K, a in cells]


def by_mu(x, s, quantity):
    """M-AVG's runs whose best μ is 0.4 ∓ 0.4 x at P = 8 and 64."""
    return [
        made(
            "mavg",
            s,
            **{quantity: 0.5 + (1 if quantity == "loss" else -1) * (mu - at) ** 2},
            learners=P,
            mu=mu,
            K=4,
        )
        for mu in (0.0, 0.2, 0.4, 0.6, 0.8)
        for P, at in ((8, 0.33 - 0.4 * x), (64, 0.43 + 0.4 * x))
    ]


def lower(ours, theirs, lost=0.01, asked=0.0, **more):
    """A maker of two lines, ours at a loss that is lower by `lost` x less `asked`."""
    other = {"loss": 0.1, **more.pop("other", {})}
    return lambda x, s: [
        made(ours[0], s, **{**ours[1], "loss": 0.1 - lost * x + asked, **more}),
        made(theirs[0], s, **{**theirs[1], **other}),
    ]


def accurate(ours, theirs, behind=0.0, **more):
    """A maker of two lines, ours more accurate by x points, less `behind`."""
    other = more.pop("other", {})
    return lambda x, s: [
        made(ours[0], s, **{**ours[1], "accuracy": 0.8 - 0.01 * behind + 0.01 * x, **more}),
        made(theirs[0], s, **{**theirs[1], "accuracy": 0.8, **other}),
    ]


def quick(ours, theirs, most=1.0):
    """A maker of two lines, ours taking `most` exp(−x/2) times their seconds."""
    return lambda x, s: [
        made(ours[0], s, **{"loss": 0.0, **ours[1]}, seconds=most * np.exp(-x / 2)),
        made(theirs[0], s, **{"loss": 0.0, **theirs[1]}),
    ]


def by_period(seed, sync=0.1, five=0.1, rare=0.11, once=0.3):
    """Runs that end at these losses."""
    return [
        made("sync", seed, loss=sync),
        made("kavg", seed, loss=five, K=5),
        made("kavg", seed, loss=rare, K=91),
        made("oneshot", seed, loss=once),
    ]


def speedup(x, seed, K=8, P=4, at=1.0):
    """Runs whose ‖∇F‖² falls as 1/P for sync, and for K-AVG is `at` exp(−x) times as large at P."""
    cells = [("sync", {"learners": 1}, 1.0), ("sync", {"learners": P}, 1.0)]
    cells.append(("kavg", {"learners": P, "K": K}, at * np.exp(-x)))
    return [
        made(name, seed, gradient=g / line["learners"], **PROBLEM, **line)
        for name, line, g in cells
    ]


PROBLEM = {"data_name": "epsilon-like:16384x32", "lr": 0.5, "batch_size": 1, "steps": 2048}
AD, SYNC, P8, QS = ("adpsgd", {}), ("sync", {}), ("kavg", {"K": 8}), ("qsgd", {})
STEPS = ("piecewise", {"pieces": "0:1,3:8"})
MA, KA = ("mavg", {"K": 4, "mu": 0.7}), ("kavg", {"K": 4})
HI = ("hieravg", HIER)
MAKERS = {
    "K-AVG is ahead": lambda x, s: [
        made(name, s, accuracy=0.8 - 0.1 * x * (name != "kavg"), learners=P)
        for name in ("kavg", "downpour")
        for P in (8, 64)
    ],
    "EAMSGD degrade": lambda x, s: [
        made("downpour", s, accuracy=0.7 - (0.02 + 0.1 * x) * (P > 8), learners=P) for P in (8, 64)
    ],
    "Downpour learns": lambda x, s: [made("downpour", s, accuracy=0.7 + 0.1 * x)],
    "EAMSGD does not learn": lambda x, s: [made("eamsgd", s, accuracy=0.2 - 0.1 * x)],
    "faster at P = 8": lambda x, s: [
        made(name, s, seconds=np.exp(-x * (name != "kavg")), learners=P)
        for name in ("kavg", "downpour")
        for P in (8, 128)
    ],
    "twice as fast": lambda x, s: [
        made(name, s, seconds=2 * np.exp(x) if name != "kavg" else 1, learners=P)
        for name in ("kavg", "eamsgd")
        for P in (8, 128)
    ],
    "best K is above 1": lambda x, s: [
        made("kavg", s, accuracy=0.8, K=1),
        made("kavg", s, accuracy=0.8 + 0.1 * x, K=8),
    ],
    "best K falls": lambda x, s: [
        made("kavg", s, accuracy=0.8 - (np.log2(K) - at) ** 2 / 100, K=K, learners=P)
        for P, at in ((8, 2.2 + 3 * x), (64, 1.3 - 3 * x))
        for K in (1, 2, 4, 8, 16, 32)
    ],
    "falls steeply": lambda x, s: [
        run for P in (8, 64) for run in by_K(x, s, P, (0.0, -0.02 - 0.1 * x))
    ],
    "hardly matters": lambda x, s: [
        run for P in (8, 64) for run in by_K(x, s, P, (0.0, -0.01 + 0.1 * x))
    ],
    "near sequential": lambda x, s: [
        made("sgd", s, accuracy=0.8, learners=1),
        *(made("kavg", s, accuracy=0.79 + 0.02 * x, learners=P) for P in (8, 16, 64)),
    ],
    "gap to sequential SGD opens": lambda x, s: [
        made("sgd", s, accuracy=0.8, learners=1),
        *(
            made("kavg", s, accuracy=0.8 - (0.02 + 0.02 * x) * (P > 8), learners=P)
            for P in (8, 16, 64)
        ),
    ],
    "smaller for NiN": lambda x, s: [
        made(name, s, model=model, accuracy=a, learners=P)
        for model in ("mlp", "nin")
        for name, P, a in (
            ("sgd", 1, 0.8),
            ("kavg", 64, 0.7 + (model == "nin") * (0.01 + 0.02 * x)),
        )
    ],
    "larger mini-batch, at equal": lambda x, s: [
        made("sync", s, loss=0.1 + 0.007 * (P > 4) + 0.01 * x * (P > 4), learners=P, batch_size=1)
        for P in (4, 8)
    ],
    "update for update": lambda x, s: [
        made("sync", s, loss=0.1 + 0.007 * (P > 4) + 0.01 * x * (P > 4), learners=P, batch_size=1)
        for P in (4, 8)
    ],
    "at the level of sync": lower(
        ("kavg", {"K": 91}), SYNC, asked=0.007, rounds=1, other={"rounds": 91}
    ),
    "sooner at sync's loss": quick(("kavg", {"K": 91}), SYNC, 0.8),
    "speeds up linearly": lambda x, s: [
        made("kavg", s, loss=0.0, seconds=sec, K=91, learners=P, problem="logistic")
        for P, sec in ((1, 1.0), (4, 0.3125 * np.exp(-x / 2)))
    ],
    "ADA-LUPA": lower(
        ("adalupa", {}), ("kavg", {"K": 91}), asked=0.007, rounds=1, other={"rounds": 10}
    ),
    "less than half for p = 2": lambda x, s: [
        made("kavg", s, K=2, variances=[0.5 * np.exp(-x)] * 4),
        made("kavg", s, K=8, variances=[1.0] * 4),
    ],
    "falls with the step size": lambda x, s: [made("kavg", s, K=8, variances=spans(x, 0.5))],
    "weighted variance (9) is smaller": lambda x, s: [
        made("adpsgd", s, variances=[0.8 * np.exp(-x)] * 4),
        made("kavg", s, K=8, variances=[1.0] * 4),
    ],
    "nearly constant": lambda x, s: [
        made("adpsgd", s, variances=[1.0, 0.5 * np.exp(0.5 * x), 1.0, 1.0])
    ],
    "twice that before": lambda x, s: [
        made("adpsgd", s, steps=100, milestones=[0.5], periods=[10, 10, 20 * np.exp(x), 20 * np.exp(x), 1])
    ],
    "no more averages than a period of 8": lambda x, s: [
        made("adpsgd", s, rounds=round(12.75 * np.exp(-x)))
    ],
    "than FULLSGD at equal loss": lower(AD, SYNC, asked=0.007, other={"rounds": 40}),
    "than CPSGD p = 8 at equal loss": lower(AD, P8, asked=0.007, other={"rounds": 12}),
    "more accurate than p = 8": accurate(AD, P8),
    "more accurate than FULLSGD (": accurate(AD, SYNC),
    "ADPSGD has less loss than QSGD": lower(AD, QS),
    "by 1.1 at 100 Gbit/s": lambda x, s: [
        made("adpsgd", s, seconds=np.exp(-x) / 1.1, **CLOCK),
        # ten averages, ten times as long at 10 Gbit/s: there the run takes 1.4 / 1.1 of its 2 s
        made("sync", s, average_s=2 * (1.4 / 1.1 - 1) / 9 / 10, **CLOCK),
    ],
    "almost linear": lambda x, s: [
        made("sgd", s, learners=1),
        made("adpsgd", s, learners=16, seconds=np.exp(-x) / 12.8),
    ],
    "ahead of FULLSGD": lambda x, s: [
        made("sgd", s, learners=1),
        made("adpsgd", s, learners=16, seconds=np.exp(-x)),
        made("sync", s, learners=16),
    ],
    "Small batches": accurate(("sgd", {"learners": 1}), AD),
    "CPSGD with any period": lambda x, s: [
        *(made("kavg", s, K=K, accuracy=0.8 - 0.001 * K) for K in (2, 4)),
        made("adpsgd", s, accuracy=0.798 + 0.1 * x),
    ],
    "FULLSGD with any step size": lambda x, s: [
        *(made("sync", s, lr=lr, accuracy=0.8 - 0.1 * lr) for lr in (0.1, 0.4)),
        made("adpsgd", s, accuracy=0.79 + 0.1 * x),
    ],
    "warm-up has less loss than p = 8": lower(AD, STEPS),
    "about as accurate as FULLSGD": accurate(AD, SYNC, behind=0.5),
    "warm-up has less loss than QSGD": lower(AD, QS),
    "4 then 8": lower(
        ("piecewise", {"pieces": "0:4,16:8"}), ("piecewise", {"pieces": "0:8,16:4"})
    ),
    "20 then 5 ends at more": lower(P8, ("piecewise", {"pieces": "0:20,16:5"})),
    "20 then 5 ends less": accurate(P8, ("piecewise", {"pieces": "0:20,16:5"})),
    "than K-AVG (Fig. 1-6)": lower(MA, KA),
    "than K-AVG (Table I)": accurate(MA, KA),
    "than K-AVG (Fig. 7)": lower(MA, KA),
    "than K-AVG (Fig. 8)": accurate(MA, KA),
    "by training loss (Fig. 9-12": lambda x, s: by_mu(x, s, "loss"),
    "by test accuracy (Fig. 9-12": lambda x, s: by_mu(x, s, "accuracy"),
    "μ = 0.9 is the worst": lambda x, s: [
        made("mavg", s, accuracy=0.8 - 0.1 * x * (mu == 0.9), learners=P, mu=mu, K=4)
        for mu in (0.0, 0.5, 0.9)
        for P in (8, 64)
    ],
    "less harm": lambda x, s: [
        made("mavg", s, accuracy=0.8 - (0.05 - 0.05 * x * (P > 8)) * (mu > 0), learners=P, mu=mu)
        for mu in (0.0, 0.9)
        for P in (8, 64)
    ],
    "K₂ = 32 than with 8": lambda x, s: [
        made("hieravg", s, K2=K2, train=(0.1, 0.8 - (0.01 - 0.01 * x) * (K2 > 8))) for K2 in (8, 32)
    ],
    "smaller K₁": lower(HI, ("hieravg", HIER | {"K1": 8})),
    "larger S": lower(HI, ("hieravg", HIER | {"S": 2})),
    "is no less accurate than K-AVG(K)": accurate(HI, ("kavg", {"K": 16}), behind=0.5),
    "is more accurate than K-AVG(K)": accurate(HI, ("kavg", {"K": 16})),
    "after a tenth": lambda x, s: [
        made("hieravg", s, train=(0.11 + 0.01 * x, 0.5)),
        made("kavg", s, train=(0.1, 0.5)),
    ],
    "than K-AVG (Fig. 5)": lower(HI, ("kavg", {"K": 43})),
    "Hier-AVG ends more accurate": accurate(HI, ("kavg", {"K": 43})),
    "DiLoCo": lambda x, s: [
        made("diloco", s, loss=0.1 - 0.01 * x, K=16),
        made("kavg", s, loss=0.1, K=16),
        made("kavg", s, loss=0.1 - 0.02 * np.sign(x), K=64),
    ],
    "SlowMo": lower(("slowmo", {"K": 16}), ("kavg", {"K": 16})),
    "Post-local": accurate(("postlocal", {"K": 16}), SYNC, behind=1, other={"rounds": 40}),
    "QSR": accurate(("qsr", {"K": 16}), ("kavg", {"K": 16}), behind=1, other={"rounds": 40}),
    "among all methods": lower(AD, SYNC, asked=0.007, other={"rounds": 40}),
    "over 1 Gbit/s": quick(("kavg", {"K": 16, **LINKS}), ("sync", LINKS), 0.25),
    "Delayed averages": quick(("kavg", SLOW | {"delay": 8}), ("kavg", SLOW)),
    "int8": quick(("kavg", SLOW | {"wire": "int8"}), ("kavg", SLOW), 0.5),
    "Pieces alone": quick(("kavg", SLOW), ("kavg", SLOW | {"fragments": 4}), 1.1),
    "chosen period": quick(("kavg", SLOW | {"K": "auto"}), ("kavg", SLOW), 1.1),
    "at 10 Gbit/s": lambda x, s: [
        made("kavg", s, loss=0.0, seconds=1, **SLOW | {"bandwidth_bytes_per_s": 1.25e9}),
        made(
            "kavg", s, loss=0.0, seconds=1.1 * np.exp(-x / 9), delay=8,
            **SLOW | {"bandwidth_bytes_per_s": 1.25e9},
        ),
    ],
    "sync is linear in P": lambda x, s: [
        made("sync", s, gradient=g, learners=P, **PROBLEM)
        for P, g in ((1, 1.0), (4096, np.exp(-x) / (0.8 * 4096)))
    ],
    "sync up to the P of bound": lambda x, s: speedup(x, s, at=1.25),
    "speed-up ends": lambda x, s: speedup(-x, s, P=64, at=2.0),
    "up to LUPA's p": lambda x, s: speedup(x, s, P=1024, at=1.25),
    "every 5 updates": lambda x, s: by_period(s, five=0.107 - 0.01 * x),
    "every 91 updates": lambda x, s: by_period(s, rare=0.1 + 0.01 * x),
    "one average at the end": lambda x, s: by_period(s, once=0.18 + 0.01 * x),
}  # fmt: skip


def maker_of(claim):
    """The key of a claim's maker."""
    keys = [key for key in MAKERS if key in claim]
    assert keys, f"no maker for {claim}"
    return max(keys, key=len)
