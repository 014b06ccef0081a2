"""The steps of torch optimisers, and the gradients that are exchanged before them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from localavg.attaching.row import Row
from localavg.interfaces import Array, Transport
from localavg.parallel.places import NOBODY, Taking, shown

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Parameter
    from torch.optim import Optimizer


class Steps:
    """Sees every step that any torch optimiser makes on the model's parameters.

    parts: the parameters of each optimiser that was given, by name. before(i, closure): called
    before the i-th of them makes a step; closure: whether the step was called with arguments. made:
    bit i is set when it has made a step in this update. stranger: the type of another optimiser
    that trained these parameters, "" if there was none.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        parts: Sequence[Mapping[str, Parameter]],
        before: Callable[[int, bool], None],
    ) -> None:
        from torch.optim import optimizer as torch_optimizer

        self.before, self.made, self.stranger = before, 0, ""
        self._numbers = {id(x): i for i, x in enumerate(optimizers)}
        self._parameters = {id(p) for part in parts for p in part.values()}
        # torch keeps these hooks for ever; they must not keep the model
        mine = weakref.ref(self)

        def begin(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
            if (steps := mine()) is not None:
                steps.begin(optimizer, len(args) > 1 or bool(kwargs))

        def end(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
            if (steps := mine()) is not None and (i := steps.number(optimizer)) is not None:
                steps.made |= 1 << i

        torch_optimizer.register_optimizer_step_pre_hook(begin)
        torch_optimizer.register_optimizer_step_post_hook(end)

    def number(self, optimizer: Optimizer) -> int | None:
        """Return which of the given optimisers this is, None for another one."""
        return self._numbers.get(id(optimizer))

    def begin(self, optimizer: Optimizer, closure: bool) -> None:
        """Take note of a step that begins now."""
        if (i := self.number(optimizer)) is not None:
            self.before(i, closure)
        elif any(id(p) in self._parameters for x in optimizer.param_groups for p in x["params"]):
            self.stranger = type(optimizer).__name__

    @property
    def fault(self) -> str:
        """What is wrong with the steps so far, "" if nothing is."""
        if not self.stranger:
            return ""
        return (
            f"attach: a step of {self.stranger} trained the model, which was not given at attach; "
            "give all optimizers at attach, or attach again"
        )


class Gradients:
    """The gradients of all given optimisers in one row [1, n], those of an optimiser together.

    fresh: the optimisers whose gradients were exchanged and not used yet. done: those exchanged in
    this update. Both are sets of bits. taking: the parameters that took part in the last
    `gather_`: those that the step of their optimiser changes.
    """

    def __init__(
        self, parts: Sequence[Mapping[str, Parameter]], transport: Transport, device: torch.device
    ) -> None:
        import torch

        self.parts = parts
        tensors = {name: p for part in parts for name, p in part.items()}
        self.row = Row(tensors, transport.zeros, device=device)
        self._gaps = torch.from_numpy(self.row.gaps()).to(device)
        self.fresh = self.done = 0
        self.taking = NOBODY
        self._last: dict[int, Taking] = {}  # by the optimisers' bits
        starts = [segment.start for segment in self.row.segments.values()] + [self.row.d]
        ends = [starts[n] for n in accumulate(map(len, parts), initial=0)]
        self._columns = [self.row.w[:, a:b] for a, b in zip(ends, ends[1:], strict=False)]

    @property
    def everyone(self) -> int:
        """The bits of all optimisers."""
        return (1 << len(self.parts)) - 1

    def columns(self, which: int) -> Array:
        """Return the gradients of all optimisers, or of one."""
        return self.row.w if which == self.everyone else self._columns[which.bit_length() - 1]

    def gather_(self, which: int) -> None:
        """Move the gradients of these optimisers into the row.

        A parameter without gradient counts as zero. Gradients that zero_grad(set_to_none=False)
        keeps are in the row already. A frozen parameter takes part if it has a gradient, because a
        step changes it too.
        """
        names: list[str] = []
        for i, part in enumerate(self.parts):
            for name, p in part.items() if which >> i & 1 else ():
                g = self.row.tensors[name]
                if p.grad is None:
                    g.zero_()
                elif not _is_at(p.grad, g):
                    g.copy_(p.grad.to_dense())  # an embedding's may be sparse
                if p.requires_grad or p.grad is not None:
                    p.grad = g
                    names.append(name)
        self.row.load_()
        self.row.numbers[self._gaps] = 0  # of an overflow a code may have left NaN there
        last = self._last.get(which, NOBODY)
        if last.names != (now := tuple(names)):
            last = self._last[which] = Taking.part(now)
        self.taking = last

    def used(self, i: int) -> bool:
        """Return whether optimiser i may step, and take its exchanged gradients if so.

        It may not where a gradient was made anew after the exchange.
        """
        was, self.fresh = self.fresh >> i & 1, self.fresh & ~(1 << i)
        tensors = self.row.tensors
        return bool(was) and all(
            p.grad is None or _is_at(p.grad, tensors[name]) for name, p in self.parts[i].items()
        )

    def missing(self, t: int) -> str:
        """Return what was not exchanged in update t, "" if everything was."""
        names = [
            name
            for i, part in enumerate(self.parts)
            for name, p in part.items()
            if not self.done >> i & 1 and p.requires_grad
        ]
        if not names:
            return ""
        return (
            f"attach: update {t} did not exchange the gradients of {shown(names)}, whose optimizer "
            "made no step; make every step on every rank, or call averager.exchange() before the "
            "steps, as a gradient scaler needs it"
        )


def _is_at(gradient: Tensor, view: Tensor) -> bool:
    """Return whether a gradient is this view into the row."""
    return not gradient.is_sparse and gradient.data_ptr() == view.data_ptr()
