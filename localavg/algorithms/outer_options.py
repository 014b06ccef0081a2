"""The options of the outer optimiser, which are common to all rows that average more than once.

They are parameters of the rows' functions, so that they mean the same on the command line, in
`attach`, in sweeps and in run files, and a row without them refuses them.
"""

from __future__ import annotations

from typing import Annotated

from localavg.algorithms.base import Mean
from localavg.algorithms.outer import RULES
from localavg.errors import UserError, check_choice
from localavg.interfaces import Settings

OUTER_LR = "step size η of the outer optimiser, α of slowmo"
MU = "momentum μ of the outer optimiser, in [0, 1); β₁ of adam and yogi, β of slowmo"
# the options of a row without an outer optimiser of its own
Outer = Annotated[
    str | None,
    "outer optimiser, which steps from the last average of everyone towards the new mean: none, "
    "momentum (BMUF, FedAvgM), nesterov (DiLoCo), adam (FedAdam), yogi (FedYogi) or slowmo "
    "(default: none; momentum if --mu is above 0)",
]
OuterLr = Annotated[
    float | None, f"{OUTER_LR} (default: momentum and slowmo 1, nesterov 0.7, adam and yogi 0.01)"
]
Mu = Annotated[float | None, f"{MU} (default: 0.9, slowmo 0.5)"]


def effective(
    outer: str | None, lr: float | None, mu: float | None
) -> tuple[str | None, float | None, float | None]:
    """Return the rule, η and μ that these options stand for; three None for the plain mean.

    An argument that is None was not given. Raises UserError for an unknown rule, for numbers that
    break theirs, and for numbers that mean nothing.
    """
    if outer is None:
        outer, mu = ("momentum", mu) if mu else ("none", None)
    check_choice("outer", outer, ("none", *RULES))
    if outer != "none":
        rule = RULES[outer](lr, mu)
        return outer, rule.lr, rule.mu
    for name, value in (("outer_lr", lr), ("mu", mu)):
        if value is not None:
            raise UserError(
                f"`{name} = {value:g}` means nothing to a run without `outer`; add `outer` with "
                f"one of {', '.join(RULES)}, or leave it out"
            )
    return None, None, None


def filled_in(options: Settings) -> Settings:
    """Return the options of a row with those of its outer optimiser as they take effect."""
    if "outer" not in options:
        return options
    names = "outer", "outer_lr", "mu"
    return {**options, **dict(zip(names, effective(*map(options.get, names)), strict=True))}


def average(outer: str | None, lr: float | None, mu: float | None) -> Mean:
    """Make what an average of everyone does, for any schedule; the options as in `effective`."""
    outer, lr, mu = effective(outer, lr, mu)
    if outer is None or (outer in ("momentum", "nesterov") and (lr, mu) == (1, 0)):
        return Mean()  # w̃ + (w̄ − w̃) is the mean, with less rounding and no state
    return RULES[outer](lr, mu)
