"""How torch operators are linearised in a recorded program: linear ones, slopes of activations, selections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# each operator as a polynomial in its arguments, given by position; a list of tensors counts as a sum. It is linear if
# at most one factor of each term depends on the input
SUMS = {
    "add": "0 + 1", "sub": "0 + 1", "rsub": "0 + 1", "mul": "0 * 1", "div": "0", "where": "1 + 2", "fill": "0 + 1",
    "lerp": "0 + 1", "complex": "0 + 1", "masked_fill": "0 + 2", "masked_scatter": "0 + 2",
    "constant_pad_nd": "0 + 2", "index_put": "0 + 2", "_unsafe_index_put": "0 + 2", "index_add": "0 + 3",
    "index_copy": "0 + 3", "index_fill": "0 + 3", "scatter": "0 + 3", "scatter_add": "0 + 3", "scatter_reduce": "0 + 3",
    "slice_scatter": "0 + 1", "select_scatter": "0 + 1", "diagonal_scatter": "0 + 1",
    "mm": "0 * 1", "bmm": "0 * 1", "mv": "0 * 1", "dot": "0 * 1", "matmul": "0 * 1", "linear": "2 + 0 * 1",
    "addmm": "0 + 1 * 2", "addbmm": "0 + 1 * 2", "baddbmm": "0 + 1 * 2", "addmv": "0 + 1 * 2", "addr": "0 + 1 * 2",
    "addcmul": "0 + 1 * 2", "addcdiv": "0 + 1", "_trilinear": "0 * 1 * 2", "convolution": "2 + 0 * 1",
    "grid_sampler_2d": "0", "grid_sampler_3d": "0",
    **dict.fromkeys((
        "view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "expand", "squeeze",
        "unsqueeze", "slice", "select", "split", "split_with_sizes", "unsafe_split", "unbind", "chunk", "clone",
        "alias", "detach", "lift_fresh", "_to_copy", "diagonal", "as_strided", "unfold", "flip", "roll", "rot90",
        "repeat", "tril", "triu", "diag_embed", "sum", "mean", "cumsum", "neg", "gather", "index", "_unsafe_index",
        "index_select", "take", "masked_select", "im2col", "col2im", "pixel_shuffle", "pixel_unshuffle",
        "channel_shuffle", "native_channel_shuffle", "trace", "view_as_real", "view_as_complex", "_conj",
        "conj_physical", "real", "imag", "resolve_conj", "cat", "reflection_pad1d", "reflection_pad2d",
        "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d", "avg_pool2d", "avg_pool3d",
        "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "max_unpool2d", "max_unpool3d", "_fft_r2c", "_fft_c2r",
        "_fft_c2c", "stack", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
        "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d",
        "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d",
        "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
    ), "0"),
}  # fmt: skip
CONSTANT = {
    "sign", "sgn", "floor", "ceil", "round", "trunc", "floor_divide", "heaviside", "zeros_like", "ones_like",
    "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided",
}  # fmt: skip


def _between(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    """The derivative of clamp, by autograd: at the bounds it is 1 before torch 2.14, then 0, or 1/2 for tensors."""
    with torch.inference_mode(False), torch.enable_grad():
        bounds = [t for t in (low, high) if isinstance(t, Tensor)]
        leaf = torch.broadcast_tensors(x.detach(), *bounds)[0].clone().requires_grad_()
        y = torch.clamp(leaf, low, high)
        return torch.autograd.grad(y, leaf, torch.ones_like(y))[0]


# the derivative of each activation in its first argument; at kinks as in autograd
SLOPES: dict[str, Callable[..., Tensor]] = {
    "relu": lambda x: x > 0,
    "threshold": lambda x, t, value: x > t,
    "hardtanh": lambda x, low=-1, high=1: (x > low) & (x < high),
    "clamp": _between,
    "clamp_min": lambda x, low: _between(x, low),
    "clamp_max": lambda x, high: _between(x, None, high),
    "leaky_relu": lambda x, slope=0.01: torch.ones_like(x).masked_fill(x <= 0, slope),
    "_prelu_kernel": lambda x, weight: torch.where(x > 0, torch.ones_like(x), weight),
    "hardsigmoid": lambda x: ((x > -3) & (x < 3)).to(x.dtype) / 6,
    "hardshrink": lambda x, edge=0.5: (x < -edge) | (x > edge),
    "softshrink": lambda x, edge=0.5: (x < -edge) | (x > edge),
    "abs": torch.sgn,
}
SLOPES["rrelu_with_noise"] = SLOPES["rrelu_with_noise_functional"] = lambda x, noise, low=1 / 8, high=1 / 3, *_: SLOPES[
    "leaky_relu"
](x, (low + high) / 2)
RESHAPES = {
    "squeeze",
    "unsqueeze",
    "t",
    "transpose",
    "swapaxes",
    "swapdims",
    "as_strided",
}  # in-place operators that change the shape only
POOLS = {"max_pool2d_with_indices": 2, "max_pool3d_with_indices": 3, "adaptive_max_pool2d": 2, "adaptive_max_pool3d": 3}
PICKS = {"max": 1, "min": 1, "median": 1, "nanmedian": 1, "mode": 1, "sort": 1, "cummax": 1, "cummin": 1, "topk": 2,
         "kthvalue": 2}  # fmt: skip
EXTREMES = {"max", "min", "amax", "amin", "median"}
NORMS = {"native_batch_norm": (5, 7), "cudnn_batch_norm": (5, 7), "miopen_batch_norm": (5, 7),
         "_native_batch_norm_legit": (5, 7), "_native_batch_norm_legit_functional": (5, 7),
         "_native_batch_norm_legit_no_training": (None, 6), "_batch_norm_no_update": (None, 6)}  # fmt: skip


# -- recorded steps that are not torch operators -----------------------------------------------------------------------


def cast_to(v: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The result of `copy_` into a tensor of this shape and dtype."""
    return v.to(dtype).expand(shape)


