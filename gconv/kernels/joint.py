"""Joint attention (GATv2): the attention values of all entries.

    joint_attention   a_eh = softmax over the entries e = (i, j) of row i of <p_h, LeakyReLU(t_ih + s_jh)>

The compiled kernels, and Triton's on CUDA, store nothing per entry and channel: the backward pass, one pass over the
rows and one over the columns, recomputes t + s. For higher derivatives (create_graph=True), and without these kernels,
torch operators are used, which store t + s for each entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv.kernels import cuda, native_attention
from gconv.kernels.heads import SOFTMAX_BACK, row_softmax_torch, softmax_back_torch, supports
from gconv.kernels.registry import Kernel, Saved, Structure, fits, one_place
from gconv.kernels.sparse import CSR, rows_of


def joint_attention(csr: CSR, s: Tensor, t: Tensor, p: Tensor, slope: float) -> Tensor:
    """The values (*b, e, heads) in row order.

    Args:
        csr: the pattern, (m, n).
        s: (*b, n, heads, c) the features of each column.
        t: (*b, m, heads, c) the features of each row.
        p: (heads, c) the weights of LeakyReLU(t + s) in the logits.
        slope: of LeakyReLU for negative arguments.

    >>> csr = CSR.build(torch.tensor([0, 0]), torch.tensor([0, 1]), 1, 2)
    >>> joint_attention(csr, torch.tensor([[[-1.0]], [[-5.0]]]), torch.zeros(1, 1, 1), torch.ones(1, 1), 0.0).flatten()
    tensor([0.5000, 0.5000])
    """
    kind = torch.promote_types(s.dtype, torch.float32)  # float16 and bfloat16 are computed in float32
    if s.dtype == t.dtype == p.dtype == kind:
        return JOINT(csr.tensors, s, t, p, slope)
    return JOINT(csr.tensors, s.to(kind), t.to(kind), p.to(kind), slope).to(s.dtype)


def _sums(s: Tensor, t: Tensor, structure: Structure) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column of each entry, and t_i + s_j."""
    row, col = rows_of(structure[0], structure[1]), structure[1].long()
    return row, col, s.index_select(-3, col) + t.index_select(-3, row)


def _joint_torch(s: Tensor, t: Tensor, p: Tensor, slope: float, *structure: Tensor) -> Tensor:
    _, _, u = _sums(s, t, structure)
    return row_softmax_torch((F.leaky_relu(u, slope) * p).sum(-1), *structure)


def _gradients(
    s: Tensor, t: Tensor, p: Tensor, slope: float, dlogits: Tensor, structure: Structure
) -> tuple[Tensor, Tensor, Tensor]:
    """ds, dt and dp from the gradient of the logits."""
    row, col, u = _sums(s, t, structure)
    dlogits = dlogits.unsqueeze(-1)
    w = torch.where(u > 0, dlogits, slope * dlogits)
    ds, dt = (torch.zeros_like(x).index_add(-3, at, w) * p for x, at in ((s, col), (t, row)))
    return ds, dt, (w * u).sum_to_size(p.shape)


def _back_torch(s: Tensor, t: Tensor, p: Tensor, slope: float, a: Tensor, g: Tensor, *structure: Tensor) -> Tensor:
    ds, dt, dp = _gradients(s, t, p, slope, softmax_back_torch(a, g, *structure), structure)
    return torch.cat([ds.flatten(0, -3), dt.flatten(0, -3), dp.unsqueeze(0)])


def _check(s: Tensor, t: Tensor, p: Tensor, slope: float, *rest: Tensor) -> None:
    *made, crow, col, crow_t = rest[:-3]
    m, n = crow.shape[0] - 1, crow_t.shape[0] - 1  # len would specialise a dynamic size
    b = s.shape[:-3]
    if s.ndim < 3 or s.shape != (*b, n, *p.shape) or t.shape != (*b, m, *p.shape):
        raise ValueError(
            f"Joint attention takes features (*b, sites, heads, c) of columns and of rows, and p (heads, c), but the "
            f"pattern is {m} by {n}, the columns have {tuple(s.shape)}, the rows {tuple(t.shape)}, and p is "
            f"{tuple(p.shape)}."
        )
    for name, numbers in zip(("values", "gradients"), made, strict=False):
        fits(name, tuple(numbers.shape), (*b, col.shape[0], s.shape[-2]))
    one_place(crow, s, t, p, *made)


