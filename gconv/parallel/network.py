"""distribute: a model whose layers exchange halos, on one part of a graph or grid."""

from __future__ import annotations

import copy
import re
import zlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gconv.arguments import plural, shown
from gconv.interop.export import export
from gconv.interop.peer import base_class
from gconv.interop.peers import is_pyg
from gconv.parallel.layers import Layer
from gconv.parallel.partition import Partition
from gconv.parallel.processes import Shared
from gconv.parallel.replacing import Replacing, refuse_call
from gconv.parallel.state import State


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
        >>> from gconv import Grid
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
            for key in [key for key, hook in own._forward_pre_hooks.items() if hook is refuse_call]:
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
                f"Rank {part.rank} holds {plural(high - low, 'row')} along axis {part.axis}, but x is {have}: pass "
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
    torch.utils.checkpoint needs use_reentrant=False. The state_dict has other names than that of the model; save
    `restored().state_dict()`, which fits the model.

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
    >>> from gconv import GConv, Graph
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
    state.check_detached()
    made, problem = model, None
    try:
        if any(map(is_lazy, model.parameters())):
            raise ValueError("The model has parameters without values: run it once, or load its weights.")
        twin = copy.deepcopy(model)
        replacing = Replacing(twin, state)
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
