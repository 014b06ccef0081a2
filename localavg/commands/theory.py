"""``localavg theory``: the papers' bounds, conditions and predictions, as tables."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from localavg.commands import print_table
from localavg.config import UserError


def add(commands: Any) -> None:
    p = commands.add_parser("theory", help="the papers' bounds, conditions and optima for a problem's constants",
                            description="Print the papers' bounds, which conditions fail and by how much, and the predicted "
                            "K_opt, μ_opt, τ and K2.")
    p.set_defaults(call=_theory)
    g = p.add_argument_group("constants: measured on the problem of runs, or given")
    g.add_argument("--from-run", nargs="+", metavar="FILE", help="run files of logistic regression; also gives B, P, γ and T")
    g.add_argument("--F1-minus-Fstar", type=float, metavar="X", help="F(w_1) − F*")
    g.add_argument("--L", type=float, metavar="X", help="Lipschitz constant of ∇F")
    g.add_argument("--M", type=float, metavar="X", help="variance of one example's gradient")
    g.add_argument("--mu-PL", type=float, metavar="X", help="Polyak-Łojasiewicz constant, for lupa's bounds")
    g.add_argument("--delta", type=float, default=0.5, metavar="X", help="δ of kavg and mavg, in (0, 1) (default: 0.5)")
    g = p.add_argument_group("the run they are for")
    g.add_argument("--gamma", type=float, metavar="X", help="step size")
    g.add_argument("--batch-size", type=int, metavar="N", help="B")
    g.add_argument("--steps", type=int, metavar="N", help="T, local updates per learner")
    g = p.add_argument_group("tables over")
    for name, kind, default in (("P", int, [8, 16, 32, 64, 128]), ("K", int, [1, 2, 4, 8, 16, 32, 64]),
                                ("mu", float, [0.0, 0.3, 0.5, 0.7, 0.9]), ("K1", int, [1, 2, 4, 8]), ("S", int, [2, 4])):
        g.add_argument(f"--{name}", type=kind, nargs="+", metavar="X", default=default,
                       help=f"(default: {' '.join(map(str, default))})")
    p.add_argument("--tables", nargs="+", choices=("kavg", "mavg", "hieravg", "lupa", "none"), metavar="TABLE",
                   default=["kavg", "mavg", "hieravg", "lupa"], help="kavg mavg hieravg lupa (default: all), or none")


def _theory(args: argparse.Namespace) -> int:
    from localavg import theory

    delta = args.delta
    if not args.from_run:
        needed = {"--F1-minus-Fstar": args.F1_minus_Fstar, "--L": args.L, "--M": args.M, "--gamma": args.gamma,
                  "--batch-size": args.batch_size, "--steps": args.steps}
        if lacking := [name for name, value in needed.items() if value is None]:
            raise UserError(f"theory needs {', '.join(lacking)}; give them, or --from-run FILE…")
        constants = theory.Constants(F1_minus_Fstar=args.F1_minus_Fstar, L=args.L, M=args.M, delta=delta, mu_PL=args.mu_PL)
        _print_theory(args, constants, args.gamma, args.batch_size, args.steps)
        for P in args.P:
            _print_prediction(constants, f"P = {P}", P=P, B=args.batch_size, gamma=args.gamma, T=args.steps)
        return 0
    from localavg.record import load

    runs = [load(path) for path in args.from_run]
    from mpi4py import MPI

    from localavg.estimate import from_runs
    from localavg.fleet import Fleet

    for group in from_runs(runs, Fleet(MPI.COMM_WORLD), delta):
        constants, settings = group["constants"], group["runs"][0].config
        gamma, B, T = (args.gamma or settings["lr"], args.batch_size or settings["batch_size"], args.steps or settings["steps"])
        print_table(group["problem"], [{"constant": k, "value": v} for k, v in (asdict(constants) | group["found"]).items()])
        _print_theory(args, constants, gamma, B, T)
        for run in group["runs"]:
            _print_prediction(constants, str(run.path), P=run.config["learners"], B=args.batch_size or run.config["batch_size"],
                              gamma=args.gamma or run.config["lr"], T=args.steps or run.config["steps"])
    return 0


def _print_theory(args: argparse.Namespace, constants: Any, gamma: float, B: int, T: int) -> None:
    from localavg import theory

    tables = {
        "kavg": ("K-AVG: bound (3.2) at fixed S = N·K", lambda: theory.kavg_table(
            constants, gamma=gamma, B=B, S_total=T, P=args.P, K=args.K)),
        "mavg": ("M-AVG: Theorem 1 at fixed S = N·K", lambda: theory.mavg_table(
            constants, eta=gamma, B=B, S_total=T, P=args.P, K=args.K, mu=args.mu)),
        "hieravg": ("Hier-AVG: bound (3.6) at fixed T = N·K2", lambda: theory.hieravg_table(
            constants, gamma=gamma, B=B, T=T, P=args.P, K1=args.K1, K2=args.K, S=args.S)),
        "lupa": ("LUPA: τ of Corollary 1 and Stich's", lambda: theory.lupa_table(constants, B=B, P=args.P, T=[T])),
    }
    for name in args.tables:
        if name in tables:
            title, rows = tables[name]
            print_table(f"{title} (γ = {gamma:g}, B = {B}, T = {T})", rows())


def _print_prediction(constants: Any, title: str, **of: Any) -> None:
    from localavg import theory

    found = theory.predict(constants, **of)
    rows = [{"predicted": k, "value": v} for k, v in found.items() if k not in ("conditions", "failing")]
    print_table(f"predicted for {title}", rows)
    if found["failing"]:
        print_table("conditions that fail there, and by how much", found["failing"])
