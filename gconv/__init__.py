"""gconv: every convolution as one thing, Y = sum_k S_k X W_k + b.

domains      where signals live: Grid, Graph
laplacian    adjacencies and Laplacians, and every convention about degrees and loops
basis        the structure S in its closed forms
mixing       the channel part W
spec         a convolution as data, and the registry
operators    the convolutions themselves, one family a file
lowering     the ways to run one
plan         which way, and why
module       GConv, the layer
blocks       units of well-known networks, made of layers
linear       LinearMap, the operator as the linear map that it is
analysis     questions about a LinearMap
interop      models of torch.nn and PyG converted, and back
testing      the laws every operator obeys
"""

from gconv import analysis, blocks, interop, operators
from gconv.domains import Graph, Grid, grid_graph
from gconv.interop import as_linear_map, convert, export
from gconv.kernels import backend, constant
from gconv.linear import LinearMap
from gconv.module import GConv
from gconv.spec import Inadmissible, NotLinear, OperatorSpec, OutsideFamily, cite, list_operators

__version__ = "0.1.0"
__all__ = [
    "GConv",
    "Graph",
    "Grid",
    "Inadmissible",
    "LinearMap",
    "NotLinear",
    "OperatorSpec",
    "OutsideFamily",
    "analysis",
    "as_linear_map",
    "backend",
    "blocks",
    "cite",
    "constant",
    "convert",
    "export",
    "grid_graph",
    "interop",
    "list_operators",
    "operators",
]
