"""distribute: a model whose layers exchange halos, on one part of a graph or grid."""

from __future__ import annotations

import copy
import itertools
import re
import zlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from gconv.arguments import shown
from gconv.basis import Polynomial, entries
from gconv.blocks import Shortcut
from gconv.caches import Holders, Own
from gconv.domains import Graph, Grid
from gconv.interop.export import export
from gconv.interop.layers import Other, identify
from gconv.interop.peer import base_class
from gconv.interop.peers import is_pyg, known
from gconv.laplacian import counts
from gconv.lowering import on_images
from gconv.lowering.sparse import aggregate_first
from gconv.module import MAX_SHAPES, GConv, bind, output_domain
from gconv.parallel import blocks
from gconv.parallel.partition import Partition, even
from gconv.parallel.processes import Largest, Shared, Total
from gconv.parallel.statistics import BatchNorm, normalised, why_refused
from gconv.plan import plan
from gconv.spec import OutsideFamily

_CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, Shortcut)
_SITEWISE = (nn.Identity, nn.Dropout)
_MIXING = (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.MultiheadAttention)


class State:
    """The state shared by the layers of a distributed model.

    sizes: by kind of input, the global number of rows at each layer, counted in the first call.
    whole: whether the signal has been pooled over the whole domain and is the same in every process; None outside of
        the model's forward pass, when torch.utils.checkpoint repeats a part of it.
    """

    whole: bool | None

    def __init__(self, partition: Partition) -> None:
        self.partition, self.processes = partition, partition.processes
        self.sizes: dict[Any, list[int]] = {}
        self.version = self.current  # of the graph, in the last call
        self.start(None)

    @property
    def current(self) -> tuple[int | None, ...]:
        domain = self.partition.domain
        return domain.version if isinstance(domain, Graph) else ()

    def start(self, key: Any) -> None:
        known = self.sizes.get(key)
        self.now: list[int] = [] if known is None else known
        self.counting, self.at, self.whole = known is None, 0, False

    def finish(self, key: Any) -> None:
        if len(self.sizes) >= 64:
            self.sizes.clear()
        self.sizes[key] = self.now
        self.now, self.counting, self.at, self.whole = [], True, 0, None

    def pooled(self) -> None:
        """From here on the signal is the same in every process."""
        if self.whole is not None:
            self.whole = True

    def parted(self, x: Any) -> bool:
        """Whether x has the shape of a part of a signal, as the product of a part and a pooled signal has."""
        part = self.partition
        if isinstance(part.domain, Grid):
            d = part.domain.ndim
            return x.ndim == d + 2 and any(n > 1 for n in x.shape[-d:])
        low, high = part.range
        return x.ndim > 1 and x.shape[-2] == high - low != len(part.domain.ptr) - 1

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
        self.runs: Own[Any, Any] = Own()  # cached lowerings, by shapes, dtypes and gradient mode
        self.recorded = False  # whether the last forward pass of the model recorded gradients of this layer
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

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _RUNS.add(self)

    @property
    def _pools(self) -> bool:
        return self.layer.spec.name == "global_pool"

    def forward(self, x: Tensor, domain: Any = None, *more: Any, **options: Any) -> Tensor:
        given = [name for name, value in options.items() if value is not None]
        if given or any(value is not None for value in more):
            raise TypeError(
                f"{self.name} takes x and partition.domain in a distributed model, but it was also given "
                f"{', '.join(given) or 'a third argument'}: data of the edges belong into the Graph given to shard."
            )
        if self.state.whole is not None:
            self.recorded = torch.is_grad_enabled()
        elif torch.is_grad_enabled() and not self.recorded:
            raise ValueError(
                f"{self.name} runs outside of the forward pass of its model, where the gradients of its weights are "
                "not summed over the processes: call the model, and torch.utils.checkpoint with use_reentrant=False."
            )
        if isinstance(self.state.partition.domain, Graph):
            _check_detached(self.state.partition.domain)
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
            name = "neighbourhood", graph.version
            found = part.made.get(name)
            if found is None:
                found = part.keep(name, blocks.neighbourhood(graph, part.bounds, state.processes))
            local, halo = found
            y: Tensor = layer.forward(halo(x), local)
            return y.narrow(-2, halo.before, halo.own)
        S = layer._basis(graph, layer._call(x))
        key = layer.spec.structure, x.dtype, x.device, graph.version
        block = part.made.get(key)
        if block is None:
            block = part.keep(key, blocks.of_rows(S, part.bounds, state.processes, x.new_empty(0)))
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
            return layer.forward(x)
        if target.size == 1 and grid.size > 1 and layer.weight is None:
            factor = self._factor(S, structure, grid)
            if factor is not None:
                return self._pool_grid(S, factor, x, d)
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
        return layer._cast(run(block.S, call.at(x)))

    def _factor(self, S: Any, structure: Any, grid: Grid) -> float | None:
        """The factor of every site in the only output site; None if the factors differ, or some sites are not read."""
        key = structure, grid
        if key not in self.runs:
            found = entries(S, torch.float64, torch.device("cpu"))
            every, first = len(found.pattern.col.unique()) == found.nnz == grid.size, found.values[:1]
            self._keep(key, first.item() if every and torch.equal(found.values, first.expand(grid.size)) else None)
        factor: float | None = self.runs[key]
        return factor

    def _pool_grid(self, S: Any, factor: float, x: Tensor, d: int) -> Tensor:
        self.state.pooled()
        axes, dtype = list(range(-d, 0)), torch.promote_types(x.dtype, torch.float32)
        if S.linear:
            y = factor * Total.apply(x.sum(axes, keepdim=True, dtype=dtype), self.state.processes)
        else:
            empty = x.new_full((*x.shape[:-d], *[1] * d), -torch.inf)
            top = x.amax(axes, keepdim=True) if x.shape[-d] else empty
            y = Largest.apply(top.to(dtype), (x == top).sum(axes, keepdim=True), self.state.processes)
        return y.to(x.dtype)


