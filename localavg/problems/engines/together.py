"""One network for L learners: a module under vmap, whose tensors are views into L rows.

`torch.func.vmap` makes one operation for all learners of each that the network does. Layers that it
does slowly, or not as training needs, are taken over by those of `layers` and `norms`. Autograd
works on the operations for all learners, outside vmap.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from localavg.errors import UserError
from localavg.interfaces import Array
from localavg.problems.engines import layers
from localavg.problems.engines.norms import Norm
from localavg.problems.rows import Rows

GATHERED_BYTES = 2 << 20
"""largest gather of a learner that a convolution makes for a product (`layers.Convolution`)

Above it images are so large that a convolution for each learner is faster.
"""


class Module:
    """A copy of a network in which layers of all learners stand for those that vmap does badly.

    into: the places of the gradients by a parameter's name, [L, …] as they lie in rows. masks: of
    the dropouts in the order of their calls. Both are set before each call.
    """

    def __init__(self, skeleton: nn.Module, name: str) -> None:
        self.net, self.name = copy.deepcopy(skeleton).train(), name
        self.into: dict[str, Tensor] = {}
        self.masks: Iterator[Tensor] = iter(())
        for prefix, module in self.net.named_modules():
            module._buffers = {
                key: x for key, x in module._buffers.items() if x is None or x.is_floating_point()
            }
            if forward := self._forward(module):
                names = {key: f"{prefix}.{key}".lstrip(".") for key in ("weight", "bias")}
                module.forward = partial(forward, module, names)

    def __call__(
        self, tensors: dict[str, Tensor], x: Tensor, y: Tensor, masks: list[Tensor]
    ) -> Tensor:
        """Return the loss of one learner; call it under vmap."""
        self.masks = iter(masks)
        return cross_entropy(functional_call(self.net, tensors, (x,)), y)

    def _forward(self, module: nn.Module) -> Callable[..., Tensor] | None:
        """Return what takes the place of a module's forward, None where vmap does it well."""
        if type(module) is nn.Linear:
            return self._linear
        if type(module) is nn.Conv2d and module.padding_mode == "zeros":
            return None if isinstance(module.padding, str) else self._convolution
        if type(module) in (nn.Dropout, nn.Dropout2d) and module.p:
            return self._dropout
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            if module.affine and module.momentum is not None:
                return self._norm
            raise UserError(
                f"`engine = batch`: BatchNorm of {self.name} has no weights or no momentum; use "
                "`engine = loop`"
            )
        return None

    def _linear(self, module: nn.Linear, names: dict[str, str], x: Tensor) -> Tensor:
        def all_learners(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
            x = _cast(x)
            y = layers.Linear.apply(x.flatten(1, -2), w, b, self._into(names))
            return y.unflatten(1, x.shape[1:-1]) if x.dim() > 3 else y

        if x.dim() < 2:
            return nn.Linear.forward(module, x)
        return _Together.apply(all_learners, x, module.weight, module.bias)

    def _convolution(self, module: nn.Conv2d, names: dict[str, str], x: Tensor) -> Tensor:
        stride, padding, dilation = module.stride, module.padding, module.dilation
        assert not isinstance(padding, str)

        def all_learners(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
            x, into = _cast(x), self._into(names)
            if _gathered_bytes(module, x) <= GATHERED_BYTES:
                w = w.permute(0, 1, 3, 4, 2)
                return layers.Convolution.apply(x, w, b, into, stride, padding)
            into = into[0].permute(0, 1, 4, 2, 3), into[1]
            return layers.Each.apply(x, w, b, into, (stride, padding, dilation, module.groups))

        return _Together.apply(all_learners, x, module.weight, module.bias)

    def _norm(self, module: _BatchNorm, names: dict[str, str], x: Tensor) -> Tensor:
        def all_learners(x: Tensor, *tensors: Tensor) -> Tensor:
            w, b, mean, var = tensors
            into = self._into(names)
            return Norm.apply(x, w, b, into, mean, var, module.eps, module.momentum)

        statistics = module.running_mean, module.running_var
        return _Together.apply(all_learners, x, module.weight, module.bias, *statistics)

    def _dropout(self, module: nn.Dropout, names: dict[str, str], x: Tensor) -> Tensor:
        return x * next(self.masks)

    def _into(self, names: dict[str, str]) -> layers.Into:
        return self.into[names["weight"]], self.into.get(names["bias"])


class Together:
    """A module at L rows w [L, d], whose gradients are kept in g [L, d].

    `gradient_` reads and writes the same memory at every call, apart from what it is called with.
    """

    def __init__(
        self,
        module: Module,
        rows: Rows,
        w: Array,
        g: Array,
        l2: float,
        autocast: AbstractContextManager[object],
    ) -> None:
        self.module, self.l2, self.autocast = module, l2, autocast
        self.w, self.g = rows.tensor(w)[:, : rows.n], rows.tensor(g)[:, : rows.n]  # [L, n]
        # Statistics change in the forward pass: a second tensor of the same memory keeps autograd
        # from taking that for a change of the parameters.
        parameters, statistics = rows.lying(rows.tensor(w)), rows.lying(rows.tensor(w))
        self.into = rows.lying(rows.tensor(g))
        self.tensors: dict[str, Tensor] = {}
        for i, name in enumerate(rows.shapes):
            x = _as_seen((parameters if i < rows.parameters else statistics)[name])
            self.tensors[name] = x
            if i < rows.parameters:
                x.requires_grad_()
                # of operations that are no layer's, such as a parameter in a formula
                x.register_post_accumulate_grad_hook(partial(_collect_, _as_seen(self.into[name])))

    def gradient_(self, x: Tensor, y: Tensor, masks: list[Tensor]) -> Tensor:
        """Write the gradients of the losses on x [L, B, C, H, W], y [L, B] and of l2 into g.

        masks: of the dropouts, [L, …] each. Return the losses [L].
        """
        torch.mul(self.w, self.l2, out=self.g)  # the layers add to it
        self.module.into = self.into
        with self.autocast:
            losses = vmap(self.module)(self.tensors, x, y, masks)
        losses.sum().backward()
        return losses.detach()


class _Together(Function):
    """Call compute(x, …) with the tensors of all learners, under vmap."""

    @staticmethod
    def forward(compute: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
        raise TypeError("a layer of all learners was called with tensors of one learner")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep nothing: autograd works on what `vmap` computes."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], compute: Callable[..., Tensor], *tensors: Any
    ) -> tuple[Tensor, int]:
        learners = []
        for x, at in zip(tensors, in_dims[1:], strict=True):
            if x is not None:
                x = x.expand(info.batch_size, *x.shape) if at is None else x.movedim(at, 0)
            learners.append(x)
        return compute(*learners), 0


def _collect_(place: Tensor, parameter: Tensor) -> None:
    """Add a parameter's gradient to its place and drop it; a layer of `layers` leaves None."""
    if parameter.grad is not None:
        place += parameter.grad
        parameter.grad = None


def _as_seen(x: Tensor) -> Tensor:
    """Return tensors [L, …] as they lie in rows in the shape that a module uses."""
    return x.permute(0, 1, 4, 2, 3) if x.dim() == 5 else x


def _cast(x: Tensor) -> Tensor:
    """Return x in the type that autocast computes products in."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def _gathered_bytes(module: nn.Conv2d, x: Tensor) -> float:
    """Return the bytes of a learner's gather for x [L, B, C, H, W]; 0 where there is none.

    Infinite for convolutions that `layers.Convolution` does not know.
    """
    assert not isinstance(module.padding, str)
    if module.groups > 1 or module.dilation != (1, 1):
        return float("inf")
    if module.kernel_size == module.stride == (1, 1):
        return 0
    h, w = layers.places(x.shape[3:], module.kernel_size, module.stride, module.padding)
    pixels = module.kernel_size[0] * module.kernel_size[1] * x.shape[2]
    return x.shape[1] * h * w * pixels * x.element_size()