def put(flat: Tensor, v: Tensor, *geometry: Any) -> Tensor:
    """A flat storage after writing a strided tensor; torch's as_strided_scatter has a wrong derivative."""
    return flat.index_copy(0, _addresses(flat, *geometry), v.flatten())


def take(flat: Tensor, *geometry: Any) -> Tensor:
    """A strided tensor read from a flat storage."""
    return flat.index_select(0, _addresses(flat, *geometry)).view(geometry[0])


def _addresses(flat: Tensor, shape: torch.Size, stride: tuple[int, ...], offset: int) -> Tensor:
    return torch.arange(len(flat), device=flat.device).as_strided(shape, stride, offset).flatten()


def pick_window(v: Tensor, index: Tensor, axes: int) -> Tensor:
    """The entries at these flat indices of the last `axes` axes."""
    return v.flatten(-axes).gather(-1, index.flatten(-axes)).view(index.shape)


def pick(v: Tensor, dim: int, index: Tensor) -> Tensor:
    """The entries at these indices along one axis, which `index` may lack."""
    return v.gather(dim, index) if index.ndim == v.ndim else v.gather(dim, index.unsqueeze(dim)).squeeze(dim)


def weighted_sum(v: Tensor, share: Tensor, dims: list[int], keep: bool) -> Tensor:
    """The sum weighted by `share`: the mean over the entries that attain the extremum."""
    return (v * share).sum(dims, keepdim=keep)


def blend(a: Any, b: Any, share: Tensor) -> Tensor:
    """a share + b (1 - share): the larger (or smaller) of two, and the mean where they are equal."""
    return a * share + b * (1 - share)


def scatter_selected(v: Any, own: Tensor, dim: int, index: Tensor, w: Any, hit: Tensor) -> Tensor:
    """A scatter-reduction restricted to the entries that attain the extremum, with their weights."""
    return (v * own).scatter_add(dim, index, w * hit)
