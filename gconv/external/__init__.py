"""Graphs and signals larger than memory, on one machine: graphs on disk, S^k X by streaming, training on the results.

    graph = DiskGraph.build("graph", "edges.npy", memory="8GB")      # once; resumes after a kill
    powers = propagate(graph, "features.npy", 3, "powers", memory="8GB")   # S X, S^2 X, S^3 X as .npy files
    loader = DataLoader(Rows(powers, train, y), 1024, shuffle=True)        # minibatches of SGC, SIGN, APPNP
    y = infer(net, graph, "features.npy", "output", memory="8GB")           # a deep network, layer by layer

`python -m gconv propagate --help` describes the same from the command line.
"""

from gconv.external.features import Rows, features_from_text
from gconv.external.files import DiskError
from gconv.external.graph import DiskGraph
from gconv.external.network import infer
from gconv.external.product import propagate

__all__ = ["DiskError", "DiskGraph", "Rows", "features_from_text", "infer", "propagate"]
