"""
Oversmoothing: what depth does to a graph network
=================================================

Each GCN layer averages over neighbours. After many layers all nodes look alike: the Dirichlet energy, how much the
signal changes along edges, falls exponentially. A layer that also keeps the input (GCNII) does not lose it.
"""

import torch

from gconv import GConv, analysis, grid_graph
from gconv.operators import appnp, sgc

graph, x = grid_graph((8, 8), 4), torch.randn(64, 8, dtype=torch.float64)
smooth = torch.nn.Sequential(*(GConv(sgc(8, 8, bias=False)) for _ in range(12))).double()
for layer in smooth:
    torch.nn.init.orthogonal_(layer.weight.data[0])
energies = analysis.energy_by_depth(smooth, x, graph)
axis = analysis.plot_energy(energies, label="averaging, again and again")

kept = [analysis.dirichlet_energy(GConv(appnp(k=k, alpha=0.2)).double()(x, graph), graph) for k in range(1, 13)]
analysis.plot_energy(torch.stack([energies[0], *map(torch.as_tensor, kept)]), axis, label="appnp, alpha = 0.2")
axis.legend()
