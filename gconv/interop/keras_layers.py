"""Descriptions of the convolutions and Dense of Keras 3 with its torch backend.

Keras differs from torch in these conventions, which are reproduced exactly: kernels are (*kernel, i, o), those of
transposed convolutions (*kernel, o, i); channels are last unless data_format is "channels_first"; "same" means
out = ceil(in / stride) with an odd site of padding at the end; a transposed convolution with "same" has in * stride
sites, cropped from the full result depending on kernel, stride and output_padding; a layer may include an activation.

Source: keras.io/api/layers/convolution_layers, and the behaviour of Keras 3.15, with which the tests compare.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import torch
from torch import Tensor

from gconv import operators
from gconv.interop.keras_copies import duplicate, parts
from gconv.interop.peer import UNKNOWN, LeftAlone, Peer, Weights, run
from gconv.interop.torch_nn import fits, on_axes, product_call, short
from gconv.spec import OperatorSpec

__all__ = ["PEERS", "announced", "duplicate", "parts", "why_outside"]
layers = keras.layers


WHY = {
    "activations": "an activation, not linear",
    "regularization": "random in training, the identity in inference",
    "normalization": "normalises by statistics of its input or of a batch",
    "reshaping": "only reshapes its input",
    "rnn": "recurrent, not one linear map",
    "merging": "a function of several inputs",
    "pooling": "Keras' pooling layers are not converted; gconv.operators has avg_pool2d, max_pool2d and global_pool",
}


def why_outside(cls: type) -> str:
    """The reason why a layer of Keras is left unchanged."""
    if cls is layers.InputLayer:
        return "returns its input"
    if cls.__name__.startswith(("UpSampling", "ZeroPadding", "Cropping")):
        return "Keras' resampling and padding layers are not converted; gconv.operators has upsample and pad"
    if cls is layers.Embedding:
        return "a lookup table indexed by integers, not a map of signals"
    kinds = cls.__module__.split(".")
    return next((WHY[kind] for kind in kinds if kind in WHY), UNKNOWN)


@contextmanager
def announced(enter: Callable[..., None], leave: Callable[..., None]) -> Iterator[None]:
    """Within this block, `enter(layer, args)` and `leave(layer, args, kwargs, y)` surround the calls of all layers.

    Keras' own calls do not run the hooks of torch.
    """
    own = keras.Layer.__call__

    @functools.wraps(own)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        enter(self, args)
        y = own(self, *args, **kwargs)
        leave(self, args, kwargs, y)
        return y

    keras.Layer.__call__ = call
    try:
        yield
    finally:
        keras.Layer.__call__ = own


# -- reading a layer -----------------------------------------------------------------------------------------------


def built(layer: Any) -> Any:
    """The layer, if its weights can be read.

    Raises:
        LeftAlone: if they are not created yet, quantised, or combined with LoRA matrices.
    """
    if not layer.built:
        raise LeftAlone("its weights are not created yet: call the model once before converting it")
    if getattr(layer, "quantization_mode", None) is not None:
        raise LeftAlone(f"its weights are quantised ({layer.quantization_mode})")
    if getattr(layer, "lora_enabled", False):
        raise LeftAlone("it has LoRA matrices, which are not supported")
    return layer


def value(variable: Any) -> Tensor | None:
    """The tensor of a Keras variable; other tensors, which a property of a subclass may return, unchanged."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def flat(variable: Any) -> Tensor:
    """A kernel (*kernel, a, b) flattened to (k, a, b)."""
    kernel = value(variable)
    assert kernel is not None
    return kernel.flatten(0, -3)


def padding(layer: Any) -> Any:
    """Keras' padding as the argument of gconv's operators."""
    if layer.padding == "causal":
        return tuple((d * (k - 1), 0) for k, d in zip(layer.kernel_size, layer.dilation_rate, strict=True))
    return "same_upper" if layer.padding == "same" else 0


def geometry(layer: Any) -> dict[str, Any]:
    """Kernel, stride, padding and dilation."""
    names = {"kernel_size": "kernel_size", "stride": "strides", "dilation": "dilation_rate"}
    return {key: short(getattr(layer, name)) for key, name in names.items()} | {"padding": padding(layer)}


