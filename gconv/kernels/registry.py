"""Kernel: a torch operator, with a fast path for eager calls.

Operators registered with torch.library work with torch.compile(fullgraph=True), functorch and opcheck. But calling one
through torch's dispatcher from Python costs more than the product itself on small graphs. Eager calls with plain
tensors therefore call the implementation directly, and autograd only if a gradient is needed. Both paths use the same
implementation and derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from gconv.errors import Differentiable, explained
from gconv.kernels.transforms import composes, is_plain_eager

STRUCTURE = "Tensor crow, Tensor col, Tensor crow_t, Tensor col_t, Tensor to_t, Tensor from_t"
library = torch.library.Library("gconv", "DEF")


Saved = Sequence[Tensor | None]
Output = Tensor | tuple[Tensor, ...]
Structure = tuple[Tensor, ...]  # crow, col, crow_t, col_t, to_t, from_t


class _Recorded(Differentiable):
    """A kernel's call as an autograd function; the pattern, the kernel and its body are the last arguments."""

    @staticmethod
    def what(ctx: Any) -> str:
        name: str = ctx.kernel.name
        return name

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        *arguments, structure, kernel, body = inputs
        output = body(*arguments, *structure)
        output = owned(output) if isinstance(output, Tensor) else (owned(output[0]), *output[1:])
        ctx.kernel, ctx.structure = kernel, structure
        ctx.save_for_backward(*kernel.keep(ctx, arguments, output))  # the tensor that is returned: it has a derivative
        return _result(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gradients = tuple(_stored(g) for g in gradients)
        return (*ctx.kernel.backward(ctx, ctx.saved_tensors, ctx.structure, *gradients), None, None, None)


def _stored(gradient: Any) -> Any:
    """The gradient, or zeros in memory for autograd's ZeroTensor, which has no storage that a kernel could read."""
    if isinstance(gradient, Tensor) and gradient._is_zerotensor():
        return torch.zeros(gradient.shape, dtype=gradient.dtype, device=gradient.device)
    return gradient


def _signed(argument: Any) -> Any:
    """The argument, or a copy if its sign is not in memory, as of the imaginary part of a conjugate."""
    return argument.resolve_neg() if isinstance(argument, Tensor) else argument


def _result(output: Output) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def owned(result: Tensor) -> Tensor:
    """A result of an autograd function, not as a view: autograd forbids in-place operations on returned views."""
    return result.detach() if result._is_view() else result


class Kernel:
    """An operator `gconv::name`, whose last six tensor arguments are a pattern and its transpose.

    Args:
        name: of the operator.
        arguments: its schema, without the pattern.
        anywhere: the implementation in pure torch.
        cpu: the implementation for the CPU.
        cuda: the implementation for CUDA; default: `anywhere`.
        fake: returns an empty output with the right shape and dtype.
        keep: (ctx, arguments, output) -> the tensors to save for backward; other data is stored on ctx.
        backward: (ctx, saved, pattern, gradient) -> the gradient of each argument, by kernels.
        composed: an implementation by out-of-place torch operators, which torch.func and forward-mode differentiation
            can transform; default: `anywhere`.
        outputs: number of tensors that the implementations return: the result, and others for the backward pass only.
        check: called with the same arguments before each implementation: raises ValueError if shapes, dtypes or devices
            do not fit. Without it compiled code would read out of bounds, and torch operators would broadcast.
    """

    def __init__(
        self,
        name: str,
        arguments: str,
        anywhere: Callable[..., Output],
        cpu: Callable[..., Output],
        fake: Callable[..., Output],
        keep: Callable[[Any, Any, Any], Saved],
        backward: Callable[..., tuple[Tensor | None, ...]],
        composed: Callable[..., Output] | None = None,
        outputs: int = 1,
        check: Callable[..., None] | None = None,
        cuda: Callable[..., Output] | None = None,
    ) -> None:
        self.name = name
        composed, cuda = composed or anywhere, cuda or anywhere
        if check is not None:
            anywhere, cpu, cuda, composed = (_checked(check, body) for body in (anywhere, cpu, cuda, composed))
        self.anywhere, self.cpu, self.cuda, self.composed = anywhere, cpu, cuda, composed
        self.keep, self.backward = keep, backward
        returns = "Tensor" if outputs == 1 else f"({', '.join(['Tensor'] * outputs)})"
        library.define(f"{name}({arguments}, {STRUCTURE}) -> {returns}")
        library.impl(name, anywhere, "CompositeExplicitAutograd")
        library.impl(name, _checked(lambda *given: check_pattern(*given[-6:]), cpu), "CPU")  # those of a CSR are right
        library.impl(name, cuda, "CUDA")
        torch.library.register_fake(f"gconv::{name}", fake, lib=library)

        def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.save_for_backward(*keep(ctx, inputs[:-6], output), *inputs[-6:])
            if outputs > 1:
                ctx.mark_non_differentiable(*output[1:])

        def derivative(ctx: Any, gradient: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
            saved = ctx.saved_tensors
            return (*backward(ctx, saved[:-6], saved[-6:], gradient), *[None] * 6)

        torch.library.register_autograd(f"gconv::{name}", explained(derivative, name), setup_context=setup, lib=library)
        self.operator = getattr(torch.ops.gconv, name)

    def __call__(self, structure: Structure, *arguments: Any) -> Tensor:
        plain, recorded, negated, eager = True, False, False, is_plain_eager()
        for argument in arguments:
            kind = type(argument)
            if kind is Tensor or kind is Parameter:
                recorded = recorded or argument.requires_grad
                negated = negated or (eager and argument.is_neg())
            elif isinstance(argument, Tensor):  # a subclass may override the operator
                plain = False
        if plain and eager:
            body = self.body(structure)
            if negated:  # as torch's dispatcher does, which this call bypasses
                arguments = tuple(_signed(argument) for argument in arguments)
            if body is None:
                return _result(self.composed(*arguments, *structure))
            if recorded and torch.is_grad_enabled():
                result: Tensor = _Recorded.apply(*arguments, structure, self, body)
                return result
            return _result(body(*arguments, *structure))
        if composes():
            return _result(self.composed(*arguments, *structure))
        return _result(self.operator(*arguments, *structure))

    def body(self, structure: Structure) -> Callable[..., Output] | None:
        """The implementation for the device; None if there is only the composed one."""
        if structure[0].is_cpu:
            return self.cpu
        return self.cuda if structure[0].is_cuda else None


def _checked(check: Callable[..., None], body: Callable[..., Output]) -> Callable[..., Output]:
    def checked(*arguments: Any) -> Output:
        check(*arguments)
        return body(*arguments)

    return checked


def check_pattern(*pattern: Tensor) -> None:
    """Check crow, col, crow_t, col_t, to_t and from_t, as far as this does not read them: C code gets their addresses.

    Raises:
        ValueError: unless they are contiguous vectors of one type, int32 or int64, whose lengths fit each other.
    """
    crow, col, crow_t, *others = pattern
    kind, entries = crow.dtype, col.shape
    fit = kind in (torch.int32, torch.int64) and crow.ndim == crow_t.ndim == len(entries) == 1
    fit = fit and len(crow) > 0 < len(crow_t) and all(t.shape == entries for t in others)
    if not (fit and all(t.dtype == kind and t.is_contiguous() for t in pattern)):
        given = ", ".join(f"{tuple(t.shape)} of {t.dtype}, strides {t.stride()}" for t in pattern)
        raise ValueError(
            "A sparse pattern consists of crow, col, crow_t, col_t, to_t and from_t, contiguous vectors of one type, "
            f"int32 or int64, but they are {given}; CSR.build makes them."
        )


def fits(what: str, have: object, want: object) -> None:
    """Raises: ValueError if sizes differ.

    >>> fits("sites in", 3, 3)
    """
    if have != want:
        raise ValueError(f"The sparse pattern needs {want} {what}, but {have} were given.")


def one_place(crow: Tensor, *tensors: Tensor | None) -> None:
    """Raises: ValueError if a tensor is not on the device of the pattern."""
    for t in tensors:
        if t is not None and t.device != crow.device:
            raise ValueError(f"The sparse pattern is on {crow.device}, but a tensor {tuple(t.shape)} is on {t.device}.")
