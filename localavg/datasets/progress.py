"""The progress bar of all work that takes long."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm


def bar(total: int | None, what: str = "", unit: str = "B") -> tqdm:
    """Return a progress bar over `total` units (None: unknown), shown on a terminal only.

    unit: "B" for bytes. Call its `update(n)` for n more units. It is closed by `close()` or at the
    end of a `with` block.
    """
    from tqdm import tqdm

    return tqdm(
        total=total,
        unit=unit,
        unit_scale=unit == "B",
        desc=what or None,
        dynamic_ncols=True,
        mininterval=0.5,
        disable=None,
    )
