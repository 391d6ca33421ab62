"""Descriptions of the layers of torch.nn, one entry per class."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gconv import operators
from gconv.domains import Grid
from gconv.interop.peer import LeftAlone, Peer, Unweighted, Weights, engine, original_class, run
from gconv.kernels import constant_of, is_plain_eager
from gconv.kernels.transforms import PLAIN, is_fake
from gconv.lowering.images import LAST
from gconv.lowering.native import keeps_format, suggests_last
from gconv.operators.shapes import per_axis
from gconv.spec import OperatorSpec

NDIM = {"1d": 1, "2d": 2, "3d": 3}
MAX_FORMATS = 64  # number of input layouts for which a layer caches the strides of its result


def ndim(layer: nn.Module) -> int:
    """The number of axes of a layer's grid, from the end of its class name."""
    return next(d for cls in type(layer).__mro__ for end, d in NDIM.items() if cls.__name__.endswith(end))


def short(value: Any) -> Any:
    """A single number if it is the same for all axes."""
    if isinstance(value, (tuple, list)) and len(set(value)) == 1:
        return value[0]
    return tuple(value) if isinstance(value, list) else value


def no_weights(layer: Any) -> Weights:
    """The weights of layers without parameters."""
    return {}


def images(layer: Any, input: Tensor, axes: int = 0) -> Tensor | None:
    """Run images (b, c, *grid) or (c, *grid); for other inputs None, so that the original forward runs."""
    d = axes or ndim(layer)
    return run(layer, input) if fits(input, d + 1, d + 2) else None


def fits(input: Tensor, least: int, most: int) -> bool:
    """Whether an input runs in gconv: plain memory, a floating point type, least to most axes, and not empty."""
    return (
        not computes_itself(input)
        and input.layout is torch.strided
        and not input.is_nested
        and least <= input.ndim <= most
        and input.is_floating_point()
        and input.numel() > 0
    )


def computes_itself(t: Tensor) -> bool:
    """Whether t is of a subclass that overrides __torch_function__ or __torch_dispatch__, such as DTensor.

    It may support torch's functions only, so gconv's kernels are not used for it.
    """
    kind: Any = type(t)
    if kind in PLAIN or is_fake(t):
        return False
    own = getattr(kind.__torch_function__, "__func__", None)  # None: disabled
    known = own is None or own is Tensor.__torch_function__.__func__  # type: ignore[attr-defined]
    return not known or kind.__torch_dispatch__ is not Tensor.__torch_dispatch__


def has_such(layer: Any) -> bool:
    """Whether a parameter is of such a class, as those of distributed layers and of gradients per sample in torch."""
    return any([p is not None and computes_itself(p) for p in layer._parameters.values()])


def maxima(layer: Any, input: Tensor) -> Tensor | None:
    """As `images`; if gradients are needed, by torch's kernel, which gives the gradient of ties to the first maximum.

    Other lowerings distribute it equally. If torch's kernel does not apply, the original forward runs.
    """
    if not torch.is_grad_enabled() or not input.requires_grad:
        return images(layer, input)
    d = ndim(layer)
    return run(layer, input, lowering="native") if fits(input, d + 1, d + 2) else None  # type: ignore[arg-type]


def torch_forward(layer: nn.Module) -> Callable[..., Tensor]:
    """The original forward of a converted layer."""
    own = original_class(type(layer)).__mro__
    forward: Callable[..., Tensor] = next(cls for cls in own if cls in PEERS).forward  # type: ignore[attr-defined]
    return forward


def in_its_format(call: Callable[[Any, Tensor], Tensor | None]) -> Callable[[Any, Tensor], Tensor | None]:
    """A call whose result has the strides of torch's result, which is computed once per shape and layout of the input.

    For layers without parameters that do not run torch's kernels. Under autocast the original forward runs, since torch
    chooses the dtype of each operator by its own lists.
    """

    def formatted(layer: Any, input: Tensor) -> Tensor | None:
        if not input.is_meta and torch.is_autocast_enabled(input.device.type):
            return None
        y = call(layer, input)
        if y is None or torch.compiler.is_compiling():
            return y
        formats, key = layer.gconv.formats, (input.shape, input.stride(), input.dtype)
        if key not in formats:
            if len(formats) >= MAX_FORMATS:
                formats.clear()
            with torch.no_grad():
                formats[key] = torch_forward(layer)(layer, input).stride()
        return with_strides(y, formats[key])

    return formatted


