"""Stands in for torch.cuda where there is no GPU: what torch computes waits in a stream of the
stand-in for CuPy until somebody waits for that stream.

Whoever reads numbers of another stream without a wait reads old ones. It says nothing about the
speed or the faults of a GPU.
"""

import contextlib

import stand_in
import torch
from cuda_stand_in import changed, tensors
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only


class Stream(stand_in.Stream):
    """A stream of torch's, with its address by torch's name."""

    cuda_stream = property(lambda self: self.ptr)


class Late(TorchDispatchMode):
    """torch.cuda while it is the mode: operations are queued in the present stream."""

    def __init__(self, stream):
        super().__init__()
        self.now, self.capturing, self.inside = stream, False, []

    def current_stream(self):
        return self.now

    def is_current_stream_capturing(self):
        return self.capturing

    @contextlib.contextmanager
    def device(self, where):
        self.inside.append(where)
        try:
            yield
        finally:
            self.inside.pop()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function._schema.name.partition("::")[2]
        views = any(r.alias_info and not r.alias_info.is_write for r in function._schema.returns)
        if views or name in ("set_", "lift_fresh") or name.startswith(("empty", "new_empty")):
            return function(*args, **kwargs)
        if name in ("_local_scalar_dense", "equal"):
            self.now.synchronize()
            return function(*args, **kwargs)
        written = [] if "batch_norm" in name else changed(function, name, args, kwargs)
        # Aliases count no changes of their own, which would come late for the checks of backward.
        late = tree_map_only(torch.Tensor, lambda x: x.data, (args, kwargs))
        if written:
            self._queue(name, lambda: function(*late[0], **late[1]))
            return written[0] if function._schema.returns else None
        copies = tree_map_only(torch.Tensor, torch.clone, late)  # BatchNorm's statistics stay
        result = function(*copies[0], **copies[1])  # of old numbers, for its shape
        made = [x.data for x in tensors(result)]
        self._queue(name, lambda: _fill(made, function(*late[0], **late[1])))
        return result

    def _queue(self, name, work):
        def alone():
            with _disable_current_modes(), torch.no_grad():
                work()

        self.now.queue(f"torch {name}", alone)


def _fill(made, result):
    for to, x in zip(made, tensors(result), strict=True):
        to.copy_(x)
