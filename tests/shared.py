"""Samples and wrappers that several test files use."""

import pytest
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gconv import Grid, list_operators

# one operator of each mixing
MIXINGS = {
    *("conv2d", "conv_transpose2d", "depthwise", "separable", "p4_conv", "max_pool2d"),
    *("cheb", "gat", "egc", "gcn2", "mf", "spectral"),
}
# `name` and `first`: the last sample of one operator of each mixing is quick; all samples of all operators are slow
every_operator = pytest.mark.parametrize(
    ("name", "first"),
    [pytest.param(n, 0, marks=pytest.mark.slow, id=f"{n}-all") for n in list_operators()]
    + [pytest.param(n, -1, id=n) for n in sorted(MIXINGS)],
)


class On(nn.Module):
    """A layer on one domain, as a module of x alone."""

    def __init__(self, case):
        super().__init__()
        self.layer, self.domain = case.layer, None if isinstance(case.domain, Grid) else case.domain

    def forward(self, x):
        return self.layer(x, self.domain)


class Dispatched(TorchDispatchMode):
    """The names of the operators that torch runs."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))
