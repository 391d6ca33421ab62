"""The maximum over the entries of each row, y_i = max over the entries (i, j) of v_e x_j; 0 for a row without entries.

The gradient is divided equally among the entries that attain the maximum. For a maximum of exactly 0 one share is
dropped, as in torch's scatter_reduce "amax" (which PyG uses), where the initial zero counts as an entry.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gconv.kernels import cuda, native
from gconv.kernels.memory import empty
from gconv.kernels.registry import Kernel, Saved, Structure, fits, one_place
from gconv.kernels.sparse import CSR, check_numbers, rows_of


def segment_max(csr: CSR, values: Tensor, x: Tensor) -> Tensor:
    """y[..., i, :] = max over the entries (i, j) of values x[..., j, :]; 0 for a row without entries.

    Args:
        csr: the pattern, (m, n).
        values: (e,) in row order.
        x: (*b, n, c).

    >>> csr = CSR.build(torch.tensor([0, 0]), torch.tensor([0, 1]), 2, 2)
    >>> segment_max(csr, torch.ones(2), torch.tensor([[1.0], [3.0]])).flatten()
    tensor([3., 0.])
    """
    if x.dtype in (torch.float16, torch.bfloat16):  # the numbers of ties, and sums of gradients, need float32
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        return SEGMENT_MAX(csr.tensors, wide, x.float()).to(x.dtype)
    return SEGMENT_MAX(csr.tensors, values, x)


def _messages(values: Tensor, x: Tensor, structure: Structure) -> tuple[Tensor, Tensor]:
    """v_e x_j (*b, e, c), and the row of each entry."""
    check_numbers(values, x)
    messages = x.index_select(-2, structure[1].long()) * values.unsqueeze(-1)
    return messages, rows_of(structure[0], structure[1])


def _max_torch(values: Tensor, x: Tensor, *structure: Tensor) -> Tensor:
    messages, rows = _messages(values, x, structure)
    index = rows.unsqueeze(-1).expand(messages.shape)
    shape = (*x.shape[:-2], structure[0].shape[0] - 1, x.shape[-1])
    return messages.new_zeros(shape).scatter_reduce(-2, index, messages, "amax", include_self=False)


def _max_composed(values: Tensor, x: Tensor, *structure: Tensor) -> Tensor:
    """The maximum plus the mean of m - m.detach() over the messages m that attain it: derivatives of any order."""
    messages, rows = _messages(values, x, structure)
    top = _max_torch(values.detach(), x.detach(), *structure)
    won = messages.detach() == top.index_select(-2, rows)
    change = torch.where(won & messages.detach().isfinite(), messages - messages.detach(), 0)
    total = torch.zeros_like(top).index_add(-2, rows, change)
    ties = (top == 0).to(top.dtype).index_add(-2, rows, won.to(top.dtype))
    return (top + total / ties.clamp(min=1)).to(x.dtype)


def _shared(values: Tensor, x: Tensor, y: Tensor, dy: Tensor, structure: Structure, factor: Tensor) -> Tensor:
    """The gradient that each message receives, times its factor, (*b, e, c); differentiable in dy.

    It is 0 for messages that do not attain the maximum, also where the factor or the gradient is NaN.
    """
    messages, rows = _messages(values, x, structure)
    won = messages == y.index_select(-2, rows)
    ties = (y == 0).to(y.dtype).index_add(-2, rows, won.to(y.dtype)).clamp(min=1)
    return torch.where(won, (dy / ties).index_select(-2, rows) * factor, 0)


def _dx_torch(values: Tensor, x: Tensor, y: Tensor, dy: Tensor, *structure: Tensor) -> Tensor:
    part = _shared(values, x, y, dy, structure, values.unsqueeze(-1))
    return torch.zeros_like(x).index_add(-2, structure[1].long(), part.to(x.dtype))


def _dvalues_torch(values: Tensor, x: Tensor, y: Tensor, dy: Tensor, *structure: Tensor) -> Tensor:
    part = _shared(values, x, y, dy, structure, x.index_select(-2, structure[1].long()))
    return part.sum((*range(part.ndim - 2), -1)).to(values.dtype)


def _check(values: Tensor, x: Tensor, *rest: Any) -> None:
    *made, crow, col, crow_t = rest[:-3]
    fits("values", tuple(values.shape), (col.shape[0],))
    if x.ndim < 2:
        raise ValueError(f"segment_max takes signals (*b, sites, channels), not {tuple(x.shape)}.")
    fits("sites in", x.shape[-2], crow_t.shape[0] - 1)
    for t in made:
        fits("sizes of y and dy", tuple(t.shape), (*x.shape[:-2], crow.shape[0] - 1, x.shape[-1]))
    one_place(crow, values, x, *made)


def _supports(structure: Structure, *tensors: Tensor) -> bool:
    x = tensors[0]
    one_dtype = x.dtype in (torch.float32, torch.float64) and all(t.dtype == x.dtype for t in tensors)
    return one_dtype and structure[0].dtype == torch.int32 and native.supports(x)


def _max_cpu(values: Tensor, x: Tensor, *structure: Tensor) -> Tensor:
    if not _supports(structure, values, x):
        return _max_torch(values, x, *structure)
    crow, col = structure[:2]
    y = empty(x, (*x.shape[:-2], crow.shape[0] - 1, x.shape[-1]))
    return native.maxima(native.LARGEST, crow, col, None, values, x, y)


def _max_cuda(values: Tensor, x: Tensor, *structure: Tensor) -> Tensor:
    if cuda.fits(structure, x, values, axes=2):
        return cuda.segment_max(values, x, *structure[:2])
    return _max_torch(values, x, *structure)


def _share(values: Tensor, x: Tensor, y: Tensor, dy: Tensor, structure: Structure) -> Tensor:
    """dy divided by the number of ties."""
    ties = native.maxima(native.TIES, structure[0], structure[1], None, values, x, empty(y, y.shape), y)
    return dy / ties.clamp_(min=1)


def _dx_cpu(values: Tensor, x: Tensor, y: Tensor, dy: Tensor, *structure: Tensor) -> Tensor:
    if not _supports(structure, values, x, y, dy):
        return _dx_torch(values, x, y, dy, *structure)
    _, _, crow, col, order, _ = structure
    dx = empty(x, x.shape)
    return native.maxima(native.SHARES, crow, col, order, values, x, dx, y, _share(values, x, y, dy, structure))


def _dvalues_cpu(values: Tensor, x: Tensor, y: Tensor, dy: Tensor, *structure: Tensor) -> Tensor:
    if not _supports(structure, values, x, y, dy):
        return _dvalues_torch(values, x, y, dy, *structure)
    crow, col = structure[:2]
    share = _share(values, x, y, dy, structure)
    return native.maxima(native.WEIGHTS, crow, col, None, values, x, torch.empty_like(values), y, share)


def _max_fake(values: Tensor, x: Tensor, crow: Tensor, *rest: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-2], crow.shape[0] - 1, x.shape[-1]))


def _max_keep(ctx: Any, arguments: Any, output: Tensor) -> Saved:
    return [*arguments, output]


def _max_backward(ctx: Any, saved: Any, structure: Structure, dy: Tensor) -> tuple[Tensor | None, ...]:
    values, x, y = saved
    twice = torch.is_grad_enabled() and dy.requires_grad  # by torch's operators, which are differentiable
    of_values, of_x = ctx.needs_input_grad[:2]
    given, dvalues, dx = (values, x, y, dy), None, None
    if of_values:
        dvalues = _dvalues_torch(*given, *structure) if twice else MAX_DVALUES(structure, *given)
    if of_x:
        dx = _dx_torch(*given, *structure) if twice else MAX_DX(structure, *given)
    return dvalues, dx


def _nothing_kept(ctx: Any, arguments: Any, output: Tensor) -> Saved:
    return []


def _once(ctx: Any, saved: Any, structure: Structure, g: Tensor) -> tuple[Tensor | None, ...]:
    raise NotImplementedError("The second derivative of a maximum is not implemented in compiled code; run it eagerly.")


MAX_DX = Kernel(
    "max_dx",
    "Tensor values, Tensor x, Tensor y, Tensor dy",
    _dx_torch,
    _dx_cpu,
    lambda values, x, *rest: torch.empty_like(x, memory_format=torch.contiguous_format),
    _nothing_kept,
    _once,
    check=_check,
)
MAX_DVALUES = Kernel(
    "max_dvalues",
    "Tensor values, Tensor x, Tensor y, Tensor dy",
    _dvalues_torch,
    _dvalues_cpu,
    lambda values, *rest: torch.empty_like(values, memory_format=torch.contiguous_format),
    _nothing_kept,
    _once,
    check=_check,
)
SEGMENT_MAX = Kernel(
    "segment_max",
    "Tensor values, Tensor x",
    _max_torch,
    _max_cpu,
    _max_fake,
    _max_keep,
    _max_backward,
    _max_composed,
    check=_check,
    cuda=_max_cuda,
)
