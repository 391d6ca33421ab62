"""distribute: a model whose layers exchange halos, on one part of a graph or grid."""

from __future__ import annotations

import copy
import itertools
import zlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gconv.arguments import shown
from gconv.basis import Polynomial, entries
from gconv.caches import Holders
from gconv.domains import Graph, Grid
from gconv.lowering import on_images
from gconv.lowering.sparse import aggregate_first
from gconv.module import MAX_SHAPES, GConv, bind, output_domain
from gconv.parallel import blocks
from gconv.parallel.partition import Partition, even
from gconv.parallel.processes import Largest, Shared, Total
from gconv.parallel.statistics import normalised
from gconv.plan import plan
from gconv.spec import OutsideFamily

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_SITEWISE = (nn.Identity, nn.Dropout)
_MIXING = (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.MultiheadAttention)


class State:
    """The state shared by the layers of a distributed model.

    sizes: by kind of input, the global number of rows at each layer, counted in the first call.
    whole: whether the signal has been pooled over the whole domain and is the same in every process.
    """

    def __init__(self, partition: Partition) -> None:
        self.partition, self.processes = partition, partition.processes
        self.sizes: dict[Any, list[int]] = {}
        self.start(None)

    def start(self, key: Any) -> None:
        known = self.sizes.get(key)
        self.now: list[int] = [] if known is None else known
        self.counting, self.at, self.whole = known is None, 0, False

    def finish(self, key: Any) -> None:
        if len(self.sizes) >= 64:
            self.sizes.clear()
        self.sizes[key] = self.now

    def rows(self, here: int, name: str) -> int:
        """The global number of rows at this layer, of which `here` are in this process. Raises: ValueError."""
        if self.counting or self.at >= len(self.now):
            have = self.processes.gathered(here)
            bounds = even(sum(have), self.processes.size)
            if have != [b - a for a, b in itertools.pairwise(bounds)]:  # the same in every process
                raise ValueError(
                    f"{name} got {have} rows in the processes, but {sum(have)} rows must be distributed evenly: code "
                    "between the layers must not change the rows."
                )
            self.now.append(sum(have))
        n, self.at = self.now[self.at], self.at + 1
        bounds, r = even(n, self.processes.size), self.processes.rank
        if bounds[r + 1] - bounds[r] != here:
            raise ValueError(f"{name} got {here} rows in rank {r}, but {bounds[r + 1] - bounds[r]} in an earlier call.")
        return n


_RUNS: Holders[Layer] = Holders("lowerings of distributed layers", "layers", lambda layer: [layer.runs])