def with_strides(y: Tensor, strides: tuple[int, ...]) -> Tensor:
    """y with these (dense) strides; a copy if its strides differ.

    >>> with_strides(torch.ones(2, 3), (1, 2)).stride()
    (1, 2)
    """
    if y.stride() == strides:
        return y
    order = sorted(range(y.ndim), key=lambda axis: (-strides[axis], y.shape[axis] == 1))
    back = sorted(range(y.ndim), key=order.__getitem__)
    return y.permute(order).clone(memory_format=torch.contiguous_format).permute(back)


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


def by_taps(weight: Tensor) -> Tensor:
    """(a, b, *kernel) as (a, b, k), a view; a gradient with other strides is copied to those of a contiguous weight."""
    taps = math.prod(weight.shape[2:])
    if not torch.is_grad_enabled() or not weight.is_contiguous():
        return weight.flatten(2)
    if taps == 1 and suggests_last(weight):  # contiguous in both memory formats: torch reads the strides
        return weight.flatten(2)
    return weight.flatten().view(*weight.shape[:2], taps)


def conv_weights(layer: Any, weight: Tensor | None = None) -> Weights:
    """torch's (o, i/g, *kernel) as W (k, i, o), in groups (k, g, i/g, o/g); a view."""
    w = by_taps(layer.weight if weight is None else weight)
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
    w = by_taps(layer.weight)
    W = w.permute(2, 0, 1) if layer.groups == 1 else w.unflatten(0, (layer.groups, -1)).permute(3, 0, 1, 2)
    return {"weight": W, "bias": layer.bias}


def transposed(layer: Any, input: Tensor, output_size: Any = None) -> Tensor | None:
    d = ndim(layer)
    if not fits(input, d + 1, d + 2) or has_such(layer):
        return None
    if output_size is None:
        return run(layer, input)
    extra = layer._output_padding(input, output_size, layer.stride, layer.padding, layer.kernel_size, d, layer.dilation)
    return run(layer, input, other=engine(layer, transposed_spec, layer, tuple(extra)))


def conv_call(layer: Any, input: Tensor) -> Tensor | None:
    d = ndim(layer)
    if not fits(input, d + 1, d + 2) or has_such(layer):
        return None
    weight = layer.weight  # read once: a parametrization computes it, and may change its state (spectral_norm)
    y = run(layer, input, weights=layer.peer.weights(layer, weight))
    if d == 1 or weight.shape[1] > 1 or weight.stride(1) > 1:
        return y
    # torch returns channels_last for a depthwise weight in channels_last, which the views of the weight do not show
    if not suggests_last(weight) or (d == 3 and not keeps_format(input)):
        return y
    if y.ndim == d + 2:
        return y.contiguous(memory_format=LAST[d])
    return y.unsqueeze(0).contiguous(memory_format=LAST[d]).squeeze(0)


CONV = Peer(conv_spec, conv_weights, conv_call)
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
        raise LeftAlone("return_indices=True also returns the positions of the maxima")
    window = [short(v) for v in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)]
    factory = getattr(operators, f"max_pool{ndim(layer)}d")
    return factory(*window, ceil_mode=layer.ceil_mode)


def avg_notes(layer: Any) -> list[str]:
    if layer.count_include_pad and short(layer.padding) != 0:
        return ["padded sites count in the mean, those that only ceil_mode adds do not"]
    return []


AVG = Peer(avg_spec, no_weights, images, avg_notes)
MAX = Peer(max_spec, no_weights, maxima, lambda layer: ["a maximum: it has no LinearMap"])


def adaptive_spec(layer: Any) -> OperatorSpec:
    kind = "max" if "Max" in mapped(layer) else "avg"
    if kind == "max" and layer.return_indices:
        raise LeftAlone("return_indices=True also returns the positions of the maxima")
    if short(layer.output_size) == 1:
        return operators.global_pool("max" if kind == "max" else "mean")
    factory = getattr(operators, f"adaptive_{kind}_pool{ndim(layer)}d")
    return factory(short(layer.output_size))


