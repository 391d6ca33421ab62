"""Graphs of other libraries (PyG, torch.sparse, networkx, scipy, PyGSP) as the arguments of a `Graph`.

Objects are recognised by isinstance, so that subclasses are supported. Libraries are not imported for the check: an
object of a library can exist only if the library has been imported already.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gconv.arguments import kind_of, near, plural, shown
from gconv.kernels import readable

TENSORS = ("edge_weight", "edge_attr", "edge_type", "pos")
NODE_KEYS = {"x", "feat", "pos", "batch", "node_type", "n_id", "tf"}  # off which PyG reads the number of nodes
Arguments = dict[str, Any]  # of a Graph


def instance(value: Any, module: str, *classes: str) -> bool:
    """Whether a value is an instance of one of these classes of a library, without importing it.

    >>> instance(torch.zeros(1), "torch", "Tensor"), instance(3, "networkx", "Graph")
    (True, False)
    """
    library = sys.modules.get(module)
    found = tuple(c for name in classes if isinstance(c := getattr(library, name, None), type))
    return isinstance(value, found)


def as_tensor(name: str, value: Any) -> Tensor:
    """A plain tensor from a tensor of any class or a numpy array.

    Raises:
        TypeError: if it is neither, or an array whose dtype is not real.
    """
    if type(value) in (Tensor, torch.nn.Parameter):
        return value
    if isinstance(value, Tensor):
        if hasattr(value, "as_tensor"):  # PyG's EdgeIndex
            return value.as_tensor()
        holds_numbers = type(value).__torch_dispatch__ is Tensor.__torch_dispatch__  # not a fake or wrapper tensor
        return value.as_subclass(Tensor) if holds_numbers else value
    if not instance(value, "numpy", "ndarray"):
        raise TypeError(
            f"{name} must be a torch tensor, but {kind_of(value)} was given; torch.as_tensor converts lists."
        )
    kind = {"i": "int64", "u": "int64", "b": "bool", "f": "float64"}.get(value.dtype.kind)
    if kind is None:
        raise TypeError(f"{name} must be real, but it is an array of {value.dtype}.")
    if value.dtype.kind == "f" and value.dtype.itemsize in (2, 4):
        kind = f"float{8 * value.dtype.itemsize}"
    return torch.from_numpy(value.astype(kind, order="C", copy=True))


def read_foreign(domain: Any) -> Arguments | None:
    """The arguments of a Graph from a graph of another library; None for other objects."""
    if instance(domain, "networkx", "Graph"):
        return from_networkx(domain)
    if instance(domain, "scipy.sparse", "sparray", "spmatrix"):
        return from_scipy(domain)
    if instance(domain, "pygsp.graphs", "Graph"):
        return from_pygsp(domain)
    if instance(domain, "torch_geometric.data.data", "BaseData") or hasattr(domain, "edge_index"):
        return from_pyg(domain)
    return None


# -- torch and PyG -------------------------------------------------------------------------------------------------


def from_pyg(data: Any) -> Arguments:
    """From a `Data`, a `Batch`, or any object with an `edge_index` or an `adj_t`."""
    if hasattr(data, "edge_types"):
        raise TypeError(
            f"A {type(data).__name__} holds several graphs, but a layer takes one: give one of them as "
            "Bipartite.from_pyg(data, edge_type), or all as one graph, Graph.from_pyg(data.to_homogeneous())."
        )
    edge_index, adjacency = getattr(data, "edge_index", None), getattr(data, "adj_t", None)
    if edge_index is None and adjacency is None:
        if not hasattr(data, "edge_index"):
            raise TypeError(f"from_pyg takes a torch_geometric.data.Data, but {kind_of(data)} was given.")
        raise ValueError(
            f"This {type(data).__name__} object has no edge_index and no adj_t, so there is no graph to read."
        )
    found: Arguments = {name: value for name in TENSORS if (value := getattr(data, name, None)) is not None}
    if edge_index is None:
        found = from_sparse(adjacency, "adj_t") | found
    else:
        found["edge_index"] = as_tensor("edge_index", edge_index)
        if (size := _num_nodes(data)) is not None:
            found["size"] = size
    ptr, batch = getattr(data, "ptr", None), getattr(data, "batch", None)
    if ptr is not None:
        found["ptr"] = tuple(as_tensor("ptr", ptr).tolist())
    elif batch is not None:
        found["ptr"] = parts_of(batch)
    return found


def parts_of(batch: Any, size: int | None = None) -> tuple[int, ...]:
    """PyG's `batch` (n,), the index of the part of each node, as `ptr`, the first node of each part and the size.

    Raises:
        TypeError, ValueError: if they are not integers in ascending order, or not `size` of them.

    >>> parts_of(torch.tensor([0, 0, 2]))
    (0, 2, 2, 3)
    """
    parts = as_tensor("batch", batch)
    if parts.is_floating_point() or parts.is_complex() or parts.dtype == torch.bool or parts.ndim != 1:
        raise TypeError(
            f"batch must be an integer vector with one index per node, but it is {parts.dtype} of shape "
            f"{tuple(parts.shape)}."
        )
    parts = parts.to(torch.int64)
    if size is not None and len(parts) != size:
        raise ValueError(f"batch must have one index per node, {size}, but it has {len(parts)}.")
    if len(parts) and (int(parts[0]) < 0 or not bool((parts.diff() >= 0).all())):
        raise ValueError("batch must be sorted and not negative, so that the nodes of a part are consecutive.")
    return (0, *torch.bincount(parts).cumsum(0).tolist()) if len(parts) else (0,)


def _num_nodes(data: Any) -> int | None:
    """The number of nodes of a Data; None if PyG would have to guess it from the edges, for which it warns."""
    # warnings.catch_warnings would tell, too, but it changes the filters of all threads
    keys = getattr(data, "keys", None)
    known = keys is None or any(_tells_size(key, data[key]) for key in (keys() if callable(keys) else keys))
    return getattr(data, "num_nodes", None) if known else None


def _tells_size(key: str, value: Any) -> bool:
    """Whether PyG reads the number of nodes off this entry of a Data."""
    if key == "edge_index":  # an EdgeIndex may know the sizes
        size = getattr(value, "sparse_size", None)
        return callable(size) and any(size(axis) is not None for axis in (0, 1))
    if key in NODE_KEYS or "node" in key or key in ("adj", "adj_t"):
        return key == "num_nodes" or hasattr(value, "size") or hasattr(value, "num_rows")
    return False


def from_sparse(adjacency: Any, name: str = "adjacency") -> Arguments:
    """From a square torch sparse tensor A[target, source], the matrix that acts on signals (PyG's `adj_t`)."""
    if not isinstance(adjacency, Tensor) or adjacency.layout == torch.strided:
        given = "a dense tensor" if isinstance(adjacency, Tensor) else kind_of(adjacency)
        raise TypeError(f"{name} must be a torch sparse tensor, A[target, source], but {given} was given.")
    if adjacency.ndim != 2 or adjacency.shape[0] != adjacency.shape[1]:
        raise ValueError(
            f"{name} must be square, A[target, source], but it has shape {tuple(adjacency.shape)}; between two sets of "
            "nodes, Bipartite takes its indices as edge_index."
        )
    if adjacency.dense_dim():
        raise ValueError(
            f"{name} must have one number per edge, but its entries have shape {tuple(adjacency.shape[2:])}."
        )
    coo = (adjacency if adjacency.layout == torch.sparse_coo else adjacency.to_sparse_coo()).coalesce()
    index, values = coo.indices().flip(0), coo.values()
    if adjacency.layout in (torch.sparse_bsr, torch.sparse_bsc):  # zeros inside a block are not edges
        index, values = index[:, values.detach() != 0], values[values.detach() != 0]
    if values.is_complex():
        raise TypeError(f"{name} must be real, but its dtype is {values.dtype}.")
    found = {"edge_index": index, "size": adjacency.shape[0]}
    ones = not values.requires_grad and readable(values) and bool((values == 1).all())
    return found if ones else found | {"edge_weight": values}


# -- networkx, scipy, PyGSP ----------------------------------------------------------------------------------------


def from_networkx(graph: Any, weight: str | None = "weight") -> Arguments:
    """From a networkx graph of any class: nodes in its own order, an undirected edge as two directed ones."""
    if not instance(graph, "networkx", "Graph"):
        raise TypeError(f"from_networkx takes a networkx graph, but {kind_of(graph)} was given.")
    number = {node: i for i, node in enumerate(graph.nodes)}
    listed = list(graph.edges(data=True))
    if weight is not None and weight != "weight" and listed and not any(weight in data for _, _, data in listed):
        known = sorted({str(key) for _, _, data in listed for key in data})
        have = f"; they have {', '.join(known)}" if known else "; they have no attributes"
        raise ValueError(f"No edge of the graph has an attribute {weight!r}{near(str(weight), known)[:-1] or have}.")
    edges = [(number[u], number[v], _number(data, weight, u, v)) for u, v, data in listed]
    if not graph.is_directed():
        edges += [(v, u, w) for u, v, w in edges if u != v]
    index = torch.tensor([edge[:2] for edge in edges], dtype=torch.int64).reshape(-1, 2).t()
    weights = torch.tensor([edge[2] for edge in edges], dtype=torch.float64)
    found = {"edge_index": index, "size": len(number)}
    return found if bool((weights == 1).all()) else found | {"edge_weight": weights}


def _number(data: Any, weight: str | None, u: Any, v: Any) -> float:
    value = 1.0 if weight is None else data.get(weight, 1.0)
    try:
        return real_number(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"The weight of the edge from {shown(u)} to {shown(v)} must be a finite number, but it is {shown(value)}."
        ) from None


def real_number(value: Any) -> float:
    """A finite real number as a float; strings and complex numbers are rejected. Raises: TypeError, ValueError."""
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        raise TypeError
    try:
        number = float(value)
    except (OverflowError, RuntimeError):
        raise ValueError from None
    if not math.isfinite(number):
        raise ValueError
    return number


def from_scipy(matrix: Any) -> Arguments:
    """From a square scipy sparse matrix or array of any format: entry (u, v) is an edge u -> v with that weight."""
    if not instance(matrix, "scipy.sparse", "sparray", "spmatrix"):
        raise TypeError(
            f"from_scipy takes a scipy sparse matrix or array, but {kind_of(matrix)} was given; "
            "scipy.sparse.csr_array(matrix) converts a dense one."
        )
    if len(matrix.shape) != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"An adjacency matrix must be square, but its shape is {tuple(matrix.shape)}.")
    coo = matrix.tocoo()
    if coo.data.dtype.kind not in "biuf":
        raise TypeError(f"An adjacency matrix must be real, but its dtype is {coo.data.dtype}.")
    if matrix.format == "bsr":  # zeros inside a block are not edges
        coo.eliminate_zeros()
    row, col = (as_tensor("matrix", end) for end in (coo.row, coo.col))
    weights = torch.from_numpy(coo.data.astype("float64"))
    return {"edge_index": torch.stack([row, col]), "size": matrix.shape[0], "edge_weight": weights}