class Layer(nn.Module):
    """A GConv on the part of one process."""

    def __init__(self, layer: GConv, name: str, state: State) -> None:
        super().__init__()
        self.layer, self.name, self.state = layer, f"{layer.spec.name} ({name})" if name else layer.spec.name, state
        self.runs: dict[Any, Any] = {}  # cached lowerings, by shapes, dtypes and gradient mode
        _RUNS.add(self)
        if isinstance(state.partition.domain, Graph):
            self._check_graph(state.partition.domain)
        elif layer.spec.structure.domain == "graph":
            raise TypeError(f"{self.name} works on graphs, but the partition is of a grid.")
        elif layer.spec.structure.kind != "fixed":
            raise TypeError(f"{self.name} learns its structure on grids, which cannot be distributed.")

    def _check_graph(self, graph: Graph) -> None:
        layer, structure = self.layer, self.layer.spec.structure
        if structure.domain == "grid":
            raise TypeError(f"{self.name} works on grids, but the partition is of a graph.")
        layer._check_domain(graph)
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

    @property
    def _pools(self) -> bool:
        return self.layer.spec.name == "global_pool"

    def forward(self, x: Tensor, domain: Any = None) -> Tensor:
        if self.state.whole:
            raise ValueError(f"{self.name} follows a pool over the whole domain, after which there are no parts.")
        if isinstance(self.state.partition.domain, Grid):
            return self._on_grid(x)
        if domain is not None and domain is not self.state.partition.domain:
            raise TypeError(
                f"{self.name} was given {shown(domain)}, but the model is distributed over partition.domain: "
                "pass that, or no domain."
            )
        return self._on_graph(x)

    # -- graphs ----------------------------------------------------------------------------------------------------

    def _on_graph(self, x: Tensor) -> Tensor:
        state, layer = self.state, self.layer
        part = state.partition
        graph = part.domain
        assert isinstance(graph, Graph)
        low, high = part.range
        if x.ndim < 2 or x.shape[-2] != high - low:
            raise ValueError(f"{self.name} takes the {high - low} nodes of rank {part.rank}, not {tuple(x.shape)}.")
        layer._check_signal(x)
        layer.spec.mixing.channels(x.shape[-1])
        if self._pools:
            return self._pool_graph(x, graph, low, high)
        if not self.by_rows:
            found = part.made.get("neighbourhood")
            if found is None:
                found = part.keep("neighbourhood", blocks.neighbourhood(graph, part.bounds, state.processes))
            local, halo = found
            y: Tensor = layer(halo(x), local)
            return y.narrow(-2, halo.before, halo.own)
        S = layer._basis(graph, layer._call(x))
        key = layer.spec.structure, x.dtype, x.device
        block = part.made.get(key)
        if block is None:
            block = part.keep(key, blocks.of_rows(S, part.bounds, state.processes, x.new_empty(0)))
        cut = block.S
        if isinstance(S, Polynomial):
            assert isinstance(cut, blocks.Steps)
            return aggregate_first(blocks.Steps.of(S, cut.L, cut.halo), layer._call(x))
        run = self._planned(S, x, graph.size)
        return run(cut, layer._call(block.halo(x)))

    def _planned(self, S: Any, x: Tensor, n: int) -> Any:
        """The lowering that a single process would choose, the same in all processes."""
        shape = *x.shape[:-2], n, x.shape[-1]
        key = shape, x.dtype, x.device, x.requires_grad, torch.is_grad_enabled()
        if key not in self.runs:
            like = x.new_empty(shape).requires_grad_(x.requires_grad)
            return self._keep(key, plan(S, self.layer._call(like)).chosen.run)
        return self.runs[key]

    def _keep(self, key: Any, run: Any) -> Any:
        if len(self.runs) >= MAX_SHAPES:
            self.runs.clear()
        self.runs[key] = run
        return run

    def _pool_graph(self, x: Tensor, graph: Graph, low: int, high: int) -> Tensor:
        reduce = self.layer.spec.structure.reduce  # type: ignore[attr-defined]
        part, parts = graph.part()[low:high], len(graph.ptr) - 1
        shape = *x.shape[:-2], parts, x.shape[-1]
        self.state.whole = True
        if reduce == "max":
            index = part.unsqueeze(-1).expand_as(x)
            top = x.new_full(shape, -torch.inf).scatter_reduce(-2, index, x, "amax")
            return Largest.apply(top, self.state.processes)
        y = Total.apply(x.new_zeros(shape).index_add(-2, part, x), self.state.processes)
        counts = torch.bincount(graph.part(), minlength=parts).to(x.dtype).unsqueeze(-1)
        return y / counts if reduce == "mean" else y

    # -- grids -----------------------------------------------------------------------------------------------------

    def _on_grid(self, x: Tensor) -> Tensor:
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
            return layer(x)
        if target.size == 1 and grid.size > 1 and layer.weight is None:
            return self._pool_grid(S, x, d)
        key = structure, grid, x.dtype, x.device
        block = part.made.get(key)
        if block is None:
            made = blocks.of_slab(S, n, target.shape[0], state.processes, x.new_empty(0), self.name)
            block = part.keep(key, made)
        x = block.halo(x, -d)
        if block.S is None:  # no output rows here: an empty result that still takes part in the backward pass
            o = layer.spec.mixing.channels(x.shape[-d - 1])
            y = x.new_zeros(*x.shape[: -d - 1], o, 0, *target.shape[1:])
            ends = [x, *(p for p in layer.parameters())]
            return y + sum(t.reshape(-1)[:0].sum() for t in ends)
        x = x if block.pick is None else x.index_select(x.ndim - d, block.pick)
        call = layer._call((x.flatten(-d) if d > 1 else x).mT)
        shape = block.rows, *target.shape[1:]
        kind = x.shape, x.stride(), x.dtype, x.requires_grad, torch.is_grad_enabled()
        run = self.runs.get(kind)
        if run is None:
            chosen = plan(block.S, call).chosen
            run = self._keep(kind, on_images(chosen, block.S, call.at(x), shape))
        return run(block.S, call.at(x))

    def _pool_grid(self, S: Any, x: Tensor, d: int) -> Tensor:
        scale = entries(S, torch.float64, torch.device("cpu")).values[0].item()
        self.state.whole = True
        axes = list(range(-d, 0))
        if S.linear:
            return scale * Total.apply(x.sum(axes, keepdim=True), self.state.processes)
        empty = x.new_full((*x.shape[:-d], *[1] * d), -torch.inf)
        return Largest.apply(x.amax(axes, keepdim=True) if x.shape[-d] else empty, self.state.processes)


