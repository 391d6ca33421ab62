"""The layers of PyG, one entry a class, by family. Imported only for models that contain some."""

from __future__ import annotations

from torch import nn
from torch_geometric import nn as pyg
from torch_geometric.nn.conv import MessagePassing

from gconv.interop.peer import Peer
from gconv.interop.pyg import attention, dense, edges, filters, forms, neighbours
from gconv.operators.outside import OUTSIDE

_FAMILIES = (neighbours.PEERS, filters.PEERS, attention.PEERS, edges.PEERS, dense.PEERS)
PEERS: dict[type, Peer] = {cls: forms.taking(cls, peer) for family in _FAMILIES for cls, peer in family.items()}
READ = {pyg.Linear, pyg.GCNConv, pyg.SAGEConv}  # parts of layers whose weights are read
UNKNOWN = "no layer that gconv knows"
REASONS: dict[type, str] = {
    getattr(pyg, name): reason.rstrip(".") for name, reason in OUTSIDE.items() if hasattr(pyg, name)
} | {
    pyg.PANConv: "it returns its matrix as a SparseTensor beside the signal; gconv.operators.pan is the operator alone",
    pyg.SplineConv: "it runs on a compiled package that gconv was not tested against; gconv.operators.spline is the "
    "operator",
}


def is_layer(module: nn.Module) -> bool:
    """Whether a report speaks of a module of PyG."""
    return isinstance(module, MessagePassing) or any(cls in PEERS or cls in REASONS for cls in type(module).__mro__)


def why_outside(cls: type) -> str:
    """The reason why a class of PyG is left alone."""
    if cls.__name__.startswith(("CuGraph", "Fused")):
        return "it runs on compiled CUDA kernels that gconv was not tested against"
    return REASONS.get(cls, UNKNOWN)
