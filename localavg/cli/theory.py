"""``localavg theory``: the papers' bounds, conditions and predictions, as tables."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from localavg.cli import print_table, world
from localavg.errors import UserError

if TYPE_CHECKING:
    from localavg.files.record import Run
    from localavg.parallel.fleet import Fleet

TABLES = ("kavg", "mavg", "hieravg", "against", "lupa", "adalupa")


def add(commands: Any) -> None:
    p = commands.add_parser(
        "theory",
        help="the papers' bounds, conditions and optima for a problem's constants",
        description="Print the papers' bounds, which conditions fail and by how much, and the "
        "predicted "
        "K_opt, μ_opt, τ and K2.",
    )
    p.set_defaults(call=_theory)
    g = p.add_argument_group("constants: measured on the problem of runs, or given")
    g.add_argument(
        "--from-run",
        nargs="+",
        metavar="FILE",
        help="run files of logistic regression; also gives B, P, γ and T",
    )
    g.add_argument("--F1-minus-Fstar", type=float, metavar="X", help="F(w_1) − F*")
    g.add_argument("--L", type=float, metavar="X", help="Lipschitz constant of ∇F")
    g.add_argument("--M", type=float, metavar="X", help="variance of one example's gradient")
    g.add_argument(
        "--mu-PL", type=float, metavar="X", help="Polyak-Łojasiewicz constant, for lupa's bounds"
    )
    g.add_argument(
        "--delta",
        type=float,
        default=0.5,
        metavar="X",
        help="δ of kavg and mavg, in (0, 1) (default: 0.5)",
    )
    g = p.add_argument_group("the run they are for")
    g.add_argument("--gamma", type=float, metavar="X", help="step size")
    g.add_argument("--batch-size", type=int, metavar="N", help="B")
    g.add_argument("--steps", type=int, metavar="N", help="T, local updates per learner")
    g = p.add_argument_group("tables over")
    for name, kind, default in (
        ("P", int, [8, 16, 32, 64, 128]),
        ("K", int, [1, 2, 4, 8, 16, 32, 64]),
        ("mu", float, [0.0, 0.3, 0.5, 0.7, 0.9]),
        ("K1", int, [1, 2, 4, 8]),
        ("S", int, [2, 4]),
    ):
        g.add_argument(
            f"--{name}",
            type=kind,
            nargs="+",
            metavar="X",
            default=default,
            help=f"(default: {' '.join(map(str, default))})",
        )
    g.add_argument(
        "--tau0", type=int, metavar="N", default=91, help="first period of ADA-LUPA (default: 91)"
    )
    g.add_argument(
        "--E",
        type=int,
        nargs="+",
        metavar="X",
        default=[5, 10, 20],
        help="periods of ADA-LUPA (default: 5 10 20)",
    )
    g.add_argument(
        "--a",
        type=float,
        nargs="+",
        metavar="X",
        default=[0.2, 0.4, 0.6],
        help="Theorem 3.6's K2 = (1 + a)K (default: 0.2 0.4 0.6)",
    )
    p.add_argument(
        "--tables",
        nargs="+",
        choices=(*TABLES, "none"),
        metavar="TABLE",
        default=TABLES,
        help=f"{' '.join(TABLES)} (default: all), or none",
    )


def _theory(args: argparse.Namespace) -> int:
    from localavg import theory

    delta = args.delta
    if not args.from_run:
        needed = {
            "--F1-minus-Fstar": args.F1_minus_Fstar,
            "--L": args.L,
            "--M": args.M,
            "--gamma": args.gamma,
            "--batch-size": args.batch_size,
            "--steps": args.steps,
        }
        if lacking := [name for name, value in needed.items() if value is None]:
            raise UserError(f"theory needs {', '.join(lacking)}; give them, or --from-run FILE…")
        constants = theory.Constants(
            F1_minus_Fstar=args.F1_minus_Fstar, L=args.L, M=args.M, delta=delta, mu_PL=args.mu_PL
        )
        _print_theory(args, constants, args.gamma, args.batch_size, args.steps)
        for P in args.P:
            _print_prediction(
                constants, f"P = {P}", P=P, B=args.batch_size, gamma=args.gamma, T=args.steps
            )
        return 0
    from localavg.files.record import load

    runs = [load(path) for path in args.from_run]
    here = world()
    if here.size > 1:
        raise UserError(
            f"theory on {here.size} ranks: it is one process's work; run it without mpirun"
        )
    from localavg.parallel.fleet import Fleet

    for group in from_runs(runs, Fleet(here), delta):
        constants, settings = group["constants"], group["runs"][0].config
        gamma = args.gamma or _first_step_size(group["runs"][0])
        B, T = args.batch_size or settings["batch_size"], args.steps or settings["steps"]
        print_table(
            group["problem"],
            [{"constant": k, "value": v} for k, v in (asdict(constants) | group["found"]).items()],
        )
        _print_theory(args, constants, gamma, B, T)
        for run in group["runs"]:
            _print_prediction(
                constants,
                str(run.path),
                P=run.config["learners"],
                B=args.batch_size or run.config["batch_size"],
                gamma=args.gamma or _first_step_size(run),
                T=args.steps or run.config["steps"],
                K1=run.config.get("K1") or 1,
                S=run.config.get("S") or 1,
            )
            _print_variance(constants, run)
    return 0


def _print_theory(args: argparse.Namespace, constants: Any, gamma: float, B: int, T: int) -> None:
    from localavg import theory

    tables = {
        "kavg": (
            "K-AVG: bound (3.2) at fixed S = N·K",
            lambda: theory.kavg_table(constants, gamma=gamma, B=B, S_total=T, P=args.P, K=args.K),
        ),
        "mavg": (
            "M-AVG: Theorem 1 at fixed S = N·K",
            lambda: theory.mavg_table(
                constants, eta=gamma, B=B, S_total=T, P=args.P, K=args.K, mu=args.mu
            ),
        ),
        "hieravg": (
            "Hier-AVG: bound (3.6) at fixed T = N·K2",
            lambda: theory.hieravg_table(
                constants, gamma=gamma, B=B, T=T, P=args.P, K1=args.K1, K2=args.K, S=args.S
            ),
        ),
        "lupa": (
            "LUPA: τ of Corollary 1 and Stich's",
            lambda: theory.lupa_table(constants, B=B, P=args.P, T=[T]),
        ),
        "adalupa": (
            f"ADA-LUPA: E periods that grow from τ_0 = {args.tau0} to make T, and their conditions",
            lambda: theory.adalupa_table(constants, B=B, P=args.P, T=T, tau0=args.tau0, E=args.E),
        ),
        "against": (
            "K-AVG(K) against Hier-AVG with K2 = (1 + a)K, K1 = 1, S = 4: Theorem 3.6",
            lambda: theory.against_table(
                constants, gamma=gamma, B=B, T=T, P=args.P, K=args.K, a=args.a
            ),
        ),
    }
    for name in args.tables:
        if name in tables:
            title, rows = tables[name]
            print_table(f"{title} (γ = {gamma:g}, B = {B}, T = {T})", rows())


def _step_size(run: Any) -> tuple[Any, int]:
    """γ_t of the run, a function of t, from its settings; and the t at which it is warmed up."""
    from dataclasses import fields

    from localavg.config import TrainConfig
    from localavg.learner import stepsizes

    if run.train.empty:
        raise UserError(f"--from-run {run.path}: it has no row of /train yet; give --gamma")
    last, names = (
        run.train.iloc[-1],
        {f.name for f in fields(TrainConfig) if f.metadata["group"] == "step size"},
    )
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in run.config.items() if k in names}
    config, epoch = TrainConfig(algorithm=run.config["algorithm"], **given), last.t / last.epoch
    return stepsizes.make(config, epoch), 1 + round(config.warmup_epochs * epoch)


def _first_step_size(run: Any) -> float:
    """γ as the run began with it, once warmed up."""
    gamma, t = _step_size(run)
    return float(gamma(t))


def _print_variance(constants: Any, run: Any) -> None:
    """The weighted variance (9) and bound (8) of adpsgd, for a run that recorded V_t (train
    --variance steps).
    """
    import numpy as np

    from localavg import theory

    averages = run.averages
    if averages.empty or averages.mean_variance.isna().any():
        return
    variance = np.repeat(
        averages.mean_variance.to_numpy(), averages.period
    )  # [T] V_t for every Var[W_k] of its period
    gamma = np.array([*map(_step_size(run)[0], range(1, len(variance) + 1))])  # [T]
    c, P, B = constants, run.config["learners"], run.config["batch_size"]
    print_table(
        f"ADPSGD on {run.path}",
        [
            {
                "weighted variance (9)": float(
                    theory.adpsgd_weighted_variance(gamma=gamma, variance=variance)
                ),
                "bound (8)": float(
                    theory.adpsgd_bound(
                        F1_minus_Fstar=c.F1_minus_Fstar,
                        L=c.L,
                        sigma2=c.M,
                        gamma=gamma,
                        variance=variance,
                        B=B,
                        P=P,
                    )
                ),
            }
        ],
    )


def _print_prediction(constants: Any, title: str, **of: Any) -> None:
    from localavg import theory

    found = theory.predict(constants, **of)
    rows = [
        {"predicted": k, "value": v} for k, v in found.items() if k not in ("conditions", "failing")
    ]
    print_table(f"predicted for {title}", rows)
    if found["failing"]:
        print_table("conditions that fail there, and by how much", found["failing"])


def from_runs(runs: Sequence[Run], fleet: Fleet, delta: float) -> list[dict[str, Any]]:
    """For every problem among the runs, {"problem", "runs", "constants", "found"}."""
    from localavg import datasets
    from localavg.problems.constants import logistic_constants, network_constants
    from localavg.problems.logistic import Logistic

    problems: dict[tuple, list[Run]] = {}
    for run in runs:
        c = run.config
        problems.setdefault(
            (c["problem"], c["data"], c["l2"], c.get("model"), c["batch_size"], c["seed"]), []
        ).append(run)
    rows = []
    for (kind, data, l2, model, B, seed), same in problems.items():
        visited = [run.weights for run in same if run.weights is not None]
        if kind == "logistic":
            problem = f"{data}, λ = {l2:g}"
            constants, found = logistic_constants(
                Logistic(datasets.load(data, fleet), l2), visited, delta
            )
        else:
            problem = f"{model} on {data}, B = {B}"
            constants, found = network_constants(
                datasets.load(data, fleet), model, l2, seed, B, visited, delta
            )
        rows.append({"problem": problem, "runs": same, "constants": constants, "found": found})
    return rows