class Norm(nn.Module):
    """Batch normalisation with statistics over all processes."""

    def __init__(self, norm: nn.Module, state: State) -> None:
        super().__init__()
        self.norm, self.state = norm, state

    def forward(self, x: Tensor) -> Tensor:
        norm: Any = self.norm
        if self.state.whole or not (norm.training or norm.running_mean is None):
            y: Tensor = norm(x)
            return y
        if isinstance(self.state.partition.domain, Graph) and x.ndim != 2:
            raise ValueError(f"Batch normalisation on a graph takes (nodes, channels), not {tuple(x.shape)}.")
        return normalised(norm, x, self.state.processes)


class Whole(nn.Module):
    """A module that mixes sites; it can run only after global pooling, identically in every process."""

    def __init__(self, module: nn.Module, name: str, state: State) -> None:
        super().__init__()
        self.module, self.name, self.state = module, name, state

    def forward(self, x: Tensor) -> Tensor:
        if not self.state.whole:
            kind = type(self.module).__name__
            raise ValueError(f"{kind} ({self.name}) mixes rows of several processes: pool all of them first.")
        y: Tensor = self.module(x)
        return y


class Distributed(nn.Module):
    """A distributed model, returned by `distribute`. Its input and output are the rows of this process."""

    def __init__(self, model: nn.Module, state: State) -> None:
        super().__init__()
        self.model, self._state = model, state

    @property
    def partition(self) -> Partition:
        return self._state.partition

    def forward(self, x: Tensor, *more: Any, **named: Any) -> Any:
        state, part = self._state, self._state.partition
        key, problem = None, None
        low, high = part.range
        if not isinstance(x, Tensor) or x.ndim < -part.axis or x.shape[part.axis] != high - low:
            have = tuple(x.shape) if isinstance(x, Tensor) else shown(x)
            problem = (
                f"Rank {part.rank} holds {high - low} rows along axis {part.axis}, but x is {have}: pass "
                "partition.take(x)."
            )
        else:
            shape = list(x.shape)
            shape[part.axis] = -1
            key = tuple(shape), str(x.dtype), x.requires_grad, torch.is_grad_enabled(), self.training
        text = repr(problem or key)
        like = x if isinstance(x, Tensor) else next(self.model.parameters(), torch.empty(0))
        mark = torch.tensor([zlib.crc32(text.encode())], device=like.device)
        if int((state.processes.total(torch.cat([mark, -mark]), largest=True)).sum()):
            if problem is None:
                state.processes.agree(the_input=text)
            else:
                state.processes.gathered({"the_input": text})
        if problem is not None:
            raise ValueError(problem)
        state.start(key)
        learned = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if learned and torch.is_grad_enabled():
            shared = Shared.apply(state.processes, *learned.values())
            given = dict(zip(learned, shared, strict=True))
            y = torch.func.functional_call(self.model, given, (x, *more), named)
        else:
            y = self.model(x, *more, **named)
        state.finish(key)
        return y


