"""The texts that --sampling takes: a name, or a name with a number such as dirichlet:0.3."""

from __future__ import annotations

import math

from localavg.errors import UserError, bad

SAMPLING = ("iid", "shuffle", "shard", "block")
"""samplings without a number"""
PARTITIONS = {"dirichlet": "A", "dirichlet-class": "A", "shards": "S", "labels": "C"}
"""samplings by class, and how the number of each is called; S and C are whole"""
FORMS = (*SAMPLING, *(f"{name}:{number}" for name, number in PARTITIONS.items()))


def parsed(text: str) -> tuple[str, float | None]:
    """Return the name of a sampling and its number, None if it has none.

    Raises UserError for an unknown name, and for a number that is missing or breaks its rule.
    """
    name, colon, number = text.partition(":")
    if name in SAMPLING and not colon:
        return name, None
    if name not in PARTITIONS:
        raise bad("sampling", text, f"must be one of {', '.join(FORMS)}")
    whole = PARTITIONS[name] != "A"
    rule = "a whole number of at least 1" if whole else "a finite number above 0"
    try:
        value = int(number) if whole else float(number)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        example = f"{name}:2" if whole else f"{name}:0.3"
        form = f"{name}:{PARTITIONS[name]}"
        raise bad("sampling", text, f"must be {form}, {PARTITIONS[name]} {rule}, such as {example}")
    return name, value


def check(name: str, text: object) -> None:
    """Raise UserError unless a setting is the text of a sampling."""
    if not isinstance(text, str):
        raise UserError(f"`{name} = {text}`: must be one of {', '.join(FORMS)}")
    parsed(text)
