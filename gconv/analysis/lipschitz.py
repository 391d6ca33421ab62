"""How much a whole network can stretch a difference between two inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gconv.analysis.calls import call, takes_graph
from gconv.analysis.norms import norm, norm_bound
from gconv.basis import Basis, Stack, entries
from gconv.domains import Grid, read_graph
from gconv.mixing import plain
from gconv.module import GConv, bind
from gconv.operators import (
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
)

CONV: dict[type[nn.Module], Any] = {nn.Conv1d: conv1d, nn.Conv2d: conv2d, nn.Conv3d: conv3d}
CONV_T: dict[type[nn.Module], Any] = {
    nn.ConvTranspose1d: conv_transpose1d,
    nn.ConvTranspose2d: conv_transpose2d,
    nn.ConvTranspose3d: conv_transpose3d,
}
MEAN: dict[type[nn.Module], Any] = {nn.AvgPool1d: avg_pool1d, nn.AvgPool2d: avg_pool2d, nn.AvgPool3d: avg_pool3d}
MAX: dict[type[nn.Module], Any] = {nn.MaxPool1d: max_pool1d, nn.MaxPool2d: max_pool2d, nn.MaxPool3d: max_pool3d}

# the largest slope of each activation, rounded up where it is no round number
SLOPES: dict[type[nn.Module], float] = {
    nn.ReLU: 1.0,
    nn.ReLU6: 1.0,
    nn.Hardtanh: 1.0,
    nn.Tanh: 1.0,
    nn.Softsign: 1.0,
    nn.Softplus: 1.0,
    nn.LogSigmoid: 1.0,
    nn.CELU: 1.0,
    nn.Sigmoid: 0.25,
    nn.Hardsigmoid: 1 / 6,
    nn.Hardswish: 1.5,
    nn.SELU: 1.7581,
    nn.GELU: 1.13,
    nn.SiLU: 1.1,
    nn.Mish: 1.1,
    nn.Softmax: 0.5,
    nn.Identity: 1.0,
    nn.Flatten: 1.0,
    nn.Unflatten: 1.0,
    nn.ZeroPad1d: 1.0,
    nn.ZeroPad2d: 1.0,
    nn.ZeroPad3d: 1.0,
}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
Rule = Callable[[Any, Callable[[nn.Module], float]], float]


def lipschitz_bound(
    model: nn.Module,
    x: Any,
    domain: Any = None,
    *,
    certified: bool = True,
    rules: Mapping[type[nn.Module], Rule] | None = None,
) -> float:
    """A number L with |f(x) - f(y)| <= L |x - y| for all inputs, in the Euclidean norm.

    Equation: L = product over the layers of ||A|| (linear layers: the norm of the operator on this grid or graph, not
    that of the reshaped kernel), max |slope| (activations), sqrt(overlap) (maxima: how often a site is read, with its
    weights), max |gamma| / sqrt(var + eps) (batch norm in eval mode).

    Meaning: inputs that differ by less than margin / (sqrt(2) L) get the same class. The product is an upper bound,
    often far above the true constant.

    Cost: `norm_bound` (certified) or `norm` of every linear layer, and one forward pass of a zero input for the shapes.

    Args:
        model: nn.Sequential of GConv and torch.nn layers, nested as you like, or one layer, in eval mode.
        x: an input without its batch axis, (c, *grid) or (n, c), or its shape.
        domain: the graph, for layers on graphs.
        certified: bounds that hold for certain. False takes the norms themselves, which are smaller, but where they
            come from Lanczos they approach from below.
        rules: for your own modules: rule(module, bound) -> number, where bound(part) is that of a part of the module at
            the same input. A residual block by the triangle inequality: `{Block: lambda m, bound: 1 + bound(m.body)}`.

    Raises:
        TypeError: if a module is not known; the message says what to do.
        ValueError: if batch norm or dropout is in training mode, or attention depends on its input without bound.

    >>> from gconv.operators import conv2d, max_pool2d
    >>> net = nn.Sequential(GConv(conv2d(1, 4, 3, padding=1)), nn.ReLU(), GConv(max_pool2d(2)), nn.Flatten())
    >>> lipschitz_bound(net, (1, 8, 8)) < 4
    True

    Source: Szegedy et al., Intriguing Properties of Neural Networks, ICLR 2014; for operator norms of convolutions on
    their grid Ryu et al., Plug-and-Play Methods Provably Converge, ICML 2019.
    """
    parameter = next(model.parameters(), torch.zeros(()))
    like = (x if isinstance(x, Tensor) else torch.empty(tuple(x))).to(parameter)
    zero = torch.zeros_like(like) if domain is not None else torch.zeros_like(like).unsqueeze(0)
    graph = None if domain is None else read_graph(domain, zero.shape[-2])
    measure = norm_bound if certified else norm
    with torch.no_grad():
        return _bound(model, zero, graph, measure, dict(rules or {}))


def _bound(module: nn.Module, x: Tensor, graph: Any, measure: Any, rules: dict[type[nn.Module], Rule]) -> float:
    if type(module) in rules:
        return rules[type(module)](module, lambda part: _bound(part, x, graph, measure, rules))
    if isinstance(module, nn.Sequential):
        total = 1.0
        for layer in module:
            total *= _bound(layer, x, graph, measure, rules)
            x = call(layer, x, graph)
        return total
    if isinstance(module, GConv):
        return _of_layer(module, x, graph, measure)
    if isinstance(module, nn.Linear):
        return float(torch.linalg.matrix_norm(module.weight.double(), 2))
    if isinstance(module, NORMS):
        if module.training or module.running_var is None:
            raise ValueError(
                "Batch norm in training mode divides by the spread of its batch and has no bound: call model.eval()."
            )
        gamma = torch.ones(()) if module.weight is None else module.weight
        return float((gamma.abs() / (module.running_var + module.eps).sqrt()).max())
    if isinstance(module, DROPOUTS):
        if module.training and module.p:
            raise ValueError("Dropout in training mode draws at random: call model.eval().")
        return 1.0
    if isinstance(module, nn.LeakyReLU):
        return max(1.0, abs(module.negative_slope))
    if isinstance(module, nn.PReLU):
        return max(1.0, float(module.weight.abs().max()))
    if isinstance(module, nn.ELU):
        return max(1.0, module.alpha)
    if type(module) in SLOPES:
        return SLOPES[type(module)]
    ours = _read(module)
    if ours is None:
        raise TypeError(
            f"No bound is known for {type(module).__name__}; give one, rules={{{type(module).__name__}: "
            "lambda module, bound: ...}, a number that the module cannot exceed."
        )
    return _of_layer(ours, x, None, measure)


def _of_layer(layer: GConv, x: Tensor, graph: Any, measure: Any) -> float:
    structure = layer.spec.structure
    if structure.kind == "adaptive":
        raise ValueError(
            f"{layer.spec.name} makes its structure from the signal and is not Lipschitz on all signals; "
            "freeze it, layer.at(graph, x=x0), and ask for the norm of that map."
        )
    if takes_graph(layer) or (graph is not None and structure.domain == "any"):
        domain, signal = graph, x
        if domain is None:
            raise ValueError(f"{layer.spec.name} works on a graph: give the graph as the domain.")
    else:
        ndim = getattr(structure, "ndim", x.ndim - 2)
        domain = Grid.of(x, ndim)
        signal = x.flatten(-ndim).mT
    signal = signal.flatten(0, -3)[0] if signal.ndim > 2 else signal
    S = bind(structure, domain, dict(layer.named_parameters()), signal)
    if S.linear:
        bound: float = measure(layer.at(domain, signal))
        return bound
    mixing, W = plain(layer.spec.mixing, layer.weight)
    weights = mixing.dense(W, signal.shape[-1]).double()
    parts: tuple[Basis, ...] = S.parts if isinstance(S, Stack) else (S,)
    total, k = 0.0, 0
    for part in parts:
        size = float(torch.linalg.matrix_norm(weights[k : k + part.shape[0]], 2).max())
        total, k = total + _of_taps(part, signal) * size, k + part.shape[0]
    return total


def _of_taps(S: Basis, like: Tensor) -> float:
    """sum over taps of the bound of one: |max_j v_ij x_j - max_j v_ij y_j|^2 <= sum_j v_ij^2 |x_j - y_j|^2."""
    taps = entries(S, like.dtype, like.device)
    k, m, n = taps.shape
    if taps.linear:  # sqrt(||S||_1 ||S||_inf)
        size = taps.values.double().abs()
        rows = size.new_zeros(k * m).index_add(0, taps.pattern.tap * m + taps.pattern.row, size).unflatten(0, (k, m))
        cols = size.new_zeros(k * n).index_add(0, taps.pattern.tap * n + taps.pattern.col, size).unflatten(0, (k, n))
        return float((rows.amax(1) * cols.amax(1)).sqrt().sum())
    squares = taps.values.double().square()
    cols = squares.new_zeros(k * n).index_add(0, taps.pattern.tap * n + taps.pattern.col, squares)
    return math.fsum(cols.unflatten(0, (k, n)).amax(1).sqrt().tolist())


def _read(module: nn.Module) -> GConv | None:
    """torch's convolutions and poolings as ours, weights carried over; None for all others."""
    kind: Any = type(module)
    m: Any = module
    if kind in MEAN | MAX and m.ceil_mode:
        return None
    if kind in MEAN:
        if getattr(m, "divisor_override", None) is not None:
            return None
        spec = MEAN[kind](m.kernel_size, m.stride, m.padding, count_include_pad=m.count_include_pad)
        return GConv(spec)
    if kind in MAX:
        return GConv(MAX[kind](m.kernel_size, m.stride, m.padding, m.dilation))
    if kind not in CONV and kind not in CONV_T:
        return None
    numbers = {"stride": m.stride, "padding": m.padding, "dilation": m.dilation, "groups": m.groups, "bias": False}
    if kind in CONV_T:
        numbers["output_padding"] = m.output_padding
    else:
        numbers["padding_mode"] = m.padding_mode
    layer = GConv((CONV | CONV_T)[kind](m.in_channels, m.out_channels, m.kernel_size, **numbers), dtype=m.weight.dtype)
    split = m.weight.flatten(2).unflatten(0, (m.groups, -1))  # (g, o/g, i/g, k), transposed (g, i/g, o/g, k)
    grouped = split.permute(3, 0, 1, 2) if kind in CONV_T else split.permute(3, 0, 2, 1)
    assert layer.weight is not None
    layer.weight.data = grouped.reshape(layer.weight.shape).clone()
    return layer.to(m.weight.device)
