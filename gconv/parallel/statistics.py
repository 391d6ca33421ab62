"""Batch normalisation with statistics over all processes, on any device and backend of torch.distributed."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from gconv.arguments import shown
from gconv.domains import Graph
from gconv.parallel.processes import Processes, Total
from gconv.parallel.state import State

BatchNorm = nn.modules.batchnorm._BatchNorm


def normalised(norm: Any, x: Tensor, processes: Processes) -> Tensor:
    """norm(x) for a layer in training, or without running statistics; x (b, c, ...) is the part of this process.

    In float32 for shorter types, as in torch.
    """
    dtype = x.dtype
    x = x.to(torch.promote_types(dtype, torch.float32))
    axes = [a for a in range(x.ndim) if a != (1 if x.ndim > 1 else 0)]
    own = x.numel() // x.shape[1] if x.shape[1] else 0
    count = int(processes.total(torch.tensor([own], device=x.device)))
    if count < 2:
        raise ValueError(f"Batch statistics need more than one value per channel, but there are {count}.")
    shape = [1, -1] + [1] * (x.ndim - 2)
    mean = Total.apply(x.sum(axes), processes) / count
    centred = x - mean.view(shape)
    var = Total.apply((centred * centred).sum(axes), processes) / count
    if norm.training and norm.track_running_stats:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
            norm.running_var.lerp_((var * (count / (count - 1))).to(norm.running_var.dtype), share)
    y = centred * (var + norm.eps).rsqrt().view(shape)
    y = y if norm.weight is None else y * norm.weight.view(shape)
    return (y if norm.bias is None else y + norm.bias.view(shape)).to(dtype)


def why_refused(norm: BatchNorm) -> str | None:
    """The reason why `normalised` does not compute what the layer does; None if it does."""
    if any(map(is_lazy, norm.parameters())):
        return "it is not initialised: call it once"
    if parametrize.is_parametrized(norm):
        return "its weight or bias is parametrized"
    if "forward" in vars(norm) or type(norm).forward not in (BatchNorm.forward, nn.SyncBatchNorm.forward):
        return "it has a forward of its own"
    return None


class Norm(nn.Module):
    """A batch normalisation layer of a distributed model."""

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


class SyncBatchNorm(BatchNorm):
    """A batch normalisation layer made by `sync_batch_norm`."""

    processes: Processes

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"Batch normalisation takes (b, c, ...), not {tuple(input.shape)}.")

    def forward(self, input: Tensor) -> Tensor:
        """(b, c, ...), the part of this process -> the same shape."""
        if not self.training and self.running_mean is not None:
            y: Tensor = super().forward(input)
            return y
        self._check_input_dim(input)
        return normalised(self, input, self.processes)


def sync_batch_norm(module: nn.Module, group: Any = None) -> nn.Module:
    """A copy of a module whose batch normalisation computes mean and variance over the batches of all processes.

    Equation: y = (x - mean) / sqrt(var + eps) * weight + bias, mean and var over the batches of all processes together.

    Meaning: for data-parallel training. With the batch divided among processes, the network then computes what one
    process computes with the whole batch, up to rounding, and gradients pass through the shared statistics.
    torch.nn.SyncBatchNorm does the same, but on GPUs only; a model returned by `distribute` needs neither.

    Names of parameters and buffers do not change. All processes must make the same forward and backward calls.

    Args:
        module: a network, or a batch normalisation layer.
        group: of torch.distributed; None for all processes.

    Raises:
        RuntimeError: if torch.distributed is not initialised.
        TypeError: if module is not a module, or a batch normalisation layer has a forward of its own.
        ValueError: in the forward pass, if all processes together have fewer than two values per channel.

    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.randn(2, 3, 8, 8)
    >>> torch.allclose(sync_batch_norm(net)(x), net(x), atol=1e-5)
    True
    >>> dist.destroy_process_group()
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"sync_batch_norm takes a module, not {shown(module)}.")
    for name, norm in module.named_modules():
        why = why_refused(norm) if isinstance(norm, BatchNorm) else None
        if why is not None:
            place = f" ({name})" if name else ""
            raise TypeError(f"{type(norm).__name__}{place} cannot be synchronised: {why}.")
    made, processes = copy.deepcopy(module), Processes(group)
    for norm in made.modules():
        if isinstance(norm, BatchNorm):
            norm.__class__ = SyncBatchNorm  # keeps parameters, buffers, hooks and the places where the layer is used
            norm.processes = processes  # type: ignore[assignment]
    return made