class Norm(nn.Module):
    """Batch normalisation with statistics over all processes."""

    def __init__(self, norm: nn.Module, state: State) -> None:
        super().__init__()
        self.norm, self.state, self.whole = norm, state, False

    def forward(self, x: Tensor) -> Tensor:
        norm: Any = self.norm
        if self.state.whole is not None:
            self.whole = self.state.whole
        if self.whole or not (norm.training or norm.running_mean is None):
            if self.whole and norm.training and self.state.parted(x):
                raise ValueError(
                    f"Batch normalisation follows a pool over the whole domain, but {tuple(x.shape)} is the shape of a "
                    "part: a pooled signal must not be combined with parts."
                )
            y: Tensor = norm.forward(x)
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
        if self.state.whole is False or (self.state.whole and self.state.parted(x)):
            kind = type(self.module).__name__
            raise ValueError(f"{kind} ({self.name}) mixes rows of several processes: pool all of them first.")
        y: Tensor = self.module(x)
        return y


class Distributed(nn.Module):
    """A distributed model, returned by `distribute`. Its input and output are the rows of this process."""

    def __init__(self, model: nn.Module, state: State, replaced: list[tuple[nn.Module, nn.Module]]) -> None:
        super().__init__()
        self.model, self._state, self._replaced = model, state, replaced

    @property
    def partition(self) -> Partition:
        return self._state.partition

    def restored(self) -> nn.Module:
        """A copy of the model that was distributed, for a single process, with the present weights and statistics.

        It has the classes and the state_dict of the original, so that it can be saved and used without processes. It is
        the same in all of them.

        >>> import torch.distributed as dist
        >>> from gconv.parallel import shard
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> net = distribute(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), shard(Grid((6, 6))))
        >>> net.restored()
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
          (1): ReLU()
        )
        >>> dist.destroy_process_group()
        """
        memo: dict[int, Any] = {}
        for module, new in self._replaced:
            memo[id(new)] = own = copy.deepcopy(module, memo)
            for key in [key for key, hook in own._forward_pre_hooks.items() if hook is _called]:
                del own._forward_pre_hooks[key]
            if isinstance(new, Layer) and new.layer is not module and len(list(module.parameters())):
                library: Any = "pyg" if is_pyg(base_class(module)) else "torch"
                own.load_state_dict(export(new.layer, library).state_dict(), assign=True)
            own.train(new.training)
        whole: nn.Module = copy.deepcopy(self.model, memo)
        return whole

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
        learned = self._learned()
        same = {  # where this differs, the processes would wait for each other
            "the_input": repr(problem or key),
            "the_learned_parameters": list(learned),
            "the_layers_in_another_mode": [n for n, m in self.model.named_modules() if m.training is not self.training],
            "whether_the_graph_has_changed": state.current != state.version,
        }
        like = x if isinstance(x, Tensor) else next(self.model.parameters(), torch.empty(0))
        mark = torch.tensor([zlib.crc32(repr(same).encode())], device=like.device)
        if int((state.processes.total(torch.cat([mark, -mark]), largest=True)).sum()):
            if problem is None:
                state.processes.agree(**same)
            else:
                state.processes.gathered(same)
        if problem is not None:
            raise ValueError(problem)
        state.version = state.current
        state.start(key)
        if learned and torch.is_grad_enabled():
            each = {id(p): p for p in learned.values()}
            shared = dict(zip(each, Shared.apply(state.processes, *each.values()), strict=True))
            given = {name: shared[id(p)] for name, p in learned.items()}
            y = torch.func.functional_call(self.model, given, (x, *more), named, tie_weights=False)
        else:
            y = self.model(x, *more, **named)
        state.finish(key)
        return y

    def _learned(self) -> dict[str, Tensor]:
        """The parameters that require gradients, by one name for each module that holds them.

        With two names for one module, functional_call would not restore its parameters.
        """
        held = ((name, *each) for name, module in self.model.named_modules() for each in module._parameters.items())
        return {f"{name}.{key}" if name else key: p for name, key, p in held if p is not None and p.requires_grad}


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
    torch.utils.checkpoint needs use_reentrant=False.

    Args:
        model: of GConv layers, layers supported by `GConv.from_torch`, activations, nn.Dropout, nn.Linear, batch
            normalisation, nn.LayerNorm over channels, and containers of them.
        partition: from `shard`; graph layers are called with partition.domain, or without a domain.

    Raises:
        TypeError: if a layer cannot be distributed, also because of a hook, a forward of its own, or a parameter that a
            copy as a GConv would not have; or if the edges require gradients. The message names the layer.
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
    if isinstance(partition.domain, Graph):
        _check_detached(partition.domain)
    made, problem = model, None
    try:
        if any(map(is_lazy, model.parameters())):
            raise ValueError("The model has parameters without values: run it once, or load its weights.")
        twin = copy.deepcopy(model)
        replacing = _Replacing(twin, state)
        made = replacing.of(twin)
    except (TypeError, ValueError) as error:
        problem = error
    processes.agree(
        the_model=str(problem) if problem is not None else re.sub(r" at 0x[0-9a-f]+", "", repr(made)),
        the_parameters=[(name, tuple(p.shape), str(p.dtype)) for name, p in made.named_parameters() if not is_lazy(p)],
    )
    if problem is not None:
        raise problem
    with torch.no_grad():
        for t in (*made.parameters(), *made.buffers()):
            held = t.detach().contiguous()
            processes.from_first(held)
            t.copy_(held)
    return Distributed(made, state, replacing.pairs())


