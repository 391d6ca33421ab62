"""Lowerings on images (b, c, *grid), or one image without b, with the memory format that torch's layers return.

torch's layers preserve the memory format of their input: contiguous images give contiguous outputs, and channels_last
gives channels_last. If torch's kernel can run the structure, the format is read off its result for two of the images;
otherwise torch's rule for the format of an input (`suggest_memory_format`) is used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gconv.basis import Basis
from gconv.call import Call
from gconv.kernels.transforms import is_jit_tracing, lasting
from gconv.lowering import native
from gconv.lowering.base import Lowering, Run

MAX_TAPS_PROBED = 1024  # with more taps, running torch's kernel costs far more than a copy to another memory format
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def on_images(option: Lowering, S: Basis, call: Call, grid: tuple[int, ...]) -> Run:
    """A lowering as a function of images like call.x; grid and memory format of the result are determined here."""
    run = _on_images(option, S, call, grid)
    traced = S.traced_grid(option is native.NATIVE) if is_jit_tracing() else None
    return run if traced is None else _of_one_size(run, traced)


def _of_one_size(run: Run, grid: tuple[int, ...]) -> Run:
    """`run` in a trace, where the size of the grid was read: the program raises an error for images of other sizes."""
    return lambda S, call: run(S, call.at(call.x.flatten(-len(grid)).unflatten(-1, grid)))


def _on_images(option: Lowering, S: Basis, call: Call, grid: tuple[int, ...]) -> Run:
    if option is native.NATIVE:  # torch's kernels, which accept an image without a batch axis
        return native.run_images
    x = call.x
    single = x.ndim == len(grid) + 1
    images = call.at(x.unsqueeze(0)) if single else call
    run = option.images or _by_signals(option.run, grid)
    if len(grid) > 1 and (call.kind != "eager" or (call.gradients[0] and len(images.x) == 1)):
        run = _with_gradient_like(run, native.suggests_last(images.x))
    if call.kind != "transformed":
        run = _with_format(run, _gives_channels_last(S, images), len(grid), S.linear)
    elif x.is_contiguous():  # of the memory formats, vmap supports this one only
        run = _contiguous(run)
    return _unbatched(run) if single else run


def _by_signals(run: Run, grid: tuple[int, ...]) -> Run:
    d = len(grid)

    def images(S: Basis, call: Call) -> Tensor:
        x = call.x.flatten(-d) if d > 1 else call.x
        return run(S, call.at(x.mT)).unflatten(-2, grid).movedim(-1, 1)

    return images


def _unbatched(run: Run) -> Run:
    def image(S: Basis, call: Call) -> Tensor:
        return run(S, call.at(call.x.unsqueeze(0))).squeeze(0)

    return image


def _contiguous(run: Run) -> Run:
    return lambda S, call: run(S, call).contiguous()


def _with_gradient_like(run: Run, last: bool) -> Run:
    """`run` with a gradient in the memory format of the images, whose numbers it reads in their order in memory.

    The backward passes of torch's batch_norm and instance_norm return wrong numbers on a CPU for one image whose
    gradient has other strides, such as those of a view of channels last (torch 2.13).
    """
    if last:
        return lambda S, call: run(S, call.at(_in_order(call.x.movedim(1, -1)).movedim(-1, 1)))
    return lambda S, call: run(S, call.at(_in_order(call.x)))


def _in_order(x: Tensor) -> Tensor:
    return x.flatten().reshape(x.shape)


def _with_format(run: Run, last: bool, d: int, linear: bool) -> Run:
    """`run` with its result in one of torch's two memory formats.

    The result of a maximum is always copied, because its backward pass reads the original, which the caller may modify.
    That of a single image is copied by compiled functions: they would return a view in which the axis of images has
    another stride, and torch's batch_norm (2.13, CPU) computes wrong gradients of such images.
    """

    def images(S: Basis, call: Call) -> Tensor:
        y = run(S, call)
        copied = not linear or (d > 1 and last and torch.compiler.is_dynamo_compiling() and y.shape[0] == 1)
        if not copied and y.stride() == format_strides(y.shape, last):
            return y
        if d == 1 and last:
            return y.unsqueeze(2).clone(memory_format=torch.channels_last).squeeze(2)
        return y.clone(memory_format=LAST[d] if last else torch.contiguous_format)

    return images


def format_strides(shape: Sequence[int], last: bool) -> tuple[int, ...]:
    """The strides of a new tensor (b, c, *grid) in torch's default format or in channels_last.

    >>> format_strides((2, 3, 4, 5), False), format_strides((2, 3, 4, 5), True)
    ((60, 20, 5, 1), (60, 1, 15, 3))
    """
    axes = [0, *range(2, len(shape)), 1] if last else range(len(shape))
    strides, step = [0] * len(shape), 1
    for axis in reversed(axes):
        strides[axis] = step
        step *= max(1, shape[axis])
    return tuple(strides)


def _gives_channels_last(S: Basis, call: Call) -> bool:
    """Whether torch's layer would return channels_last."""
    x = call.x
    kernel = native.NATIVE.images if native.refuses(S, call.mixing) is None else None
    long = call.W is not None and len(call.W) > MAX_TAPS_PROBED
    if kernel is None or long or x.numel() == 0 or torch.compiler.is_compiling():
        return native.suggests_last(x)
    with lasting((x, call.W)), torch.no_grad():
        like = kernel(S, Call(x[:2], call.mixing, call.W))
    stride = like.stride()
    return stride != format_strides(like.shape, False) and stride == format_strides(like.shape, True)
