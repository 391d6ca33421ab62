"""Networks on the blocks of `Graph.sample`: each layer on its own block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from gconv.arguments import checked, plural, shown
from gconv.domains import Bipartite
from gconv.module import GConv


@checked
def apply_blocks(net: nn.Sequential, x: Tensor, blocks: Sequence[Bipartite]) -> Tensor:
    """The output of a network at the seeds that its blocks were sampled for.

    Equation: h = x; for each module in turn h = layer(h, block), with the next block, where it is a layer on graphs,
    and h = module(h) where it is not.

    Meaning: if all neighbours were sampled, and the modules between the layers act on each row separately, the result
    is the network's output on the whole graph at the seeds. A network with its own forward calls `layer(x, block)`.

    Args:
        net: a Sequential, possibly nested, of `GConv` layers and modules that take one tensor.
        x: (*b, n_source, i) the features of the nodes `blocks[0].n_id`.
        blocks: the result of `Graph.sample` or `Graph.blocks_of`; one for each layer on graphs.

    Raises:
        TypeError, ValueError: if net is not a Sequential, or the number of blocks differs from the number of layers on
            graphs.

    >>> import torch
    >>> from gconv import Graph
    >>> from gconv.operators import gcn
    >>> path, x = Graph(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])), torch.eye(3)
    >>> net = nn.Sequential(GConv(gcn(3, 4)), nn.ReLU(), GConv(gcn(4, 2)))
    >>> blocks = path.sample([2], [-1, -1])
    >>> apply_blocks(net, x[blocks[0].n_id], blocks).shape
    torch.Size([1, 2])
    """
    if not is_chain(net):
        raise TypeError(f"apply_blocks takes an nn.Sequential{WITHOUT_OWN}, but it was given {shown(net)}.")
    modules = list(modules_of(net))
    layers = sum(on_graphs(module) for module in modules)
    if not all(isinstance(block, Bipartite) for block in blocks) or len(blocks) != layers:
        given = len(blocks) if all(isinstance(block, Bipartite) for block in blocks) else shown(blocks)
        raise ValueError(
            f"The network has {plural(layers, 'layer')} on graphs, so it takes {plural(layers, 'block')}, not {given}."
        )
    rest = iter(blocks)
    for module in modules:
        x = module(x, next(rest)) if on_graphs(module) else module(x)
    return x


WITHOUT_OWN = " without hooks or a forward of its own"


def is_chain(module: nn.Module) -> bool:
    """Whether calling a module is the same as calling its modules in order."""
    if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
        return False
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return not any(hooks) and "forward" not in vars(module)


def modules_of(net: nn.Sequential) -> Iterator[nn.Module]:
    """The modules of a Sequential in order, nested ones flattened if calling them does nothing else."""
    for module in net:
        if is_chain(module):
            yield from modules_of(module)  # type: ignore[arg-type]
        else:
            yield module


def on_graphs(module: nn.Module) -> bool:
    """Whether a module is a layer that takes a graph."""
    return isinstance(module, GConv) and module.spec.structure.domain != "grid"
