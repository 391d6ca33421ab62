"""Detection of repeated inputs, for `convert(model, constant_inputs=True)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from gconv.kernels import is_plain_eager, known
from gconv.kernels.constants import declared


class Repeated:
    """The input of a layer's last call, declared constant when it is passed again.

    A signal is the same if it is the same tensor object with the same storage, version, shape, strides, dtype and
    device. Only a weak reference to the tensor is kept; when the tensor is freed, the cached data is dropped.
    """

    def __init__(self) -> None:
        self.last: ref[Tensor] | None = None
        self.state: Any = None
        self.constant: Tensor | None = None

    def take(self, x: Tensor, prepare: Callable[[Tensor], Tensor] | None) -> Tensor:
        """The input of the engine: prepare(x), declared constant if x is the signal of the last call.

        Args:
            x: the input of the layer.
            prepare: preprocessing by the layer; None for none.
        """
        if x.requires_grad or x.ndim != 2 or not is_plain_eager() or x.is_inference() or not x.is_floating_point():
            return x if prepare is None else prepare(x)
        state = x.data_ptr(), x._version, x.shape, x.stride(), x.dtype, x.device
        if self.last is None or self.last() is not x or self.state != state:
            self.constant, self.state, self.last = None, state, ref(x, self._drop)
            return x if prepare is None else prepare(x)
        if self.constant is None or (prepare is not None and known(self.constant) is None):  # written to untracked
            with torch.inference_mode(False), torch.no_grad():
                alias = x.detach()
                self.constant = declared(alias if prepare is None else prepare(alias), alias)
        return self.constant

    def _drop(self, last: ref[Tensor]) -> None:
        if self.last is last:
            self.last = self.constant = None
