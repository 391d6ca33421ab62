"""Descriptions of the layers of PyG, one entry per class, by family. Imported only if a model contains PyG layers."""

from __future__ import annotations

from torch import nn
from torch_geometric import nn as pyg
from torch_geometric.nn.conv import MessagePassing

from gconv.interop.peer import UNKNOWN, Peer
from gconv.interop.pyg import attention, dense, edges, filters, forms, neighbours
from gconv.operators.outside import OUTSIDE

_FAMILIES = (neighbours.PEERS, filters.PEERS, attention.PEERS, edges.PEERS, dense.PEERS)
PEERS: dict[type, Peer] = {cls: forms.taking(cls, peer) for family in _FAMILIES for cls, peer in family.items()}
READ = {pyg.Linear, pyg.GCNConv, pyg.SAGEConv}  # submodules whose weights are read
REASONS: dict[type, str] = {
    getattr(pyg, name): reason.rstrip(".") for name, reason in OUTSIDE.items() if hasattr(pyg, name)
} | {
    pyg.PANConv: "it also returns its matrix as a SparseTensor; gconv.operators.pan is the operator without that",
    pyg.SplineConv: "it needs a compiled package with which gconv was not tested; gconv.operators.spline is the "
    "operator",
}


def is_layer(module: nn.Module) -> bool:
    """Whether a report lists a module of PyG."""
    return isinstance(module, MessagePassing) or any(cls in PEERS or cls in REASONS for cls in type(module).__mro__)


def why_outside(cls: type) -> str:
    """The reason why a class of PyG is left unchanged."""
    if cls.__name__.startswith(("CuGraph", "Fused")):
        return "it needs compiled CUDA kernels with which gconv was not tested"
    return REASONS.get(cls, UNKNOWN)
