"""The PyG layers that return float32 under autocast, although a product inside runs in lower precision.

PyG's sums promote: the bfloat16 result of a product is combined with float32 edge weights, attention or a bias.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch_geometric import nn as pyg

from gconv.interop.peer import base_class

LOW = (torch.bfloat16, torch.float16)
Rule = Callable[[Any, bool, bool], bool]  # (layer, whether x is float32, whether edges have weights) -> promotes


def always(layer: Any, x: bool, weighted: bool) -> bool:
    return True


def signal(layer: Any, x: bool, weighted: bool) -> bool:
    return x


def biased(layer: Any, x: bool, weighted: bool) -> bool:
    return layer.bias is not None


WIDE: dict[type, Rule] = {
    **dict.fromkeys((pyg.GATConv, pyg.GATv2Conv, pyg.FeaStConv, pyg.AGNNConv, pyg.RGCNConv), always),
    **dict.fromkeys((pyg.ChebConv, pyg.TAGConv, pyg.MixHopConv, pyg.NNConv, pyg.FastRGCNConv, pyg.PDNConv), biased),
    **dict.fromkeys((pyg.EGConv, pyg.ResGatedGraphConv, pyg.DenseGATConv), biased),
    **dict.fromkeys((pyg.APPNP, pyg.LGConv, pyg.SimpleConv, pyg.WLConvContinuous, pyg.FAConv), signal),
    **dict.fromkeys((pyg.GMMConv, pyg.HypergraphConv), signal),
    **dict.fromkeys((pyg.DenseGCNConv, pyg.DenseSAGEConv, pyg.DenseGraphConv, pyg.DenseGINConv), signal),
    pyg.GCNConv: lambda m, x, weighted: m.bias is not None or (x and (m.normalize or weighted)),
    pyg.ARMAConv: lambda m, x, weighted: m.bias is not None or x,
    pyg.LEConv: lambda m, x, weighted: weighted,
    pyg.SuperGATConv: lambda m, x, weighted: m.bias is not None or m.attention_type == "MX",
    pyg.RGATConv: lambda m, x, weighted: m.bias is not None or m.num_blocks is not None,
    pyg.DirGNNConv: lambda m, x, weighted: base_class(m.conv_in) is pyg.GCNConv and (x or m.conv_in.bias is not None),
}


def as_peer(cls: type, layer: Any, y: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A low-precision output in the dtype that PyG returns under autocast."""
    rule = WIDE.get(cls)
    if rule is None or y.is_meta or not torch.is_autocast_enabled(y.device.type):
        return y
    given = dict(zip(("x", "edge_index", "edge_weight"), args, strict=False)) | kwargs
    adj = given.get("edge_index")
    weighted = given.get("edge_weight") is not None or (isinstance(adj, Tensor) and adj.is_floating_point())
    x = given["x"][0] if isinstance(given["x"], tuple | list) else given["x"]
    return y.float() if rule(layer, x.dtype is torch.float32, weighted) else y