def _run(body: Callable[..., Tensor], s: Tensor, t: Tensor, p: Tensor, slope: float, *rest: Tensor) -> Tensor:
    """By the compiled kernels if they support the arguments, otherwise by `body`."""
    if not supports(rest[-6:], s.shape[-2], s, t, p, *rest[:-6]):
        return body(s, t, p, slope, *rest)
    return native_attention.joint(rest[-6:], s, t, p, slope, *rest[:-6])


def _joint_cpu(s: Tensor, t: Tensor, p: Tensor, slope: float, *structure: Tensor) -> Tensor:
    return _run(_joint_torch, s, t, p, slope, *structure)


def _back_cpu(s: Tensor, t: Tensor, p: Tensor, slope: float, a: Tensor, g: Tensor, *structure: Tensor) -> Tensor:
    return _run(_back_torch, s, t, p, slope, a, g, *structure)


def _joint_cuda(s: Tensor, t: Tensor, p: Tensor, slope: float, *structure: Tensor) -> Tensor:
    run = cuda.joint if cuda.fits(structure, s, t, p) else _joint_torch
    return run(s, t, p, slope, *structure)


def _back_cuda(s: Tensor, t: Tensor, p: Tensor, slope: float, a: Tensor, g: Tensor, *structure: Tensor) -> Tensor:
    run = cuda.joint_back if cuda.fits(structure, s, t, p, a, g) else _back_torch
    return run(s, t, p, slope, a, g, *structure)


def _joint_fake(s: Tensor, t: Tensor, p: Tensor, slope: float, *structure: Tensor) -> Tensor:
    return s.new_empty(*s.shape[:-3], structure[1].shape[0], s.shape[-2])


def _back_fake(s: Tensor, t: Tensor, *rest: Any) -> Tensor:
    return s.new_empty(s.flatten(0, -3).shape[0] + t.flatten(0, -3).shape[0] + 1, *s.shape[-2:])


def _keep(ctx: Any, arguments: Any, output: Tensor) -> Saved:
    *tensors, ctx.slope = arguments
    return [*tensors, output]


def _backward(ctx: Any, saved: Any, structure: Structure, g: Tensor) -> tuple[Tensor | None, ...]:
    s, t, p, a = saved
    if torch.is_grad_enabled():  # create_graph=True
        return *_gradients(s, t, p, ctx.slope, SOFTMAX_BACK(structure, a, g), structure), None
    stacked = JOINT_BACK(structure, s, t, p, ctx.slope, a, g)
    if s.ndim > 3:
        n = s.flatten(0, -3).shape[0]
        return stacked[:n].view(s.shape), stacked[n:-1].view(t.shape), stacked[-1].clone(), None
    n = s.shape[0]
    return stacked[:n], stacked[n:-1], stacked[-1].clone(), None


def _keep_nothing(ctx: Any, arguments: Any, output: Tensor) -> Saved:
    return []


def _back_backward(ctx: Any, saved: Any, structure: Structure, g: Tensor) -> tuple[Tensor | None, ...]:
    raise NotImplementedError("joint_attention_back is not differentiable; use create_graph=True.")


JOINT = Kernel(
    "joint_attention",
    "Tensor s, Tensor t, Tensor p, float slope",
    _joint_torch,
    _joint_cpu,
    _joint_fake,
    _keep,
    _backward,
    check=_check,
    cuda=_joint_cuda,
)
JOINT_BACK = Kernel(
    "joint_attention_back",
    "Tensor s, Tensor t, Tensor p, float slope, Tensor a, Tensor g",
    _back_torch,
    _back_cpu,
    _back_fake,
    _keep_nothing,
    _back_backward,
    check=_check,
    cuda=_back_cuda,
)
