"""Transforms of torch.func and forward-mode differentiation: who is under way, and what must not be kept of them.

Within a transform, torch wraps tensors, and under some even those that are made of plain ones. What is kept between
calls is therefore made apart from any transform; a number that is itself wrapped is never kept.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch
from torch import Tensor
from torch._C import _functorch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad


def transformed() -> bool:
    """Whether a transform of torch.func or forward-mode differentiation is under way: they know torch's operators."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def wrapped(*tensors: Tensor | None) -> bool:
    """Whether a transform or a tangent hangs on one of these, so that nothing made of them may be kept."""
    if torch.compiler.is_compiling() or not transformed():
        return False
    given = [t for t in tensors if t is not None]
    if any(_functorch.is_functorch_wrapped_tensor(t) for t in given):
        return True
    return forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in given)


def varies(t: Tensor | None) -> bool:
    """Whether t may differ from call to call, or what is made of it: it needs a gradient, or is wrapped."""
    return t is not None and (t.requires_grad or wrapped(t))


def readable(t: Tensor) -> bool:
    """Whether a program may look at the numbers of t: a compiler and vmap have none to show."""
    if torch.compiler.is_compiling():
        return False
    while _functorch.is_functorch_wrapped_tensor(t):
        if _functorch.is_batchedtensor(t):
            return False
        t = _functorch.get_unwrapped(t)
    return True


def derivatives(t: Tensor) -> int:
    """How many derivatives in t may be taken within the transforms under way; 2 or more if autograd watches, too."""
    count = 0
    while _functorch.is_functorch_wrapped_tensor(t):
        count += _functorch.is_gradtrackingtensor(t)
        t = _functorch.get_unwrapped(t)
    dual = forward_ad._current_level >= 0 and forward_ad.unpack_dual(t).tangent is not None
    return count + dual + 2 * t.requires_grad


def bare(t: Tensor) -> Tensor:
    """Whole numbers as they are: what differentiation has wrapped them in says nothing of them."""
    while _functorch.is_gradtrackingtensor(t):
        t = _functorch.get_unwrapped(t)
    return t


def apart(*sources: Tensor | None) -> AbstractContextManager[object]:
    """Leaves all transforms, unless one of the sources is wrapped itself."""
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active() or wrapped(*sources):
        return nullcontext()
    return temporarily_clear_interpreter_stack()


def lasting(*sources: Tensor | None) -> AbstractContextManager[object]:
    """Where what is kept between calls is made: it must serve training and plain calls too."""
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return torch.inference_mode(False)
    stack = ExitStack()
    stack.enter_context(torch.inference_mode(False))
    stack.enter_context(apart(*sources))
    return stack
