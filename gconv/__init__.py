"""gconv: every convolution as one thing, Y = sum_k S_k X W_k + b.

The rooms, in the order in which they may import each other:

kernels      compiled products for the CPU, and the same in pure torch; constant(x), signals that never change;
             portable(), a block in which layers run by torch's own operators alone
domains      where signals live: Grid, Graph, Bipartite
basis        the structure S in its closed forms
laplacian    adjacencies and Laplacians, and every convention about degrees and loops
mixing       the channel part W
spec         a convolution as data, and the registry: list_operators, cite
lowering     the ways to run one
plan         which way, and why; rates: how fast this machine is, which calibrate measures
linear       LinearMap, the operator as the linear map that it is, and the algebra of such maps
module       GConv, the layer
operators    the convolutions themselves, one family a file
blocks       units of well-known networks, made of layers
interop      models of torch.nn and PyG: convert, as_linear_map, export
adapters     adapt, merge, unmerge: low-rank adapters on frozen models
saving       save, load: models as safetensors files with their layers as data
transfer     networks of images on masked, irregular and periodic pixels
analysis     questions about a LinearMap, a layer or a network
summary      what a model consists of and costs, layer by layer
testing      the laws every operator obeys, for your own operators too
"""

from gconv import analysis, blocks, interop, operators
from gconv.adapters import adapt, merge, unmerge
from gconv.domains import Bipartite, Graph, Grid, grid_graph
from gconv.errors import InputError
from gconv.interop import Twin, as_linear_map, convert, export, twin
from gconv.kernels import backend, constant, portable
from gconv.linear import LinearMap
from gconv.module import GConv
from gconv.saving import load, save
from gconv.spec import Inadmissible, NotLinear, OperatorSpec, OutsideFamily, cite, list_operators
from gconv.summary import summary
from gconv.transfer import Pixels, transfer

__version__ = "0.1.0"
NUMERICS = 1  # raised by hand when the numbers that layers compute may move beyond rounding; rows record it
__all__ = [
    "Bipartite",
    "GConv",
    "Graph",
    "Grid",
    "Inadmissible",
    "InputError",
    "LinearMap",
    "NotLinear",
    "OperatorSpec",
    "OutsideFamily",
    "Pixels",
    "Twin",
    "adapt",
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
    "load",
    "merge",
    "operators",
    "portable",
    "save",
    "summary",
    "transfer",
    "twin",
    "unmerge",
]
