"""The layers of a distributed model: a GConv on a part of a graph or grid, and modules that need the whole domain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gconv.arguments import plural, shown
from gconv.basis import Polynomial, entries
from gconv.binding import bind, output_domain
from gconv.caches import Holders, Own
from gconv.domains import Graph, Grid
from gconv.inputs import check_domain
from gconv.laplacian import counts
from gconv.lowering import on_images
from gconv.lowering.sparse import aggregate_first
from gconv.module import MAX_SHAPES, GConv
from gconv.parallel import blocks
from gconv.parallel.processes import Largest, Total
from gconv.parallel.state import State
from gconv.plan import plan

_RUNS: Holders[Layer] = Holders("lowerings of distributed layers", "layers", lambda layer: [layer.runs])


class Layer(nn.Module):
    """A GConv on the part of one process: a `GraphLayer` or a `GridLayer`."""

    def __init__(self, layer: GConv, name: str, state: State) -> None:
        super().__init__()
        self.layer, self.name, self.state = layer, f"{layer.spec.name} ({name})" if name else layer.spec.name, state
        self.runs: Own[Any, Any] = Own()  # cached lowerings, by shapes, dtypes and gradient mode
        self.recorded = False  # whether the last forward pass of the model recorded gradients of this layer
        _RUNS.add(self)
        self._check_layer()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _RUNS.add(self)

    def _check_layer(self) -> None:
        """Raises: TypeError if the layer cannot be distributed."""
        raise NotImplementedError

    def _on_part(self, x: Tensor) -> Tensor:
        """The rows of the result in this process, for those of x."""
        raise NotImplementedError

    def forward(self, x: Tensor, domain: Any = None, *more: Any, **options: Any) -> Tensor:
        given = [name for name, value in options.items() if value is not None]
        if given or any(value is not None for value in more):
            raise TypeError(
                f"{self.name} takes x and partition.domain in a distributed model, but it was also given "
                f"{', '.join(given) or 'a third argument'}: put the data of the edges into the Graph given to shard."
            )
        if self.state.whole is not None:
            self.recorded = torch.is_grad_enabled()
        elif torch.is_grad_enabled() and not self.recorded:
            raise ValueError(
                f"{self.name} runs outside of the forward pass of its model, where the gradients of its weights are "
                "not summed over the processes: call the model, and torch.utils.checkpoint with use_reentrant=False."
            )
        self.state.check_detached()
        if self.state.whole:
            raise ValueError(f"{self.name} follows a pool over the whole domain, after which there are no parts.")
        on_graph = isinstance(self.state.partition.domain, Graph)
        if on_graph and domain is not None and domain is not self.state.partition.domain:
            raise TypeError(
                f"{self.name} was given {shown(domain)}, but the model is distributed over partition.domain: "
                "pass that, or no domain."
            )
        return self._on_part(x)

    def _memo(self, key: Any, make: Callable[[], Any]) -> Any:
        """The result of `make`, cached for this key."""
        if key in self.runs:
            return self.runs[key]
        made = make()
        if len(self.runs) >= MAX_SHAPES:
            self.runs.clear()
        self.runs[key] = made
        return made


class GraphLayer(Layer):
    """A GConv on the nodes of one process.

    A fixed S, or a polynomial of a fixed matrix, is cut into blocks of rows. Other structures are computed on the
    nodes of this process and their neighbours.
    """

    @property
    def _pools(self) -> bool:
        return self.layer.spec.name == "global_pool"

    def _check_layer(self) -> None:
        layer, structure, graph = self.layer, self.layer.spec.structure, self.state.partition.domain
        assert isinstance(graph, Graph)
        if structure.domain == "grid":
            raise TypeError(f"{self.name} works on grids, but the partition is of a graph.")
        check_domain(layer.spec, graph)
        self.by_rows = structure.kind == "fixed" and structure.dropout == 0
        why = None
        if structure.kind != "adaptive":
            like = next(layer.parameters(), layer._like)
            x = torch.empty(graph.size, getattr(layer.spec.mixing, "i", 1), dtype=like.dtype, device=like.device)
            with torch.no_grad():
                S = layer._basis(graph, layer._call(x))
            self.by_rows = self.by_rows or type(S) is Polynomial
            why = blocks.refuses(S) if self.by_rows else None
        if not self.by_rows and structure.reads is None and structure.reads_block is None:
            why = f"{structure.square}, which requires the whole graph in one process"
        if why is not None and not self._pools:
            raise TypeError(f"{self.name} cannot be distributed: {why}.")

    def _on_part(self, x: Tensor) -> Tensor:
        state, layer = self.state, self.layer
        part = state.partition
        graph = part.domain
        assert isinstance(graph, Graph)
        low, high = part.range
        if x.ndim < 2 or x.shape[-2] != high - low:
            raise ValueError(
                f"{self.name} takes the {plural(high - low, 'node')} of rank {part.rank}, not {tuple(x.shape)}."
            )
        layer._check_signal(x)
        layer.spec.mixing.channels(x.shape[-1])
        if self._pools:
            return self._pool(x, graph, low, high)
        if not self.by_rows:
            key: Any = "neighbourhood", graph.version
            local, halo = part.memo(key, lambda: blocks.neighbourhood(graph, part.bounds, state.processes))
            y: Tensor = layer.forward(halo(x), local)
            return y.narrow(-2, halo.before, halo.own)
        S = layer._basis(graph, layer._call(x))
        key = layer.spec.structure, x.dtype, x.device, graph.version
        block = part.memo(key, lambda: blocks.of_rows(S, part.bounds, state.processes, x.new_empty(0)))
        cut = block.S
        if isinstance(S, Polynomial):
            assert isinstance(cut, blocks.Steps)
            return layer._cast(aggregate_first(blocks.Steps.of(S, cut.L, cut.halo), layer._call(x)))
        run = self._planned(S, x, graph.size)
        return layer._cast(run(cut, layer._call(block.halo(x))))

    def _planned(self, S: Any, x: Tensor, n: int) -> Any:
        """The lowering that a single process would choose, the same in all processes."""
        shape = *x.shape[:-2], n, x.shape[-1]
        key = shape, x.dtype, x.device, x.requires_grad, torch.is_grad_enabled()

        def lowering() -> Any:
            like = x.new_empty(shape).requires_grad_(x.requires_grad)
            return plan(S, self.layer._call(like)).chosen.run

        return self._memo(key, lowering)

    def _pool(self, x: Tensor, graph: Graph, low: int, high: int) -> Tensor:
        reduce = self.layer.spec.structure.reduce  # type: ignore[attr-defined]
        every, parts, dtype = graph.part(), len(graph.ptr) - 1, x.dtype
        part, count = every[low:high], counts(every, parts).unsqueeze(-1)
        x = x.to(torch.promote_types(dtype, torch.float32))  # in which sums of many numbers are accurate
        none = x.new_zeros(*x.shape[:-2], parts, x.shape[-1])
        self.state.pooled()
        if reduce == "max":
            index = part.unsqueeze(-1).expand_as(x)
            top = none.masked_fill(count > 0, -torch.inf).scatter_reduce(-2, index, x, "amax")
            ties = none.index_add(-2, part, (x == top.index_select(-2, part)).to(x.dtype))
            y = Largest.apply(top, ties, self.state.processes)
        else:
            y = Total.apply(none.index_add(-2, part, x), self.state.processes)
            y = y / count.clamp(min=1) if reduce == "mean" else y
        return y.to(dtype)


class GridLayer(Layer):
    """A GConv on the rows of a grid of one process."""

    def _check_layer(self) -> None:
        structure = self.layer.spec.structure
        if structure.domain == "graph":
            raise TypeError(f"{self.name} works on graphs, but the partition is of a grid.")
        if structure.kind != "fixed":
            raise TypeError(f"{self.name} learns its structure on grids, which cannot be distributed.")

    def _on_part(self, x: Tensor) -> Tensor:
        state, layer = self.state, self.layer
        part, structure = state.partition, layer.spec.structure
        d = part.domain.ndim  # type: ignore[union-attr]
        layer._check_signal(x)
        if x.ndim not in (d + 1, d + 2):
            raise ValueError(f"{self.name} takes slabs of images (b, c, rows, ...), not {tuple(x.shape)}.")
        layer.spec.mixing.channels(x.shape[-d - 1])
        n = state.rows(x.shape[-d], self.name)
        grid = Grid((n, *x.shape[1 - d :])) if d > 1 else Grid((n,))
        target = output_domain(structure, grid)
        assert isinstance(target, Grid)
        S = bind(structure, grid, {}, layer._call(x))
        if S.is_identity or (S.is_grid and getattr(S, "trivial", False)):
            return layer.forward(x)
        if target.size == 1 and grid.size > 1 and layer.weight is None:
            factor = self._factor(S, structure, grid)
            if factor is not None:
                return self._pool(S, factor, x, d)
        key = structure, grid, x.dtype, x.device
        like, rows = x.new_empty(0), target.shape[0]
        block = part.memo(key, lambda: blocks.of_slab(S, n, rows, state.processes, like, self.name))
        x = block.halo(x, -d)
        cut = block.S
        if cut is None:  # no output rows here: an empty result that still takes part in the backward pass
            o = layer.spec.mixing.channels(x.shape[-d - 1])
            y = x.new_zeros(*x.shape[: -d - 1], o, 0, *target.shape[1:])
            ends = [x, *(p for p in layer.parameters())]
            return y + sum(t.reshape(-1)[:0].sum() for t in ends)
        x = x if block.pick is None else x.index_select(x.ndim - d, block.pick)
        call = layer._call((x.flatten(-d) if d > 1 else x).mT)
        shape = block.rows, *target.shape[1:]
        kind = x.shape, x.stride(), x.dtype, x.requires_grad, torch.is_grad_enabled()
        images = call.at(x)
        run = self._memo(kind, lambda: on_images(plan(cut, call).chosen, cut, images, shape))
        return layer._cast(run(cut, images))

    def _factor(self, S: Any, structure: Any, grid: Grid) -> float | None:
        """The factor of every site in the only output site; None if the factors differ, or some sites are not read."""

        def common() -> float | None:
            found = entries(S, torch.float64, torch.device("cpu"))
            every, first = len(found.pattern.col.unique()) == found.nnz == grid.size, found.values[:1]
            return first.item() if every and torch.equal(found.values, first.expand(grid.size)) else None

        factor: float | None = self._memo((structure, grid), common)
        return factor

    def _pool(self, S: Any, factor: float, x: Tensor, d: int) -> Tensor:
        self.state.pooled()
        axes, dtype = list(range(-d, 0)), torch.promote_types(x.dtype, torch.float32)
        if S.linear:
            y = factor * Total.apply(x.sum(axes, keepdim=True, dtype=dtype), self.state.processes)
        else:
            empty = x.new_full((*x.shape[:-d], *[1] * d), -torch.inf)
            top = x.amax(axes, keepdim=True) if x.shape[-d] else empty
            y = Largest.apply(top.to(dtype), (x == top).sum(axes, keepdim=True), self.state.processes)
        return y.to(x.dtype)


def on_part(layer: GConv, name: str, state: State) -> Layer:
    """A GConv on the part of this process. Raises: TypeError if it cannot be distributed."""
    kind = GraphLayer if isinstance(state.partition.domain, Graph) else GridLayer
    return kind(layer, name, state)


class Whole(nn.Module):
    """A module that mixes sites; it can run only after global pooling, identically in every process."""

    def __init__(self, module: nn.Module, name: str, state: State) -> None:
        super().__init__()
        self.module, self.name, self.state = module, name, state

    def forward(self, x: Tensor) -> Tensor:
        if self.state.whole is False or (self.state.whole and self.state.parted(x)):
            kind = type(self.module).__name__
            raise ValueError(f"{kind} ({self.name}) mixes rows of several processes: pool all of them first.")
        y: Tensor = self.module(x)
        return y