def activation(layer: Any) -> Callable[[Tensor], Tensor] | None:
    """The activation of a layer; None if it has none."""
    return None if layer.activation in (None, keras.activations.linear) else layer.activation


def after(layer: Any) -> str | None:
    """A description of the activation of a layer; None if it has none."""
    found = activation(layer)
    return None if found is None else f"the activation {getattr(found, '__name__', type(found).__name__)} follows"


def notes(layer: Any) -> list[str]:
    """The conventions worth naming."""
    found = [f"{layer.data_format}, a kernel of (*kernel, in, out)"] if hasattr(layer, "data_format") else []
    return found + [text for text in (after(layer),) if text]


def same_dtype(inputs: Tensor, weight: Tensor | None) -> bool:
    """Whether the input has the dtype of the weight, and no autocast of torch chooses that of each of Keras' steps."""
    chosen = not inputs.is_meta and torch.is_autocast_enabled(inputs.device.type)
    return weight is not None and inputs.dtype == weight.dtype and not chosen


def call(layer: Any, inputs: Any) -> Tensor | None:
    """layer(inputs) of a convolution."""
    if not isinstance(inputs, Tensor) or not fits(inputs, layer.rank + 2, layer.rank + 2):
        return None
    weights = layer.peer.weights(layer)
    if not same_dtype(inputs, weights["weight"]):
        return None
    last = layer.data_format == "channels_last"
    y = run(layer, inputs.movedim(-1, 1) if last else inputs, weights=weights)
    return activated(layer, y.movedim(1, -1) if last else y)


def activated(layer: Any, y: Tensor | None) -> Tensor | None:
    """y after the activation of the layer."""
    follows = activation(layer)
    return y if follows is None or y is None else follows(y)


def bias(layer: Any) -> Tensor | None:
    """The bias of a layer, if it has one."""
    return value(layer.bias) if layer.use_bias else None


# -- the layers ----------------------------------------------------------------------------------------------------


def conv_spec(layer: Any) -> OperatorSpec:
    """Conv1D, Conv2D, Conv3D."""
    i = built(layer)._kernel.shape[-2] * layer.groups
    factory = getattr(operators, f"conv{layer.rank}d")
    return factory(i, layer.filters, groups=layer.groups, bias=layer.use_bias, **geometry(layer))


def conv_weights(layer: Any) -> Weights:
    """(*kernel, i/g, o) as W (k, i, o), in groups (k, g, i/g, o/g)."""
    W, g = flat(layer.kernel), layer.groups
    return {"weight": W if g == 1 else W.unflatten(-1, (g, -1)).movedim(-2, 1), "bias": bias(layer)}


def depthwise_spec(layer: Any) -> OperatorSpec:
    """DepthwiseConv1D, DepthwiseConv2D."""
    i, q = built(layer).kernel.shape[-2:]
    return operators.depthwise(i, multiplier=q, bias=layer.use_bias, ndim=layer.rank, **geometry(layer))


def depthwise_weights(layer: Any) -> Weights:
    """(*kernel, c, q) as W (k, c, 1, q)."""
    return {"weight": flat(layer.kernel).unsqueeze(2), "bias": bias(layer)}


def separable_spec(layer: Any) -> OperatorSpec:
    """SeparableConv1D, SeparableConv2D; with several filters per channel as a convolution with the product of both."""
    i, q = built(layer).depthwise_kernel.shape[-2:]
    o, d = layer.filters, layer.rank
    if q == 1:
        return operators.separable(i, o, bias=layer.use_bias, ndim=d, **geometry(layer))
    return getattr(operators, f"conv{d}d")(i, o, bias=layer.use_bias, **geometry(layer))


