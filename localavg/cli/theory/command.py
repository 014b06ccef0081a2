"""``localavg theory``: print the papers' bounds, conditions and predictions as tables."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from localavg.cli import Commands, print_table, world
from localavg.errors import UserError, at_least, positive

if TYPE_CHECKING:
    from localavg.files.record import Run
    from localavg.theory import Constants

TABLES = ("kavg", "mavg", "hieravg", "against", "lupa", "adalupa")
BOUNDED = (  # the algorithms that the tables and predictions are about
    "sgd", "sync", "kavg", "oneshot", "mavg", "hieravg", "adalupa", "adpsgd", "downpour", "eamsgd",
)  # fmt: skip
EMPTY = {  # why a table may have no rows
    "hieravg": "no K1 is at most a K2 (--K), or no S divides a P",
    "against": "4 divides none of --P",
    "adalupa": "no --E of at least 2 periods, each of --tau0 updates or more, fits in T",
}


def add(commands: Commands) -> None:
    """Declare the command."""
    p = commands.add_parser(
        "theory",
        help="print the papers' bounds, conditions and optima for a problem's constants",
        description="Print the papers' bounds, the conditions that fail and by how much, and the "
        "predicted K_opt, μ_opt, τ and K2.",
    )
    p.set_defaults(call=_theory)
    _add_constants(p.add_argument_group("constants: measured on the problem of runs, or given"))
    g = p.add_argument_group("the run that the tables are for")
    g.add_argument("--gamma", type=float, metavar="X", help="step size γ (default: the run's)")
    g.add_argument(
        "--batch-size", type=int, metavar="N", help="B, examples a learner (default: the run's)"
    )
    g.add_argument(
        "--steps", type=int, metavar="N", help="T, local updates a learner (default: the run's)"
    )
    _add_ranges(p.add_argument_group("values that the tables range over"))
    p.add_argument(
        "--tables",
        nargs="+",
        choices=(*TABLES, "none"),
        metavar="TABLE",
        default=TABLES,
        help=f"print these of the tables {' '.join(TABLES)}, or none (default: all)",
    )


def _add_constants(g: argparse._ArgumentGroup) -> None:
    g.add_argument(
        "--from-run",
        nargs="+",
        metavar="FILE",
        help="measure the constants on the problems of these run files, which also give B, P, γ "
        "and T (default: use the constants below)",
    )
    for name, what in (
        ("F1-minus-Fstar", "F(w_1) − F*"),
        ("L", "Lipschitz constant of ∇F"),
        ("M", "variance of the gradient at one example"),
    ):
        g.add_argument(f"--{name}", type=float, metavar="X", help=f"{what} (default: --from-run's)")
    g.add_argument(
        "--mu-PL",
        type=float,
        metavar="X",
        help="Polyak-Łojasiewicz constant, for lupa's bounds (default: none, no such bounds)",
    )
    g.add_argument(
        "--delta",
        type=float,
        default=0.5,
        metavar="X",
        help="δ of kavg and mavg, in (0, 1) (default: %(default)s)",
    )


def _add_ranges(g: argparse._ArgumentGroup) -> None:
    ranges: tuple[tuple[str, str, list[int] | list[float]], ...] = (
        ("P", "learners", [8, 16, 32, 64, 128]),
        ("K", "local updates between averages", [1, 2, 4, 8, 16, 32, 64]),
        ("mu", "block momentum of mavg", [0.0, 0.3, 0.5, 0.7, 0.9]),
        ("K1", "local updates between hieravg's averages in a cluster", [1, 2, 4, 8]),
        ("S", "learners in a cluster of hieravg", [2, 4]),
        ("E", "number of periods of ADA-LUPA", [5, 10, 20]),
        ("a", "a of hieravg Theorem 3.6, where K2 = (1 + a)K", [0.2, 0.4, 0.6]),
    )
    for name, what, default in ranges:
        g.add_argument(
            f"--{name}",
            type=type(default[0]),
            nargs="+",
            metavar="X",
            default=default,
            help=f"{what} (default: {' '.join(map(str, default))})",
        )
    g.add_argument(
        "--tau0",
        type=int,
        metavar="N",
        default=91,
        help="first period of ADA-LUPA, in local updates (default: %(default)s)",
    )


def _theory(args: argparse.Namespace) -> int:
    positive("gamma", args.gamma)
    at_least("batch_size", args.batch_size, 1)
    at_least("steps", args.steps, 1)
    if args.from_run:
        _print_for_runs(args)
    else:
        _print_for_constants(args)
    return 0


def _print_for_constants(args: argparse.Namespace) -> None:
    """Print the tables and predictions for the constants of the command line."""
    from localavg.theory import Constants

    needed = ("F1_minus_Fstar", "L", "M", "gamma", "batch_size", "steps")
    if missing := [f"--{name.replace('_', '-')}" for name in needed if vars(args)[name] is None]:
        raise UserError(f"theory needs {', '.join(missing)}; give them, or --from-run FILE…")
    constants = Constants(
        F1_minus_Fstar=args.F1_minus_Fstar, L=args.L, M=args.M, delta=args.delta, mu_PL=args.mu_PL
    )
    gamma, B, T = args.gamma, args.batch_size, args.steps
    _print_tables(args, constants, gamma, B, T)
    for P in args.P:
        _print_prediction(constants, f"P = {P}", P=P, B=B, gamma=gamma, T=T)


def _print_for_runs(args: argparse.Namespace) -> None:
    """Measure the constants of the runs' problems; print tables, and predictions for each run."""
    from localavg.files.record import load

    runs = [load(path) for path in args.from_run]
    here = world()
    if here.size > 1:
        raise UserError(f"theory on {here.size} ranks: it uses one process; run it without mpirun")
    from localavg.cli.theory.runs import first_step_size, innermost, measured
    from localavg.parallel.fleet import Fleet

    for same in measured(runs, Fleet(here), args.delta):
        first = same.runs[0]
        gamma = args.gamma or first_step_size(first)
        B, T = args.batch_size or first.config["batch_size"], args.steps or first.config["steps"]
        values = asdict(same.constants) | same.found
        print_table(same.problem, [{"constant": k, "value": v} for k, v in values.items()])
        _print_tables(args, same.constants, gamma, B, T)
        for run in same.runs:
            _print_unbounded(run)
            _print_prediction(
                same.constants,
                str(run.path),
                P=run.config["learners"],
                B=args.batch_size or run.config["batch_size"],
                gamma=args.gamma or first_step_size(run),
                T=args.steps or run.config["steps"],
                **innermost(run),
            )
            _print_variance(same.constants, run)


