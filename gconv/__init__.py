"""Convolutions on grids and graphs as one operator, Y = sum_k S_k X W_k + b, for PyTorch.

The structure S_k says which input site feeds which output site through tap k; W_k mixes the channels. A spec describes
an operator, and GConv makes a layer of it:

>>> import torch
>>> from gconv import GConv, Graph
>>> from gconv.operators import cheb, conv2d
>>> path = Graph(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]))
>>> layer = GConv(cheb(16, 32, k=3))
>>> layer(torch.randn(3, 16), path).shape  # or layer(x, edge_index); on grids GConv(conv2d(3, 64, 3))(images)
torch.Size([3, 32])
>>> A = layer.at(path)  # a LinearMap: A @ x, A.T, and the argument of the functions in gconv.analysis
>>> A.shape
(96, 48)
>>> layer.plan(torch.randn(3, 16), path).chosen.name  # print(plan) lists all candidates with their costs
'recurrence:aggregate'

Layers           GConv(spec); gconv.operators makes the specs, list_operators() names them, cite(name) gives the paper
Domains          Graph, Bipartite (from sources to targets), Grid, grid_graph, Pixels (irregular), Surface (meshes)
Other models     convert(model), export(layer, "torch" or "pyg"), as_linear_map(module, domain), summary(model, x),
                 adapt(model, rank=4), merge, unmerge, transfer(model, domain), save(module, path), load(path),
                 twin(layer): a Twin, a layer on grids as the same layer on a graph
Analysis         gconv.analysis: matrix, norm, singular_values, frequency_response, receptive_field, cost, ...
Large graphs     graph.sample(seeds, fanouts), graph.blocks_of(batch), apply_blocks(net, x, blocks)
                 gconv.external: DiskGraph.build, propagate(graph, x, k, out), Rows: data larger than memory
Processes        gconv.parallel: shard(domain), distribute(model, partition), halo(S, partition)
Speed, memory    constant(x): features that do not change; cache_info(), clear_cache(); portable(): torch operators
                 only; backend(): which kernels run
Errors           InputError, NotLinear, OutsideFamily, Inadmissible
Your operators   gconv.spec.register, gconv.basis, gconv.mixing, gconv.laplacian; gconv.testing checks them by laws

The packages, each of which imports only those before it: caches, kernels (products for the CPU and CUDA), domains,
basis (the forms of S), laplacian, mixing (W), spec, lowering (algorithms), plan (which algorithm), linear
(LinearMap), module (GConv), minibatch, operators, blocks, interop, adapters, saving, transfer, analysis, summary,
parallel, external, testing, calibrate.
"""

import sys

if sys.argv[:1] == ["-m"] and "gconv" in [word.split(".")[0] for word in sys.orig_argv]:  # not in the user's commands
    from gconv_command import end_in_one_line

    end_in_one_line()
    if sys.orig_argv[-1] in ("-h", "--help"):  # print help without importing torch
        from gconv.help_first import print_help

        print_help(sys.orig_argv)

from gconv import analysis, blocks, external, interop, operators, parallel
from gconv.adapters import adapt, merge, unmerge
from gconv.caches import CacheInfo, cache_info, clear_cache
from gconv.domains import Bipartite, Graph, Grid, grid_graph
from gconv.errors import InputError
from gconv.interop import Twin, as_linear_map, convert, export, twin
from gconv.kernels import backend, constant, portable
from gconv.linear import LinearMap
from gconv.minibatch import apply_blocks
from gconv.module import GConv
from gconv.saving import load, save
from gconv.spec import Inadmissible, NotLinear, OperatorSpec, OutsideFamily, cite, list_operators
from gconv.summary import summary
from gconv.transfer import Pixels, Surface, transfer

__version__ = "0.1.0"
NUMERICS = 1  # incremented by hand when results of layers may change by more than rounding; result rows record it
__all__ = [
    "Bipartite",
    "CacheInfo",
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
    "Surface",
    "Twin",
    "adapt",
    "analysis",
    "apply_blocks",
    "as_linear_map",
    "backend",
    "blocks",
    "cache_info",
    "cite",
    "clear_cache",
    "constant",
    "convert",
    "export",
    "external",
    "grid_graph",
    "interop",
    "list_operators",
    "load",
    "merge",
    "operators",
    "parallel",
    "portable",
    "save",
    "summary",
    "transfer",
    "twin",
    "unmerge",
]


def __dir__() -> list[str]:
    return [*__all__, "testing", "__version__"]