def separable_weights(layer: Any) -> Weights:
    """(*kernel, i, q) and (1, ..., i q, o) as d (k, i) followed by P^T (o, i), or as W_k = d_k P."""
    D, P = flat(layer.depthwise_kernel), flat(layer.pointwise_kernel)[0]
    if D.shape[-1] == 1:
        return {"weight": torch.cat([D.squeeze(-1), P.mT]), "bias": bias(layer)}
    W = torch.einsum("kiq,iqo->kio", D, P.unflatten(0, D.shape[1:]))
    return {"weight": W, "bias": bias(layer)}


def cut(k: int, s: int, d: int, mode: str, extra: int | None) -> tuple[int, int]:
    """The numbers of sites to crop at both ends of a transposed convolution's full result of (n - 1) s + d (k - 1) + 1.

    >>> cut(3, 2, 1, "same", None), cut(2, 3, 1, "valid", None)
    ((0, 1), (0, -1))
    """
    reach = d * (k - 1) + 1
    if mode == "valid":
        return 0, -(max(0, s - reach) if extra is None else extra)
    total = s + reach - 2 if extra is None else reach + reach % 2 - 2 + extra
    before = min(total - total // 2, reach - 1)
    return reach - 1 - before, reach - 1 - (total - before)


def transposed_spec(layer: Any) -> OperatorSpec:
    """Conv1DTranspose, Conv2DTranspose, Conv3DTranspose."""
    o, i = built(layer).kernel.shape[-2:]
    d, given = layer.rank, layer.output_padding
    extra = given if isinstance(given, (tuple, list)) else (given,) * d
    axes = zip(layer.kernel_size, layer.strides, layer.dilation_rate, extra, strict=True)
    pads = tuple(cut(k, s, spread, layer.padding, e) for k, s, spread, e in axes)
    factory = getattr(operators, f"conv_transpose{d}d")
    return factory(i, o, bias=layer.use_bias, **geometry(layer) | {"padding": pads})


def transposed_weights(layer: Any) -> Weights:
    """(*kernel, o, i) as W (k, i, o)."""
    return {"weight": flat(layer.kernel).mT, "bias": bias(layer)}


def dense_spec(layer: Any, axes: int = 1) -> OperatorSpec:
    """Dense."""
    i, o = built(layer).kernel.shape
    return operators.pointwise(i, o, layer.use_bias, ndim=axes)


def dense_weights(layer: Any) -> Weights:
    """(i, o) as W (1, i, o)."""
    kernel = value(layer.kernel)
    assert kernel is not None
    return {"weight": kernel.unsqueeze(0), "bias": bias(layer)}


def dense_call(layer: Any, inputs: Any, training: Any = None) -> Tensor | None:
    """layer(inputs) of Dense; float64 inputs run in Keras, which multiplies them in float32."""
    if not isinstance(inputs, Tensor) or inputs.ndim < 2 or inputs.dtype == torch.float64:
        return None
    if not same_dtype(inputs, value(layer.kernel)):
        return None
    return activated(layer, product_call(layer, inputs))


def peer(spec: Any, weights: Any, call: Any = call, **more: Any) -> Peer:
    """The peer of a class, whose `call` is replaced: Keras' own forward prepares its arguments."""
    return Peer(spec, weights, call, notes, inner=("activation",), after=after, method="call", **more)


CONV = peer(conv_spec, conv_weights)
DEPTHWISE = peer(depthwise_spec, depthwise_weights)
SEPARABLE = peer(separable_spec, separable_weights)
TRANSPOSED = peer(transposed_spec, transposed_weights)
DENSE = peer(dense_spec, dense_weights, dense_call, settle=on_axes(dense_spec))

PEERS: dict[type, Peer] = {
    layers.Conv1D: CONV,
    layers.Conv2D: CONV,
    layers.Conv3D: CONV,
    layers.DepthwiseConv1D: DEPTHWISE,
    layers.DepthwiseConv2D: DEPTHWISE,
    layers.SeparableConv1D: SEPARABLE,
    layers.SeparableConv2D: SEPARABLE,
    layers.Conv1DTranspose: TRANSPOSED,
    layers.Conv2DTranspose: TRANSPOSED,
    layers.Conv3DTranspose: TRANSPOSED,
    layers.Dense: DENSE,
}
