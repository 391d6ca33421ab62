"""
Oversmoothing in deep graph networks
====================================

Each GCN layer averages over neighbours. After many layers the features of all nodes are similar: the Dirichlet energy,
which measures variation along edges, decreases exponentially. APPNP avoids this, since it adds the input in each step.
"""

import torch

from gconv import GConv, analysis, grid_graph
from gconv.operators import appnp, sgc

graph, x = grid_graph((8, 8), 4), torch.randn(64, 8, dtype=torch.float64)
smooth = torch.nn.Sequential(*(GConv(sgc(8, 8, bias=False)) for _ in range(12))).double()
for layer in smooth:
    torch.nn.init.orthogonal_(layer.weight.data[0])
energies = analysis.energy_by_depth(smooth, x, graph)
axis = analysis.plot_energy(energies, label="repeated averaging")

signals = [GConv(appnp(k=k, alpha=0.2))(x, graph) for k in range(1, 13)]
kept = [analysis.dirichlet_energy(y, graph, normalization="sym", relative=True) for y in signals]
analysis.plot_energy(torch.stack([energies[0], *kept]), axis, label="appnp, alpha = 0.2")
axis.legend()
