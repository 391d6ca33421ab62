"""The linear layer of the transformers library (GPT-2's Conv1D)."""

from __future__ import annotations

from typing import Any

from transformers.pytorch_utils import Conv1D

from gconv import operators
from gconv.interop.peer import Peer
from gconv.interop.torch_nn import on_axes, product_call
from gconv.spec import OperatorSpec


def conv1d_spec(layer: Any, axes: int = 1) -> OperatorSpec:
    """GPT-2's Conv1D: a linear layer whose weight is stored as (in, out)."""
    i, o = layer.weight.shape
    return operators.pointwise(i, o, layer.bias is not None, ndim=axes)


PEERS: dict[type, Peer] = {
    Conv1D: Peer(
        conv1d_spec,
        lambda layer: {"weight": layer.weight.unsqueeze(0), "bias": layer.bias},
        lambda layer, x: product_call(layer, x, lambda layer: layer.weight.t()),
        lambda layer: ["all axes but the last are sites", "the weight is stored as (in, out)"],
        settle=on_axes(conv1d_spec),
    )
}
