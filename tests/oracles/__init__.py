"""An independent oracle for every operator: torch.nn, PyG, or a formula, with the layer's own weights carried over.

An oracle takes a layer, its domain and x in the layer's layout, and computes what the layer should, differentiably in
x, in the layer's parameters and in the graph's edge weights. `RANDOM` draws specs and domains for each of them.

Where the libraries' conventions differ from ours, or surprise, it is written beside the oracle:
  torch     ConvTranspose knows zero padding alone; its other modes are here the
            vector-Jacobian products of F.pad and the convolution.
  PyG       GMMConv(root_weight=False) fails for want of an attribute; the oracle sets it.
            `improved=True` on an unweighted graph that has self-loops already: they keep weight 1, as here.
            ChebConv(normalization=None) on a graph without edges: 0 / 0 = NaN; here lmax falls back to 1.
            GMMConv documents a factor 1 / K that its code does not apply; the code is the oracle.
            TAGConv, ChebConv and SAGEConv add no self-loops; ChebConv drops those there are.
            ClusterGCNConv divides by degrees of the default dtype, so in single precision even
            where x is float64; the oracle sets the default. Without add_self_loops it fails.
            HypergraphConv documents D^-1 H W B^-1 H^T; its code lets W into D only.
            FastRGCNConv(num_blocks=) wants a contiguous weight.
  networkx  a self-loop of an undirected graph counts twice in its degree; here once. No oracle rests on it.
"""

from oracles import attention as _attention  # noqa: F401
from oracles import filters as _filters  # noqa: F401
from oracles import graphs as _graphs  # noqa: F401  (each module enters its oracles)
from oracles import grids as _grids  # noqa: F401
from oracles import learned as _learned  # noqa: F401
from oracles import poses as _poses  # noqa: F401
from oracles import rearranged as _rearranged  # noqa: F401
from oracles import relations as _relations  # noqa: F401
from oracles import resampled as _resampled  # noqa: F401
from oracles.common import ORACLES, RANDOM, WITHOUT, graphs

__all__ = ["ORACLES", "RANDOM", "WITHOUT", "graphs"]