def adaptive(layer: Any, input: Tensor) -> Tensor | None:
    d = ndim(layer)
    if not input.is_meta and torch.is_autocast_enabled(input.device.type):
        return None  # torch chooses the dtype
    if layer.gconv.spec.name == "global_pool" and input.ndim == d + 1:  # the Grid shows that there is no batch axis
        return run(layer, input, Grid.of(input, d)) if fits(input, d + 1, d + 1) else None
    return (maxima if "Max" in mapped(layer) else images)(layer, input)


ADAPTIVE_AVG = Peer(adaptive_spec, no_weights, in_its_format(adaptive))
ADAPTIVE_MAX = Peer(adaptive_spec, no_weights, adaptive, lambda layer: ["a maximum: it has no LinearMap"])


def mapped(layer: nn.Module) -> str:
    """The name of a layer's torch class."""
    return next(cls.__name__ for cls in type(layer).__mro__ if cls in PEERS)


def on_axes(spec: Callable[[Any, int], OperatorSpec]) -> Callable[[Any, OperatorSpec, Any], tuple[OperatorSpec, Any]]:
    """`Peer.settle` for layers that run on grids of any number of axes."""
    return lambda layer, made, domain: (spec(layer, domain.ndim) if isinstance(domain, Grid) else made, domain)


# -- rearranging ---------------------------------------------------------------------------------------------------


def upsample_spec(layer: Any, axes: int | None = None) -> OperatorSpec:
    given = layer.size if layer.size is not None else layer.scale_factor
    fixed = operators.resampling.MODES[layer.mode][1] if layer.mode in operators.resampling.MODES else None
    d = fixed or axes or (len(given) if isinstance(given, (tuple, list)) else 2)
    return operators.upsample(
        short(layer.size),
        short(layer.scale_factor),
        layer.mode,
        layer.align_corners,
        layer.recompute_scale_factor,
        ndim=d,
    )


def upsample_call(layer: Any, input: Tensor) -> Tensor | None:
    d = input.ndim - 2
    if not fits(input, 3, 5):
        return None
    other = engine(layer, upsample_spec, layer, d)
    structure: Any = other.spec.structure
    if structure.ndim != d:
        return None
    if d == 2 and input.dtype == torch.float64 and layer.mode.startswith("nearest"):
        sizes = zip(structure.target(Grid.of(input, 2)).shape, Grid.of(input, 2).shape, strict=True)
        if any(m % n for m, n in sizes):
            return None  # torch's rounding of ties depends on the image size here
    return run(layer, input, other=other)


def unfold_call(layer: Any, input: Tensor) -> Tensor | None:
    y = images(layer, input, 2)
    return y if y is None else y.flatten(-2)


def fold_spec(layer: Any) -> OperatorSpec:
    options = [short(getattr(layer, name)) for name in ("kernel_size", "dilation", "padding", "stride")]
    return operators.fold(short(layer.output_size), *options)


def fold_call(layer: Any, input: Tensor) -> Tensor | None:
    axes = zip(
        *(
            per_axis(name, getattr(layer, name), 2, 0)
            for name in ("output_size", "kernel_size", "dilation", "padding", "stride")
        ),
        strict=True,
    )
    places = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, d, p, s in axes]
    if not fits(input, 2, 3):
        return None
    return run(layer, input.unflatten(-1, places)) if math.prod(places) == input.shape[-1] else None


def shuffle_call(layer: Any, input: Tensor) -> Tensor | None:
    if not fits(input, 3, input.ndim):
        return None
    return (
        run(layer, input.reshape(-1, *input.shape[-3:])).unflatten(0, input.shape[:-3])
        if input.ndim > 3
        else run(layer, input)
    )


def pad_spec(layer: Any) -> OperatorSpec:
    name, d = mapped(layer), ndim(layer)
    if getattr(layer, "value", 0.0) != 0.0:
        raise LeftAlone(f"it pads with {layer.value}, which is not linear; only padding with zeros is")
    mode: Any = {"Refle": "reflect", "Repli": "replicate", "Circu": "circular"}.get(name[:5], "zeros")
    flat = layer.padding
    pairs = tuple((flat[2 * a], flat[2 * a + 1]) for a in reversed(range(d)))
    same = len({p for pair in pairs for p in pair}) == 1
    return operators.pad(flat[0] if same else pairs, mode, ndim=d)


