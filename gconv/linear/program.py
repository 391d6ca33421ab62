"""A linear map given by the sequence of torch operators that compute it, instead of by a structure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gconv.arguments import shown
from gconv.basis import Pattern, Taps
from gconv.linear.base import Map
from gconv.linear.member import LinearMap
from gconv.mixing import Dense


@dataclass(frozen=True)
class Slot:
    """A reference to a value of a program; number 0 is the input."""

    number: int


def substitute(value: Any, replace: Callable[[Any], Any]) -> Any:
    """An argument of an operator with its leaves replaced, also within lists and tuples."""
    if type(value) in (list, tuple):
        return type(value)(substitute(part, replace) for part in value)
    return replace(value)


@dataclass(frozen=True, eq=False)
class Step:
    """A call of an operator that is linear in the slots among its arguments.

    Args:
        function, args, kwargs: the call, with a Slot for every argument that depends on the input.
        outs: the slot of each result, None for a result that is not needed.
        last: slots that are not read by later steps.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outs: tuple[int | None, ...]
    last: tuple[int, ...] = ()

    def reads(self) -> set[int]:
        found: set[int] = set()
        substitute([*self.args, *self.kwargs.values()], lambda v: found.add(v.number) if isinstance(v, Slot) else None)
        return found


@dataclass(frozen=True, eq=False)
class Program:
    """A linear function as a sequence of steps.

    Args:
        steps: in the order of execution.
        out: the slot of the result; None if the function is zero.
        shapes: of the result and of the input.
        dtype, device: of both.
    """

    steps: tuple[Step, ...]
    out: int | None
    shapes: tuple[torch.Size, torch.Size]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(
        cls,
        steps: list[Step],
        out: int | None,
        shapes: tuple[torch.Size, torch.Size],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Program:
        """A program without unused steps; every slot is freed after the last step that reads it."""
        needed, kept = {out}, list[Step]()
        for step in reversed(steps):
            if needed.isdisjoint(step.outs):
                continue
            reads = step.reads()
            outs = tuple(slot if slot in needed else None for slot in step.outs)
            kept.append(Step(step.function, step.args, step.kwargs, outs, tuple(reads - needed)))
            needed |= reads
        return cls(tuple(reversed(kept)), out, shapes, dtype, device)

    def run(self, v: Tensor) -> Tensor:
        """The function at v."""
        if self.out is None:
            return v.new_zeros(self.shapes[0])
        slots = {0: v}

        def filled(value: Any) -> Any:
            return slots[value.number] if isinstance(value, Slot) else value

        for step in self.steps:
            kwargs = {key: substitute(value, filled) for key, value in step.kwargs.items()}
            made = step.function(*substitute(step.args, filled), **kwargs)
            for slot, value in zip(step.outs, made if isinstance(made, list | tuple) else (made,), strict=True):
                if slot is not None:
                    slots[slot] = value
            for slot in step.last:
                del slots[slot]
        return slots[self.out].to(self.dtype)

    def transpose(self, w: Tensor) -> Tensor:
        """The adjoint at w, by autograd of a run at zero; since the steps are linear, the point does not matter."""
        with torch.inference_mode(False), torch.enable_grad():
            zero = torch.zeros(self.shapes[1], dtype=self.dtype, device=self.device, requires_grad=True)
            y = self.run(zero)
            if not y.requires_grad:
                return torch.zeros_like(zero)
            (found,) = torch.autograd.grad(y, zero, w.clone(), create_graph=w.requires_grad)
        return found

    def to(self, dtype: torch.dtype) -> Program:
        """The same program in another floating point dtype."""

        def convert(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(dtype) if value.is_floating_point() else value
            return dtype if isinstance(value, torch.dtype) and value.is_floating_point else value

        steps = tuple(
            replace(
                step,
                args=substitute(step.args, convert),
                kwargs={k: substitute(v, convert) for k, v in step.kwargs.items()},
            )
            for step in self.steps
        )
        return replace(self, steps=steps, dtype=dtype)

    def constants(self) -> Iterator[Tensor]:
        """The tensors among the arguments of the steps: masks, selections and weights."""
        found: dict[int, Tensor] = {}
        for step in self.steps:
            given = [*step.args, *step.kwargs.values()]
            substitute(given, lambda v: found.setdefault(id(v), v) if isinstance(v, Tensor) else None)
        yield from found.values()


@dataclass(frozen=True, eq=False, repr=False)
class ProgramMap(Map):
    """The linear map of a program, or its adjoint. It is applied without forming a matrix.

    Shapes: signals (*b, n, i) -> (*b, m, o), where i is the last axis of the program's input and n all others, so that
    rows and columns of the matrix are in the order of `y.flatten()` and `x.flatten()`. A tensor with the shape of the
    program's input gives one with the shape of its result.

    >>> from gconv.analysis import affine
    >>> found = affine(torch.nn.Linear(3, 2).eval(), torch.ones(1, 3)).map
    >>> isinstance(found, ProgramMap), found.shape
    (True, (2, 3))
    """

    program: Program
    transposed: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return self.program.dtype

    @property
    def device(self) -> torch.device:
        return self.program.device

    @property
    def _ends(self) -> tuple[torch.Size, torch.Size]:
        """The shapes of the result and of the input."""
        out, into = self.program.shapes
        return (into, out) if self.transposed else (out, into)

    @property
    def i(self) -> int:
        return _channels(self._ends[1])

    @property
    def o(self) -> int:
        return _channels(self._ends[0])

    @property
    def sites(self) -> tuple[int, int]:
        out, into = self._ends
        return math.prod(out[:-1]), math.prod(into[:-1])

    @cached_property
    def T(self) -> ProgramMap:
        return ProgramMap(self.program, not self.transposed)

    def apply(self, x: Tensor, lowering: str | None = None) -> Tensor:
        """A @ x, by one run of the program for each signal, and for the adjoint a backward pass. `lowering` is ignored.

        Raises:
            TypeError: if x has another dtype.
            ValueError: if x has another shape.
        """
        out, into = self._ends
        own = isinstance(x, Tensor) and x.shape == into
        if not own:
            self.expect(x)
        if x.dtype != self.dtype:
            raise TypeError(f"x is {x.dtype}, but this map is {self.dtype}; convert one of them.")
        run = self.program.transpose if self.transposed else self.program.run
        if own:
            return run(x)
        signals = x.reshape(-1, *into)
        each = [run(signal) for signal in signals]
        found = torch.stack(each) if each else x.new_zeros(0, *out)
        return found.reshape(*x.shape[:-2], self.sites[0], self.o)

    def collapse(self) -> LinearMap:
        """The same map as a LinearMap: its matrix, with one tap for each pair of channels.

        Cost: one run of the program for each entry of the input, or of the adjoint for each entry of the result,
        whichever are fewer.
        """
        (m, n), i, o = self.sites, self.i, self.o
        few = self.shape[0] < self.shape[1]
        A = self.T if few else self
        with torch.no_grad():
            eye = torch.eye(A.shape[1], dtype=self.dtype, device=self.device)
            M = (A @ eye.unflatten(-1, (A.sites[1], A.i))).flatten(1)
            M = (M if few else M.mT).reshape(m, o, n, i)
            M = M.permute(3, 1, 0, 2).flatten(0, 1)
            W = torch.eye(i * o, dtype=self.dtype, device=self.device).view(i * o, i, o)
        tap, row, col = M.nonzero(as_tuple=True)
        S = Taps(Pattern((i * o, m, n), tap, row, col), M[tap, row, col])
        return LinearMap(S, Dense(i * o, i, o), W, i, self.dtype, self.device, str(self))

    def expect(self, x: Tensor) -> None:
        n, i, into = self.sites[1], self.i, tuple(self._ends[1])
        wanted = f"tensors of shape {into} or signals (*b, {n}, {i})"
        if not isinstance(x, Tensor):
            raise TypeError(f"This map takes {wanted}, but {shown(x)} was given.")
        if x.ndim < 2 or x.shape[-2:] != (n, i):
            raise ValueError(f"This map takes {wanted}, but x has shape {tuple(x.shape)}.")

    def __repr__(self) -> str:
        return f"ProgramMap({self.shape[0]} x {self.shape[1]}){'.T' if self.transposed else ''}"


def _channels(shape: torch.Size) -> int:
    return shape[-1] if shape else 1
