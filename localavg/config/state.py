"""What an average does to the optimiser's state: one word for all of it, or one for each moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from localavg.errors import bad

STATES = ("keep", "average", "reset")
MOMENTS = {  # optimiser: its moments, by the names that --state takes
    "sgd": (),
    "momentum": ("v",),
    "nesterov": ("v",),
    "adam": ("m", "v"),
    "adamw": ("m", "v"),
}
OPTIMIZERS = tuple(MOMENTS)


def by_name(name: str, state: str | Mapping[str, str]) -> str | dict[str, str]:
    """Return the word for all moments, or the word of each moment that is named.

    state: keep, average or reset, or text such as m=reset,v=average, or a mapping that means the
    same. Raises UserError, which calls the setting `name`, for anything else.
    """
    if isinstance(state, str) and state in STATES:
        return state
    rule = f"must be one of {', '.join(STATES)}, or these by moment, such as m=reset,v=average"
    if not isinstance(state, str | Mapping):
        raise bad(name, repr(state), rule)
    text = state.replace(" ", "") if isinstance(state, str) else ""
    pairs = [each.split("=") for each in text.split(",")] if text else []
    if isinstance(state, Mapping):
        pairs = [list(pair) for pair in state.items()]
    named = dict(pair for pair in pairs if len(pair) == 2)
    fits = pairs and all(named) and all(word in STATES for word in named.values())
    if not fits or len(named) < len(pairs):  # a moment that is named twice is missing here
        raise bad(name, state, rule)
    return named


def valid_state(name: str, state: str) -> None:
    """Raise UserError for a text that is no policy of the optimiser's state."""
    by_name(name, state)


def by_moment(state: str, moments: Sequence[str], whose: str = "it") -> dict[str, str]:
    """Return what an average does to each of these moments; one that is not named is kept.

    A single moment may be called m or v. whose: the optimiser, for the UserError of a moment that
    it does not have.
    """
    named = by_name("state", state)
    if isinstance(named, str):
        return dict.fromkeys(moments, named)
    if len(moments) == 1 and len(named) == 1 and {*named} < {"m", "v"}:
        named = dict.fromkeys(moments, *named.values())
    if stray := [moment for moment in named if moment not in moments]:
        remedy = f"it has {' and '.join(moments)}" if moments else "leave it out"
        raise bad("state", state, f"{whose} has no moment {stray[0]}; {remedy}")
    return {moment: named.get(moment, "keep") for moment in moments}


def check_moments(state: str, optimizer: str) -> None:
    """Raise UserError if --state names a moment that --optimizer does not have."""
    by_moment(state, MOMENTS[optimizer], f"`optimizer = {optimizer}`")


def words(state: str | Mapping[str, str]) -> set[str]:
    """Return the words keep, average and reset that `state` has."""
    named = by_name("state", state)
    return {named} if isinstance(named, str) else {*named.values()}


def is_averaged(state: str) -> bool:
    """Return whether an average covers a part of the optimiser's state."""
    return "average" in words(state)
