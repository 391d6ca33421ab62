"""The layers of PyG, one entry a class, by family. Imported only for models that contain some."""

from __future__ import annotations

from torch import nn
from torch_geometric.nn.conv import MessagePassing

from gconv.interop.peer import Peer
from gconv.interop.pyg import attention, dense, edges, filters, neighbours
from gconv.operators.outside import OUTSIDE

PEERS: dict[str, Peer] = {
    **neighbours.PEERS,
    **filters.PEERS,
    **attention.PEERS,
    **edges.PEERS,
    **dense.PEERS,
}
UNKNOWN = "no layer that gconv knows"
ELSEWHERE = {
    "PANConv": "it returns its matrix as a SparseTensor beside the signal; gconv.operators.pan is the operator alone",
    "SplineConv": "it runs on a compiled package that gconv was not tested against; gconv.operators.spline is the "
    "operator",
}


def is_layer(module: nn.Module) -> bool:
    """Whether a report speaks of a module of PyG."""
    return isinstance(module, MessagePassing) or type(module).__name__ in PEERS or type(module).__name__ in OUTSIDE


def why_outside(name: str) -> str:
    """The reason why a class of PyG is left alone."""
    if name.startswith(("CuGraph", "Fused")):
        return "it runs on compiled CUDA kernels that gconv was not tested against"
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    return OUTSIDE.get(name, UNKNOWN).rstrip(".")
