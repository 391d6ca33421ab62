"""S on a domain: built by the structure, checked, and cached if it depends on the domain only.

Under torch.compile S is built outside of the trace, and compiled functions read it as an attribute.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from itertools import count
from operator import index
from types import SimpleNamespace
from typing import Any
from weakref import finalize

import torch
import torch.nn.functional as F
from torch import SymInt

from gconv.arguments import kind_of, plural, shown
from gconv.basis import Attended, Basis, SharedTaps, Stack, Taps
from gconv.caches import Cache, register
from gconv.call import Call
from gconv.domains import Edges, Grid
from gconv.kernels import as_fake, at_trace_time, concrete, is_static, lasting, leave, untraced
from gconv.kernels.transforms import PLAIN
from gconv.spec import Domain, Structure, Theta

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
_GRID_BASES: Cache[Hashable, Basis] = Cache("structures on grids", 64)
_GRID_TARGETS: Cache[Hashable, Domain] = Cache("output grids", 64)
_TRACED = SimpleNamespace()  # S on grids, as attributes that compiled functions read; deleted with the structures
_TRACED_NAMES: dict[Hashable, str] = {}  # the attribute names, by the id of the structure and what S depends on
_NUMBERS = count()
OPEN_GRAPH = (
    "torch.compile(dynamic=True) treats the sizes of a Graph as unknown, but S of this layer needs them. "
    "Leave out dynamic=True, or pass an edge_index, with which one compiled function runs on graphs of any size."
)
register(  # clear_cache keeps them, because compiled functions find their structures by these names
    "grid structures of compiled functions",
    _TRACED_NAMES,
    _TRACED_NAMES.__len__,
    lambda: list(vars(_TRACED).values()),
    lambda: None,
    "as long as the layers live",
)


def bind(structure: Structure, domain: Domain | Edges, theta: Theta, call: Call) -> Basis:
    """S on a domain, cached if it depends on the domain only."""
    x = call.x
    if torch.compiler.is_dynamo_compiling():
        return _bind_in_trace(structure, domain, theta, call)
    if structure.kind != "fixed":
        return _compute_basis(structure, domain if type(x) in PLAIN else as_fake(domain, x), theta, call)
    key = (structure, x.dtype, x.device)
    if isinstance(domain, Edges):
        if domain.learned:
            return _compute_basis(structure, as_fake(domain, x), theta, call)
        return as_fake(domain.memo(key, lambda: _compute_basis(structure, domain, theta, call)), x)
    if _is_open(domain):
        return _compute_basis(structure, domain, theta, call)
    made = _GRID_BASES.get((domain, key))  # read once: another thread may empty the cache at any time
    if made is None:
        with lasting():
            made = _compute_basis(structure, domain, theta, Call(torch.empty(0, dtype=x.dtype, device=x.device)))
        _GRID_BASES[domain, key] = made
    return as_fake(made, x)


def _bind_in_trace(structure: Structure, domain: Domain | Edges, theta: Theta, call: Call) -> Basis:
    """`bind` under torch.compile: S on a domain that was created outside of the trace is built outside, too."""
    x = call.x
    if isinstance(domain, Grid):
        shape = domain.shape
        if hasattr(structure, "memo"):  # S is computed for sizes that are constants: resampling
            shape = tuple([index(n) for n in shape])  # the compiler then compiles once for each size
        if structure.kind == "fixed" and is_static(shape):
            return getattr(_TRACED, _grid_basis(structure, shape, x.dtype, x.device))
    elif structure.kind == "fixed" and not domain.learned:
        found = _graph_basis(structure, domain, x.dtype, x.device)
        if found is not None:
            return getattr(domain, found)
    else:
        if has_open_sizes(domain):
            torch._dynamo.graph_break(msg=OPEN_GRAPH)  # which is an error here, see `_traced`
        given = theta if call.weight is None else {**theta, "weight": call.weight}
        shapes = tuple((name, tuple(t.shape)) for name, t in given.items())
        _prepare_graph(structure, domain, shapes, index(x.shape[-1]), x.dtype, x.device)
    return _compute_basis(structure, domain, theta, call)


@at_trace_time
def _grid_basis(structure: Structure, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> str:
    """The attribute of `_TRACED` that holds S on a grid.

    Names are never reused: a compiled function finds its own S, or none.
    """
    key = id(structure), shape, dtype, device
    name = _TRACED_NAMES.get(key)
    if name is None:
        with untraced():
            S = bind(structure, Grid(shape), {}, Call(torch.empty(0, dtype=dtype, device=device)))
        name = _TRACED_NAMES[key] = leave(_TRACED, str(next(_NUMBERS)), S)
        finalize(structure, _drop, key).atexit = False
    return name


def _drop(key: Hashable) -> None:
    vars(_TRACED).pop(_TRACED_NAMES.pop(key), None)


@at_trace_time
def _graph_basis(structure: Structure, graph: Edges, dtype: torch.dtype, device: torch.device) -> str | None:
    """The attribute of a graph that holds S; None if the graph was created within the trace."""
    if _is_given(graph) is None:
        return None
    with untraced():
        S = bind(structure, graph, {}, Call(torch.empty(graph.sites[1], 0, dtype=dtype, device=device)))
    return leave(graph, f"S{id(S)}", S)


@at_trace_time
def _is_given(graph: Edges) -> str | None:
    """Whether a graph was created outside of the trace."""
    return "yes" if "edge_index" in graph.__dict__ and concrete(graph.edge_index) else None


def has_open_sizes(domain: Any) -> bool:
    """Whether the sizes of a graph from outside of the trace are unknown, as with dynamic=True."""
    return (
        isinstance(domain, Edges)
        and _is_given(domain) is not None
        and not is_static((*domain.sites, *domain.edge_index.shape))
    )


@at_trace_time
def _prepare_graph(
    structure: Structure, graph: Edges, shapes: Shapes, i: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Makes a graph from outside of the trace compute and cache what a learned S needs, before it is traced."""
    if _is_given(graph) is None:
        return
    with untraced(), torch.no_grad():
        theta = {name: torch.ones(shape, dtype=dtype, device=device) for name, shape in shapes}
        call = Call(torch.ones(graph.sites[1], i, dtype=dtype, device=device), weight=theta.get("weight"))
        _compute_basis(structure, graph, theta, call)


