"""The layers of torch.nn, one entry a class."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gconv import operators
from gconv.domains import Grid
from gconv.interop.peer import LeftAlone, Peer, Weights, run
from gconv.spec import OperatorSpec

NDIM = {"1d": 1, "2d": 2, "3d": 3}


def ndim(layer: nn.Module) -> int:
    """Axes of the grids that a layer of this class runs on, from the end of its name."""
    return next(d for cls in type(layer).__mro__ for end, d in NDIM.items() if cls.__name__.endswith(end))


def short(value: Any) -> Any:
    """One number where all axes have the same."""
    if isinstance(value, (tuple, list)) and len(set(value)) == 1:
        return value[0]
    return tuple(value) if isinstance(value, list) else value


def no_weights(layer: Any) -> Weights:
    """For what has none."""
    return {}


def images(layer: Any, input: Tensor) -> Tensor | None:
    """Images (b, c, *grid) or one without b; anything else is the peer's to judge."""
    d = ndim(layer)
    fits = input.ndim in (d + 1, d + 2) and input.is_floating_point() and input.numel()
    return run(layer, input) if fits else None


# -- convolutions --------------------------------------------------------------------------------------------------


def conv_spec(layer: Any) -> OperatorSpec:
    factory = getattr(operators, f"conv{ndim(layer)}d")
    padding = layer.padding if isinstance(layer.padding, str) else short(layer.padding)
    return factory(
        layer.in_channels,
        layer.out_channels,
        short(layer.kernel_size),
        short(layer.stride),
        padding,
        short(layer.dilation),
        layer.groups,
        layer.bias is not None,
        layer.padding_mode,
    )


def conv_weights(layer: Any) -> Weights:
    """torch's (o, i/g, *kernel) as W (k, i, o), in groups (k, g, i/g, o/g); a view."""
    w = layer.weight.flatten(2)
    W = w.permute(2, 1, 0) if layer.groups == 1 else w.unflatten(0, (layer.groups, -1)).permute(3, 0, 2, 1)
    return {"weight": W, "bias": layer.bias}


def transposed_spec(layer: Any, output_padding: Any = None) -> OperatorSpec:
    factory = getattr(operators, f"conv_transpose{ndim(layer)}d")
    return factory(
        layer.in_channels,
        layer.out_channels,
        short(layer.kernel_size),
        short(layer.stride),
        short(layer.padding),
        short(layer.output_padding if output_padding is None else output_padding),
        layer.groups,
        layer.bias is not None,
        short(layer.dilation),
    )


def transposed_weights(layer: Any) -> Weights:
    """torch's (i, o/g, *kernel) as W (k, i, o), in groups (k, g, i/g, o/g); a view."""
    w = layer.weight.flatten(2)
    W = w.permute(2, 0, 1) if layer.groups == 1 else w.unflatten(0, (layer.groups, -1)).permute(3, 0, 1, 2)
    return {"weight": W, "bias": layer.bias}


def transposed(layer: Any, input: Tensor, output_size: Any = None) -> Tensor | None:
    d = ndim(layer)
    if input.ndim not in (d + 1, d + 2) or not input.is_floating_point() or not input.numel():
        return None
    if output_size is None:
        return run(layer, input)
    extra = layer._output_padding(
        input, output_size, layer.stride, layer.padding, layer.kernel_size, d, layer.dilation
    )
    return run(layer, input, spec=transposed_spec(layer, tuple(extra)))


CONV = Peer(conv_spec, conv_weights, images)
TRANSPOSED = Peer(transposed_spec, transposed_weights, transposed)


# -- pooling -------------------------------------------------------------------------------------------------------


def avg_spec(layer: Any) -> OperatorSpec:
    d = ndim(layer)
    window = [short(v) for v in (layer.kernel_size, layer.stride, layer.padding)]
    more = {} if d == 1 else {"divisor_override": layer.divisor_override}
    factory = getattr(operators, f"avg_pool{d}d")
    return factory(*window, ceil_mode=layer.ceil_mode, count_include_pad=layer.count_include_pad, **more)


def max_spec(layer: Any) -> OperatorSpec:
    if layer.return_indices:
        raise LeftAlone("return_indices=True also asks where the maxima are, which is no convolution")
    window = [short(v) for v in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)]
    factory = getattr(operators, f"max_pool{ndim(layer)}d")
    return factory(*window, ceil_mode=layer.ceil_mode)


def avg_notes(layer: Any) -> list[str]:
    if layer.count_include_pad and any(torch.tensor(layer.padding).flatten().tolist()):
        return ["padded sites count in the mean, those that only ceil_mode adds do not"]
    return []


AVG = Peer(avg_spec, no_weights, images, avg_notes)
MAX = Peer(max_spec, no_weights, images, lambda layer: ["a maximum: it has no LinearMap"])


# -- channels alone ------------------------------------------------------------------------------------------------


def linear_call(layer: Any, input: Tensor) -> Tensor | None:
    if not input.ndim or not input.is_floating_point() or not input.numel():
        return None
    y = run(layer, input.reshape(-1, input.shape[-1]).t())
    return y.t().unflatten(0, input.shape[:-1]) if input.ndim != 1 else y[:, 0]


LINEAR = Peer(
    lambda layer: operators.pointwise(layer.in_features, layer.out_features, layer.bias is not None, ndim=1),
    lambda layer: {"weight": layer.weight.t().unsqueeze(0), "bias": layer.bias},
    linear_call,
    lambda layer: ["all axes but the last are sites"],
)

PEERS: dict[type, Peer] = {
    nn.Conv1d: CONV,
    nn.Conv2d: CONV,
    nn.Conv3d: CONV,
    nn.ConvTranspose1d: TRANSPOSED,
    nn.ConvTranspose2d: TRANSPOSED,
    nn.ConvTranspose3d: TRANSPOSED,
    nn.AvgPool1d: AVG,
    nn.AvgPool2d: AVG,
    nn.AvgPool3d: AVG,
    nn.MaxPool1d: MAX,
    nn.MaxPool2d: MAX,
    nn.MaxPool3d: MAX,
    nn.Linear: LINEAR,
}