def distribute(model: nn.Module, partition: Partition) -> Distributed:
    """A copy of a model that runs on the part of each process, with the weights of the first process in all of them.

    Equation: y_r = (model(x))_r, the rows of process r. Gradients are those of the sum of the losses of all processes:
    for x the rows of process r, for the weights the same in every process.

    Meaning: each layer exchanges its halo once, a polynomial of a matrix before each product. Batch statistics and
    global pools are computed over all processes. After a global pool all processes hold the same values: divide the
    loss by the number of processes. Layers of torch.nn and PyG become GConv layers.

    Traps: code in the forward of other modules must act on each node, or on each row of images, separately: no mean
    over nodes, no F.interpolate. Dropout is drawn independently in each process, so use different seeds. On grids the
    rows of every layer's output are distributed evenly. All processes must make the same forward and backward calls.

    Args:
        model: of GConv layers, layers supported by `GConv.from_torch`, activations, nn.Dropout, nn.Linear, batch
            normalisation, nn.LayerNorm over channels, and containers of them.
        partition: from `shard`; graph layers are called with partition.domain, or without a domain.

    Raises:
        TypeError: if a layer cannot be distributed, or the edges require gradients; the message names the layer.
        ValueError: if a parameter is not initialised.
        ProcessError: if the processes have different models, or one of them ends; the message says which.

    >>> import torch.distributed as dist
    >>> from gconv.operators import gcn
    >>> from gconv.parallel import shard
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> partition = shard(Graph(torch.tensor([[0, 1, 2], [1, 2, 0]])))
    >>> net = distribute(nn.Sequential(GConv(gcn(4, 8)), nn.ReLU(), GConv(gcn(8, 2))), partition)
    >>> net(partition.take(torch.ones(3, 4))).shape
    torch.Size([3, 2])
    >>> dist.destroy_process_group()
    """
    if not isinstance(model, nn.Module) or not isinstance(partition, Partition):
        raise TypeError(
            f"distribute takes a module and a Partition from shard, not {shown(model)} and {shown(partition)}."
        )
    processes, state = partition.processes, State(partition)
    if isinstance(partition.domain, Graph) and partition.domain.learned:
        raise TypeError("The edges of a partitioned graph must not need gradients: detach its tensors.")
    made, problem = model, None
    try:
        if any(map(is_lazy, model.parameters())):
            raise ValueError("The model has parameters without values: run it once, or load its weights.")
        made = _replaced(copy.deepcopy(model), "", state)
    except (TypeError, ValueError) as error:
        problem = error
    processes.agree(
        the_model=str(problem) if problem is not None else repr(made),
        the_parameters=[(name, tuple(p.shape), str(p.dtype)) for name, p in made.named_parameters() if not is_lazy(p)],
    )
    if problem is not None:
        raise problem
    with torch.no_grad():
        for t in (*made.parameters(), *made.buffers()):
            held = t.detach().contiguous()
            processes.from_first(held)
            t.copy_(held)
    return Distributed(made, state)


def _replaced(module: nn.Module, name: str, state: State) -> nn.Module:
    """The module or its distributed replacement. Raises: TypeError."""
    kind = type(module)
    graph, home = isinstance(state.partition.domain, Graph), kind.__module__
    if isinstance(module, GConv):
        return Layer(module, name, state)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return Norm(module, state)
    if isinstance(module, _SITEWISE):
        return module
    if home == "torch.nn.modules.activation" and not isinstance(module, _MIXING):
        return module
    if isinstance(module, nn.LayerNorm) and graph and len(module.normalized_shape) == 1:
        return module
    if isinstance(module, nn.Linear):
        one_axis = not graph and state.partition.domain.ndim == 1  # type: ignore[union-attr]
        return Whole(module, name, state) if one_axis else module
    if isinstance(module, (nn.Flatten, nn.Unflatten, *_MIXING)):
        return Whole(module, name, state)
    ours = home.split(".")[0] in ("torch", "torch_geometric", "gconv")
    if kind in _CONTAINERS or not ours:
        for key, child in module.named_children():
            setattr(module, key, _replaced(child, f"{name}.{key}" if name else key, state))
        return module
    try:
        return Layer(GConv.from_torch(module), name, state)
    except OutsideFamily as error:
        raise TypeError(f"{kind.__name__}{f' ({name})' if name else ''} cannot be distributed: {error}") from None