def _compute_basis(structure: Structure, domain: Domain | Edges, theta: Theta, call: Call) -> Basis:
    """S from `structure.basis`. Raises: TypeError if it is not a Basis with the structure's number of taps."""
    try:
        S = structure.basis(domain, theta, call)
    except KeyError as error:
        if not error.args or error.args[0] in theta or not isinstance(error.args[0], str):
            raise
        declared = ", ".join(theta) or "none"
        raise ValueError(
            f"The basis of {type(structure).__name__} asks theta for {error.args[0]!r}, but the parameters that its "
            f"parameters() declares are: {declared}."
        ) from error
    if not hasattr(S, "contract") or S.shape[0] != structure.taps:
        what = plural(S.shape[0], "tap") if hasattr(S, "contract") else kind_of(S)
        raise TypeError(
            f"The basis of {type(structure).__name__} must be a stack of {structure.taps} sparse matrices, one of the "
            f"forms in gconv.basis, but it is {what}."
        )
    sites = _sites(structure, domain)
    if is_static((*S.shape, *sites)) and S.shape[1:] != sites:
        raise TypeError(
            f"The basis of {type(structure).__name__} on {domain!r} must hold matrices of {sites[0]} x {sites[1]} "
            f"(output sites x input sites), but they are {S.shape[1]} x {S.shape[2]}."
        )
    return S


def _sites(structure: Structure, domain: Domain | Edges) -> tuple[int, int]:
    """(m, n): output and input sites of a structure on a domain. Raises: TypeError if its target is not a domain."""
    target = structure.target(domain)
    if not isinstance(target, Grid | Edges):
        raise TypeError(
            f"The target of {type(structure).__name__} must be a Grid or a Graph, but it is {shown(target)}."
        )
    m = target.size if isinstance(target, Grid) else target.sites[0]
    return m, domain.size if isinstance(domain, Grid) else domain.sites[1]


def output_domain(structure: Structure, domain: Domain) -> Domain:
    """The domain of the output."""
    if not isinstance(domain, Grid) or torch.compiler.is_dynamo_compiling() or _is_open(domain):
        return structure.target(domain)
    target = _GRID_TARGETS.get((structure, domain))
    if target is None:
        target = _GRID_TARGETS[structure, domain] = structure.target(domain)
    return target


def _is_open(domain: Grid) -> bool:
    """Whether a size of the grid is dynamic (a SymInt of an exporter), so that S cannot be cached by the grid."""
    return any(isinstance(size, SymInt) for size in domain.shape)


def dropped(S: Basis, share: float) -> Basis:
    """S with dropout on its sparse entries, the others scaled by 1 / (1 - share).

    In a stack, taps that are not sparse, such as the identity through which a node reads itself, are unchanged.
    """
    if isinstance(S, Stack):
        return Stack(tuple(part if isinstance(part, Taps) else dropped(part, share) for part in S.parts))
    if isinstance(S, Attended):
        return replace(S, dropout=(share, torch.randint(1 << 32, (1,), device=S.pattern.row.device)))  # type: ignore[call-arg]
    return replace(S, values=F.dropout(S.values, share)) if isinstance(S, Taps | SharedTaps) else S