UPSAMPLE = Peer(upsample_spec, no_weights, in_its_format(upsample_call), settle=on_axes(upsample_spec))
UNFOLD = Peer(
    lambda layer: operators.unfold(
        *(short(getattr(layer, n)) for n in ("kernel_size", "dilation", "padding", "stride"))
    ),
    no_weights,
    in_its_format(unfold_call),
    lambda layer: ["its patches are flattened"],
)
FOLD = Peer(
    fold_spec, no_weights, in_its_format(fold_call), lambda layer: ["its patches are flattened", "overlaps add up"]
)


def pad_call(layer: Any, input: Tensor) -> Tensor | None:
    return images(layer, input) if any(layer.padding) else None  # without padding torch returns a copy, in its format


PAD = Peer(pad_spec, no_weights, pad_call)
SHUFFLED = in_its_format(shuffle_call)


# -- channels alone ------------------------------------------------------------------------------------------------


def linear_call(layer: Any, input: Tensor) -> Tensor | None:
    """layer(x) of a linear layer of torch or PyG, whose weight is (o, i)."""
    return product_call(layer, input, lambda layer: layer.weight)


def product_call(layer: Any, input: Tensor, matrix: Callable[[Any], Tensor] | None = None) -> Tensor | None:
    """layer(x) of a layer that multiplies the channels by a matrix; matrix(layer): (o, i), if it is stored as one."""
    if not fits(input, 1, input.ndim):
        return None
    runs = type(layer.gconv) is Unweighted and layer._repeated is None  # the call is not captured for an analysis
    if runs and matrix is not None and (not is_plain_eager() or constant_of(input) is None):
        return F.linear(input, matrix(layer), layer.bias)  # what the engine would run, without the fixed cost of a plan
    y = run(layer, input.reshape(-1, input.shape[-1]).t())
    return y.t().unflatten(0, input.shape[:-1]) if input.ndim != 1 else y[:, 0]


def linear_spec(layer: Any, axes: int = 1) -> OperatorSpec:
    i, o = [
        getattr(layer, n) for n in ("in_features", "out_features", "in_channels", "out_channels") if hasattr(layer, n)
    ]
    return operators.pointwise(i, o, layer.bias is not None, ndim=axes)


LINEAR = Peer(
    linear_spec,
    lambda layer: {"weight": layer.weight.t().unsqueeze(0), "bias": layer.bias},
    linear_call,
    lambda layer: ["all axes but the last are sites"],
    settle=on_axes(linear_spec),
)


def unknown_channels(layer: Any) -> OperatorSpec:
    raise LeftAlone(
        "its number of channels is only known at the call; use gconv.operators.channel_shuffle, which takes it"
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
    nn.AdaptiveAvgPool1d: ADAPTIVE_AVG,
    nn.AdaptiveAvgPool2d: ADAPTIVE_AVG,
    nn.AdaptiveAvgPool3d: ADAPTIVE_AVG,
    nn.AdaptiveMaxPool1d: ADAPTIVE_MAX,
    nn.AdaptiveMaxPool2d: ADAPTIVE_MAX,
    nn.AdaptiveMaxPool3d: ADAPTIVE_MAX,
    nn.Upsample: UPSAMPLE,
    nn.UpsamplingNearest2d: UPSAMPLE,
    nn.UpsamplingBilinear2d: UPSAMPLE,
    nn.Unfold: UNFOLD,
    nn.Fold: FOLD,
    nn.PixelShuffle: Peer(lambda m: operators.pixel_shuffle(m.upscale_factor), no_weights, SHUFFLED),
    nn.PixelUnshuffle: Peer(lambda m: operators.pixel_unshuffle(m.downscale_factor), no_weights, SHUFFLED),
    nn.ChannelShuffle: Peer(unknown_channels, no_weights, images),
    nn.Linear: LINEAR,
    **{
        getattr(nn, f"{kind}Pad{d}d"): PAD
        for kind in ("Zero", "Constant", "Reflection", "Replication", "Circular")
        for d in (1, 2, 3)
    },
}
