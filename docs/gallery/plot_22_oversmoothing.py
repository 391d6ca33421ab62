"""
Oversmoothing: what depth does to a graph network
=================================================

Each GCN layer averages over neighbours. After many layers all nodes look alike: the Dirichlet energy, how much the
signal changes along edges, falls exponentially. Propagation that returns to the input (APPNP) does not lose it.
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

signals = [GConv(appnp(k=k, alpha=0.2))(x, graph) for k in range(1, 13)]
kept = [analysis.dirichlet_energy(y, graph, normalization="sym", relative=True) for y in signals]
analysis.plot_energy(torch.stack([energies[0], *kept]), axis, label="appnp, alpha = 0.2")
axis.legend()