def from_pygsp(graph: Any) -> Arguments:
    """From a PyGSP graph: entry (u, v) of its `W` is an edge u -> v; its coordinates, if any, become `pos`."""
    if not instance(graph, "pygsp.graphs", "Graph"):
        raise TypeError(f"from_pygsp takes a graph of pygsp.graphs, but {kind_of(graph)} was given.")
    found = from_scipy(graph.W)
    coords: Any = getattr(graph, "coords", None)
    if instance(coords, "numpy", "ndarray") and coords.dtype.kind in "iuf" and coords.shape[:1] == graph.W.shape[:1]:
        pos = as_tensor("pos", coords.reshape(len(coords), -1)).to(torch.get_default_dtype())
        found |= {"pos": pos} if bool(torch.isfinite(pos).all()) else {}
    return found


def columns_of(names: Sequence[Any], wanted: Any, role: str) -> int:
    """The index of the column given by name or position. Raises: ValueError."""
    if wanted in names:
        return list(names).index(wanted)
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        if -len(names) <= wanted < len(names):
            return wanted % len(names)
        raise ValueError(
            f"{role}={wanted} is out of range: the table has {plural(len(names), 'column')}, numbered from 0."
        )
    known = [str(name) for name in names]
    guess = near(str(wanted), known) or ";"
    there = "There" if guess.endswith("?") else "there"
    raise ValueError(f"There is no column {shown(wanted)} for {role}{guess} {there} are {', '.join(known[:20])}.")