def _print_tables(
    args: argparse.Namespace, constants: Constants, gamma: float, B: int, T: int
) -> None:
    """Print the tables of --tables for one run: step size γ, batch size B, T local updates."""
    from localavg import theory

    P, K = args.P, args.K
    tables = {
        "kavg": (
            "K-AVG: bound (3.2) at fixed S = N·K",
            lambda: theory.kavg_table(constants, gamma=gamma, B=B, S_total=T, P=P, K=K),
        ),
        "mavg": (
            "M-AVG: Theorem 1 at fixed S = N·K",
            lambda: theory.mavg_table(constants, eta=gamma, B=B, S_total=T, P=P, K=K, mu=args.mu),
        ),
        "hieravg": (
            "Hier-AVG: bound (3.6) at fixed T = N·K2",
            lambda: theory.hieravg_table(
                constants, gamma=gamma, B=B, T=T, P=P, K1=args.K1, K2=K, S=args.S
            ),
        ),
        "lupa": (
            "LUPA: τ of Corollary 1 and Stich's",
            lambda: theory.lupa_table(constants, B=B, P=P, T=[T]),
        ),
        "adalupa": (
            f"ADA-LUPA: E periods that grow from τ_0 = {args.tau0} to make T, and their conditions",
            lambda: theory.adalupa_table(constants, B=B, P=P, T=T, tau0=args.tau0, E=args.E),
        ),
        "against": (
            "K-AVG(K) against Hier-AVG with K2 = (1 + a)K, K1 = 1, S = 4: Theorem 3.6",
            lambda: theory.against_table(constants, gamma=gamma, B=B, T=T, P=P, K=K, a=args.a),
        ),
    }
    for name in args.tables:
        if name in tables:
            title, rows = tables[name]
            found = rows()
            print_table(
                f"{title} (γ = {gamma:g}, B = {B}, T = {T})", found or [{"no rows": EMPTY[name]}]
            )


def _print_unbounded(run: Run) -> None:
    """Print that there is no bound of a run's own algorithm, where there is none."""
    name, outer = run.config["algorithm"], run.config.get("outer")
    own = [f"--outer {outer}"] if outer and name != "mavg" else []
    own += ["--switch"] if run.config.get("switch") and name != "postlocal" else []
    late = (option for option in ("delay", "wire", "fragments") if run.config.get(option))
    own += [f"--{option} {run.config[option]}" for option in late]
    if name not in BOUNDED or own:
        how = " ".join([name, *own])
        print(f"{run.path}: no bound of {how} here; what is predicted is of the papers' algorithms")


def _print_variance(constants: Constants, run: Run) -> None:
    """Print the weighted variance (9) and bound (8) of adpsgd for a run that recorded V_t.

    V_t is recorded with `train --variance steps`; for other runs nothing is printed.
    """
    import numpy as np

    from localavg import theory
    from localavg.cli.theory.runs import step_size

    averages = run.averages
    if averages.empty or averages.mean_variance.isna().any():
        return
    # [T] V_t stands for every Var[W_k] of its period
    variance = np.repeat(averages.mean_variance.to_numpy(), averages.period)
    gamma = np.array([*map(step_size(run)[0], range(1, len(variance) + 1))])  # [T]
    bound = theory.adpsgd_bound(
        F1_minus_Fstar=constants.F1_minus_Fstar,
        L=constants.L,
        sigma2=constants.M,
        gamma=gamma,
        variance=variance,
        B=run.config["batch_size"],
        P=run.config["learners"],
    )
    weighted = theory.adpsgd_weighted_variance(gamma=gamma, variance=variance)
    row = {"weighted variance (9)": float(weighted), "bound (8)": float(bound)}
    print_table(f"ADPSGD on {run.path}", [row])


def _print_prediction(constants: Constants, title: str, **of: Any) -> None:
    """Print what the papers predict for a run, given as keywords of `theory.predict`."""
    from localavg import theory

    found = theory.predict(constants, **of)
    rows = [
        {"predicted": k, "value": v} for k, v in found.items() if k not in ("conditions", "failing")
    ]
    print_table(f"predicted for {title}", rows)
    if found["failing"]:
        print_table("conditions that fail there, and by how much", found["failing"])
