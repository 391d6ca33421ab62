"""What a layer is called with, checked and read as a signal (*b, n, c) and a domain."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gconv.arguments import kind_of, plural, shown
from gconv.domains import Bipartite, Graph, Grid, read_bipartite, read_graph
from gconv.errors import InputError
from gconv.spec import Domain, OperatorSpec


def read_input(spec: OperatorSpec, x: Tensor, domain: Any, **edges: Tensor | None) -> tuple[Tensor, Domain]:
    """x as (*b, n, c) and its domain; on grids a view of x."""
    structure = spec.structure
    if structure.domain == "grid" or (structure.domain == "any" and (domain is None or isinstance(domain, Grid))):
        given = [name for name, value in edges.items() if value is not None]
        if given:
            raise TypeError(f"{spec.name} runs on a grid here, which has no {' or '.join(given)}.")
        return _read_images(spec, x, domain)
    if domain is None:
        raise TypeError(f"{spec.name} works on graphs: call layer(x, graph) or layer(x, edge_index).")
    if x.ndim < 2:
        raise InputError(f"A signal on a graph has shape (*b, nodes, channels), but x has shape {tuple(x.shape)}.")
    graph = domain if isinstance(domain, Bipartite) else read_graph(domain, x.shape[-2], **edges)
    if isinstance(graph, Graph) and graph.size != x.shape[-2]:
        raise InputError(
            f"The graph has {plural(graph.size, 'node')}, but x of shape {tuple(x.shape)} has {x.shape[-2]}."
        )
    if graph.device != x.device:
        raise InputError(f"The graph is on {graph.device}, but x is on {x.device}; graph.to(x.device) moves it.")
    check_domain(spec, graph)
    _check_channels(spec, x.shape[-1])
    return x, graph


def _read_images(spec: OperatorSpec, x: Tensor, domain: Any) -> tuple[Tensor, Domain]:
    d: int
    if spec.structure.domain == "grid":
        d = spec.structure.ndim  # type: ignore[attr-defined]
    else:
        d = domain.ndim if isinstance(domain, Grid) else x.ndim - 2
    if x.ndim not in (d + 1, d + 2) or d < 1:
        raise InputError(
            f"{spec.name} takes images (b, c, {', '.join('hwd'[:d])}) or one without b, "
            f"but x has shape {tuple(x.shape)}."
        )
    grid = Grid.of(x, d)
    if domain is not None and (not isinstance(domain, Grid) or domain != grid):
        what = shown(domain) if isinstance(domain, Tensor) else f"a {domain!r}"
        raise ValueError(f"{spec.name} reads its grid off the images, {grid.shape}, but {what} was given as well.")
    _check_channels(spec, x.shape[-d - 1], f" Images are (b, c, *grid), and x has shape {tuple(x.shape)}.")
    return (x.flatten(-d) if d > 1 else x).mT, grid


def view_for(spec: OperatorSpec, domain: Bipartite) -> Bipartite:
    """The domain with the targets' features, `domain.with_targets`, if this operator reads them; else as it is."""
    structure = spec.structure
    reads = structure.reads
    if reads is None and domain.whole is not None:
        reads = structure.reads_block
    if reads is None:
        if structure.domain == "grid":
            raise TypeError(f"{spec.name} works on a grid, but a Bipartite was given.")
        more = "" if domain.whole is None else " A sampled block holds one step: give it a Graph."
        raise TypeError(
            f"{spec.name} works on one set of nodes, not from one set to another: {structure.square}.{more}"
        )
    return domain.with_targets if reads == "both" else domain


def read_pair(spec: OperatorSpec, x: Any, domain: Any, **edges: Tensor | None) -> tuple[Tensor, Bipartite]:
    """One signal on two sets of nodes, and the domain, from the arguments of a call with a pair or a Bipartite."""
    name, sides = spec.name, spec.sides
    given = [key for key, value in edges.items() if value is not None]
    pair = x if isinstance(x, tuple) else None
    if pair is not None and len(pair) != 2:
        what = shown(pair) if all(isinstance(n, int) for n in pair) else f"a tuple of {len(pair)}"
        raise TypeError(f"x must be a torch tensor or a pair of them, (x_source, x_target), but it is {what}.")
    if isinstance(domain, Tensor) and pair is not None:
        if not all(isinstance(part, Tensor) and part.ndim > 1 for part in pair):
            raise TypeError(
                f"With an edge_index {name} takes two tensors, (x_source, x_target), from which the numbers of "
                "nodes are read; use a Bipartite if x_target is None."
            )
        domain = read_bipartite(domain, (pair[0].shape[-2], pair[1].shape[-2]), **edges)
    elif not isinstance(domain, Bipartite):
        raise TypeError(
            "A pair of signals needs a gconv.Bipartite or an edge_index from sources to targets, but "
            f"{kind_of(domain)} was given."
        )
    elif given:
        raise TypeError(f"{', '.join(given)} can only be given with an edge_index; put it into the Bipartite instead.")
    view = view_for(spec, domain)
    block = pair is None and domain.whole is not None and view is not domain
    if block and isinstance(x, Tensor) and x.ndim > 1 and x.shape[-2] == domain.sizes[0]:
        pair = x, x[..., : domain.sizes[1], :]  # the targets of a sampled block are the first of its sources
    if pair is None:
        n = view.sites[1]
        if isinstance(x, Tensor) and (x.ndim < 2 or x.shape[-2] != n):
            both = f"a pair (x_source, x_target), or both stacked, (*b, {plural(n, 'site')}, channels)"
            want = f"x_source (*b, {plural(n, 'source')}, channels)" if view is domain else both
            raise ValueError(f"{name} on {domain!r} takes {want}, but x has shape {tuple(x.shape)}.")
        return x, view
    source, target = pair
    domain.check_pair(source, target)
    i = getattr(spec.mixing, "i", source.shape[-1])
    for part, c, what in zip(pair, sides or (i, i), ("source", "target"), strict=True):
        if part is not None and part.shape[-1] != c and (what == "source" or view is not domain):
            raise ValueError(f"{name} takes {plural(c, 'channel')} of x_{what}, but it has shape {tuple(part.shape)}.")
    if view is domain:
        return source, view
    if target is None:
        target = source.new_zeros(*source.shape[:-2], domain.sizes[1], (sides or (i, i))[1])
    return domain.stack(source, target), view


def _check_channels(spec: OperatorSpec, c: int, more: str = "") -> None:
    try:
        spec.mixing.channels(c)
    except ValueError as error:
        raise InputError(f"{str(error).replace('This operator', spec.name)}{more}") from None


def check_domain(spec: OperatorSpec, domain: Domain) -> None:
    """Raises: TypeError, ValueError if the operator does not work on this kind of domain."""
    wanted = spec.structure.domain
    have = "grid" if isinstance(domain, Grid) else "graph"
    if wanted not in (have, "any"):
        raise TypeError(f"{spec.name} works on a {wanted}, but a {have} was given.")
    if isinstance(domain, Grid) and wanted == "grid" and domain.ndim != spec.structure.ndim:  # type: ignore[attr-defined]
        raise ValueError(f"{spec.name} works on {spec.structure.ndim}-D grids, not on {domain}.")  # type: ignore[attr-defined]