def _check_detached(graph: Graph) -> None:
    if graph.learned:
        raise TypeError("The edges of a partitioned graph must not need gradients: detach its tensors.")


class _Replacing:
    """Replaces the layers of a model. A module that occurs in several places has one replacement."""

    def __init__(self, model: nn.Module, state: State) -> None:
        self.state, self.graph = state, isinstance(state.partition.domain, Graph)
        self.done: dict[int, tuple[nn.Module, nn.Module]] = {}  # by id: the module, so that the id stays its own
        self.owners: dict[int, set[int]] = {}  # by id of a parameter: the ids of the modules that hold it
        for module in model.modules():
            for p in module.parameters(recurse=False):
                self.owners.setdefault(id(p), set()).add(id(module))

    def of(self, module: nn.Module, name: str = "") -> nn.Module:
        """The replacement of a module, or the module with replaced children. Raises: TypeError."""
        if id(module) not in self.done:
            self.done[id(module)] = module, self._new(module, name)
        return self.done[id(module)][1]

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """The modules that were replaced, with their replacements; those that became a GConv lose their own weights."""
        pairs = [pair for pair in self.done.values() if pair[0] is not pair[1]]
        for module, new in pairs:
            if isinstance(new, Layer) and new.layer is not module:
                module.to("meta")
        return pairs

    def _new(self, module: nn.Module, name: str) -> nn.Module:
        kind = _known_class(module)
        if isinstance(module, GConv):
            found = identify(module)
            self._refuse(module, name, found.reason if isinstance(found, Other) else _hooked(module))
            return self._instead(module, Layer(module, name, self.state))
        if isinstance(module, BatchNorm):
            self._refuse(module, name, why_refused(module) or _hooked(module))
            return self._instead(module, Norm(module, self.state))
        if isinstance(module, _SITEWISE):
            return module
        if kind.__module__ == "torch.nn.modules.activation" and not isinstance(module, _MIXING):
            return module
        if isinstance(module, nn.LayerNorm) and self.graph and len(module.normalized_shape) == 1:
            return module
        if isinstance(module, nn.Linear):
            one_axis = not self.graph and self.state.partition.domain.ndim == 1  # type: ignore[union-attr]
            return Whole(module, name, self.state) if one_axis else module
        if isinstance(module, (nn.Flatten, nn.Unflatten, *_MIXING)):
            return Whole(module, name, self.state)
        if kind in _CONTAINERS:
            for key, child in module._modules.items():
                if child is not None:
                    module._modules[key] = self.of(child, f"{name}.{key}" if name else key)
            return module
        self._refuse(module, name, self._lost(module))
        try:
            return self._instead(module, Layer(GConv.from_torch(module), name, self.state))
        except OutsideFamily as error:
            self._refuse(module, name, str(error).rstrip("."))
            raise

    def _instead(self, module: nn.Module, new: nn.Module) -> nn.Module:
        """The replacement, which calls only `forward` of the module: a call of the module itself is an error."""
        module.register_forward_pre_hook(_called)
        return new

    def _refuse(self, module: nn.Module, name: str, why: str | None) -> None:
        if why is not None:
            place = f" ({name})" if name else ""
            raise TypeError(f"{type(module).__name__}{place} cannot be distributed: {why}.") from None

    def _lost(self, module: nn.Module) -> str | None:
        """What a copy of a layer as a GConv would lose; None if nothing."""
        if isinstance(module, (nn.Fold, nn.Unfold)):
            return "its patches are not rows of images"
        if any(map(parametrize.is_parametrized, module.modules())):
            return "its weight is computed by a parametrization, whose parameters a GConv would not have"
        if any(len(self.owners[id(p)]) > 1 for p in module.parameters()):
            return "it shares a parameter with another layer, and a GConv would have its own: use GConv layers"
        return _hooked(module)


def _called(module: nn.Module, arguments: Any) -> None:
    raise TypeError(
        f"The distributed model calls a {type(module).__name__} that was replaced: a list, dict or function holds it "
        "where replacements are not seen; keep layers in attributes, nn.ModuleList or nn.ModuleDict."
    )


def _known_class(module: nn.Module) -> type:
    """The first class of a module whose forward is known: nn.Module for classes that only derive from that."""
    libraries = "torch", "torch_geometric", "gconv", "keras"
    return next(cls for cls in base_class(module).__mro__ if cls.__module__.split(".")[0] in libraries or known(cls))


def _hooked(module: nn.Module) -> str | None:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return "a hook is registered on it, which would not run" if any(hooks) else None
