"""What an output site can see, and what it does see."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gconv.analysis.calls import Model, call
from gconv.analysis.explicit import matrix
from gconv.linear import LinearMap, Map
from gconv.lowering import dense


def receptive_field(A: Map) -> Tensor:
    """(m, n) whether output site m reads input site n through any tap.

    Meaning: of a member of the family this is structure alone, whatever the weights; of sums and products it is the
    support of the matrix. What is mere rounding beside the largest entry counts as zero.

    Cost: the structure (or matrix) written out.

    >>> from gconv import GConv, Grid
    >>> from gconv.operators import conv1d
    >>> receptive_field(GConv(conv1d(1, 1, 2)).at(Grid((3,)))).int()
    tensor([[1, 1, 0],
            [0, 1, 1]], dtype=torch.int32)
    """
    with torch.no_grad():
        if isinstance(A, LinearMap):
            size = dense.stack(A.S, A.dtype, A.device).abs().amax(0)
        else:
            (m, n), M = A.sites, matrix(A).abs()
            size = M.unflatten(0, (m, A.o)).unflatten(2, (n, A.i)).amax((1, 3))
        return size > 100 * torch.finfo(A.dtype).eps * size.max() if size.numel() else size > 0


def effective_receptive_field(
    model: Model, x: Any, site: Any = None, domain: Any = None, *, draws: int = 20, seed: int = 0
) -> Tensor:
    """How strongly an output site depends on each input site, on average over inputs.

    Equation: E_j = mean over inputs and channels i of |d (sum_o y_site,o) / d x_j,i|.

    Meaning: the receptive field says what can be seen; this says how much of it counts. It shrinks to a Gaussian in
    the middle in deep networks, while the theoretical field grows linearly with depth. `receptive_field` is its exact
    support for a single linear layer.

    Traps: weights of opposite sign cancel in the sum over output channels, as in the source.

    Cost: `draws` forward and backward passes. A map is linear, so one suffices and no input is drawn.

    Args:
        model: a layer, nn.Sequential of layers, any callable, or a Map.
        x: an input without its batch axis, (c, *grid) or (n, c), of which only shape, dtype and device are read; or
            its shape.
        site: the output site: a number on graphs, a tuple on grids; default the middle.
        domain: the graph, for layers on graphs.
        draws: standard normal inputs.
        seed: of the inputs.

    Returns:
        (*grid) or (n,), not normalised.

    Raises:
        ValueError: if the site is not one of the output's.

    >>> from gconv import GConv
    >>> from gconv.operators import conv2d
    >>> net = torch.nn.Sequential(*(GConv(conv2d(1, 1, 3, padding=1)) for _ in range(3)))
    >>> int((effective_receptive_field(net, (1, 15, 15)) > 0).sum())  # three layers see 7 x 7
    49

    Source: Luo, Li, Urtasun and Zemel, Understanding the Effective Receptive Field in Deep Convolutional Neural
    Networks, NeurIPS 2016.
    """
    like = x if isinstance(x, Tensor) else torch.empty(tuple(x))
    if isinstance(model, Map):
        like, draws = like.to(model.device, model.dtype), 1
    generator = torch.Generator().manual_seed(seed)
    graph = domain is not None or isinstance(model, Map)
    total = torch.zeros(like.shape[:-1] if graph else like.shape[1:], dtype=like.dtype, device=like.device)
    for _ in range(draws):
        draw = torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like).requires_grad_()
        y = call(model, draw if graph else draw.unsqueeze(0), domain)
        y = y.mT if graph else y.squeeze(0)  # (o, *sites)
        at = _site(site, tuple(y.shape[1:]))
        (gradient,) = torch.autograd.grad(y.flatten(1)[:, at].sum(), draw)
        total += gradient.abs().mean(-1 if graph else 0)
    return total / draws


def _site(site: Any, shape: tuple[int, ...]) -> int:
    """The number of a site, row-major."""
    at = tuple(n // 2 for n in shape) if site is None else tuple(site) if isinstance(site, tuple) else (int(site),)
    if len(at) != len(shape) or any(not 0 <= p < n for p, n in zip(at, shape, strict=True)):
        raise ValueError(f"The output has sites of shape {shape}, but the site asked for is {site}.")
    number = 0
    for p, n in zip(at, shape, strict=True):
        number = number * n + p
    return number
