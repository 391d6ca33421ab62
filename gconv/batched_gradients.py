"""Backward passes for batches of gradients, as in `torch.autograd.grad(..., is_grads_batched=True)`.

torch passes such a batch as one tensor whose first axis is hidden. Compiled kernels cannot read it, so the backward
pass runs for each gradient. The names of torch used here are private; without them batches are not recognised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch

_PRESENT = all(
    hasattr(owner, name)
    for owner, name in (
        (_functorch, "is_legacy_batchedtensor"),
        (torch, "_add_batch_dim"),
        (torch, "_remove_batch_dim"),
        (torch._C, "_vmapmode_increment_nesting"),
        (torch._C, "_vmapmode_decrement_nesting"),
    )
)
is_batched: Callable[[Tensor], bool] = _functorch.is_legacy_batchedtensor if _PRESENT else lambda t: False
"""Whether a tensor is a batch of gradients."""


def one_by_one(backward: Callable[..., Any], ctx: Any, gradients: tuple[Any, ...]) -> Any:
    """Run a backward pass (ctx, *gradients) for each element of the batches among the gradients; batch the results."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    batches = {
        place: torch._remove_batch_dim(g, level, 1, 0)
        for place, g in enumerate(gradients)
        if isinstance(g, Tensor) and is_batched(g)
    }
    found = []
    for element in range(len(next(iter(batches.values())))):
        picked = {place: batch[element] for place, batch in batches.items()}
        result = backward(ctx, *(picked.get(place, g) for place, g in enumerate(gradients)))
        found.append(result if isinstance(result, tuple) else (result,))
    return tuple(
        None if parts[0] is None else torch._add_batch_dim(torch.stack(parts), 0, level)
        for parts in zip(*found, strict=True)
    )
