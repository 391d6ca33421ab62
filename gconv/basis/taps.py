"""Taps: labelled sparse entries, S[k, i, j] = sum of the values of the entries (k, i, j)."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import Proxy

from gconv.arguments import plural, shown
from gconv.basis.base import Basis, lazy
from gconv.kernels import (
    CSR,
    at_trace_time,
    bare,
    concrete,
    ends,
    heads_sddmm,
    in_order,
    is_batched,
    joint_attention,
    lasting,
    leave,
    readable,
    ready,
    row_softmax,
    segment_max,
    spmm,
    spmm_rows,
    unrecorded,
    untraced,
    widened,
    wrapped,
)

Layout = Literal["expand", "contract", "each"]
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
MAX_BYTES_PREPARED = 1 << 22  # of all S_k x: larger products may be scheduled, and their overhead is negligible
SWAPPED: dict[Layout, Layout] = {"expand": "contract", "contract": "expand", "each": "each"}  # the transposed layout


@dataclass(frozen=True, eq=False)
class Pattern:
    """A sparsity pattern: entry e is in tap `tap[e]`, row `row[e]`, column `col[e]`. Values are stored separately.

    The three products need three sparse matrices with these entries, each built when it is first needed. Row (or
    column) i of tap k has index i K + k, so that the taps of a site are next to its channels in memory.

        expand    (m K, n)    all S_k x at once
        contract  (m, n K)    sum_k S_k z_k
        each      (m K, n K)  S_k z_k, tap by tap
    """

    shape: tuple[int, int, int]
    tap: Tensor
    row: Tensor
    col: Tensor
    _memo: dict[Layout, CSR] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("tap", "row", "col"):
            index = getattr(self, name)
            if isinstance(index, Proxy):  # of dynamo, which copies patterns
                continue
            if not isinstance(index, Tensor) or index.dtype not in INTEGERS or index.ndim != 1:
                what = f"{tuple(index.shape)} of {index.dtype}" if isinstance(index, Tensor) else shown(index)
                raise TypeError(f"A pattern takes one integer {name} for each entry, a tensor (e,), not {what}.")
            if index.dtype != torch.int64:  # in which no index overflows
                object.__setattr__(self, name, index.long())

    def csr(self, layout: Layout) -> CSR:
        if self.shape[0] == 1:
            layout = "expand"  # the three are the same matrix for a single tap
        if torch.compiler.is_dynamo_compiling():
            found = _outside(self, layout)
            return self._build(layout) if found is None else getattr(self, found)
        made = self._memo.get(layout)
        if made is None:
            with lasting(self):
                made = self._build(layout)
            if type(self._memo) is dict:  # dynamo's copies cannot be changed
                self._memo[layout] = made
        return made

    def _build(self, layout: Layout) -> CSR:
        k, m, n = self.shape
        high, wide = layout != "contract", layout != "expand"
        row, col, tap = bare(self.row), bare(self.col), bare(self.tap)
        if readable(tap) and tap.shape != row.shape:
            raise ValueError(f"A sparse pattern takes a tap for each entry, but there are {len(tap)} of {len(row)}.")
        if readable(tap) and len(tap) and bool(((tap < 0) | (tap >= k)).any()):
            raise IndexError(f"A sparse pattern of {plural(k, 'tap')} has an entry out of range.")
        row = row * k + tap if high and k > 1 else row
        col = col * k + tap if wide and k > 1 else col
        return CSR.build(row, col, m * k if high else m, n * k if wide else n)

    @lazy
    def T(self) -> Pattern:
        k, m, n = self.shape
        memo = {SWAPPED[layout]: csr.T for layout, csr in list(self._memo.items())}
        if k == 1:
            memo = {"expand": self.csr("expand").T}
        return Pattern((k, n, m), self.tap, self.col, self.row, memo)

    def __len__(self) -> int:
        return self.row.shape[0]

    @property
    def layouts(self) -> tuple[CSR, ...]:
        """The sparse matrices that have been built so far."""
        return tuple(self._memo.values())

    def ends(self, row: Tensor, col: Tensor) -> Tensor:
        """(*b, e, h) row[i] + col[j] for each entry (i, j) of a single tap; row (*b, m, h), col (*b, n, h)."""
        csr = self.csr("expand")
        return self.unordered(csr, ends(csr, row, col))

    def dots(self, row: Tensor, col: Tensor) -> Dots:
        """<row[i], col[j]> for each entry (i, j) of a single tap; row (*b, m, h, c), col (*b, n, h, c)."""
        return Dots(self, row, col)

    def softmax(self, logits: Tensor) -> Tensor:
        """(*b, e, h) the softmax over the entries of each row of a single tap; stable for large logits."""
        csr = self.csr("expand")
        return self.unordered(csr, row_softmax(csr, csr.ordered(logits, -2)))

    def joint_attention(self, source: Tensor, target: Tensor, p: Tensor, slope: float) -> Tensor:
        """(*b, e, h) the softmax over the entries of each row of <p_h, LeakyReLU(target_ih + source_jh)>."""
        csr = self.csr("expand")
        return self.unordered(csr, joint_attention(csr, source, target, p, slope))

    def unordered(self, csr: CSR, values: Tensor) -> Tensor:
        """Values (*b, e, h) in row order, permuted to the order of the entries."""
        if csr.perm is None:
            return values
        entry = torch.arange(values.shape[-2], device=values.device)
        return values.index_select(-2, torch.empty_like(entry).index_copy(0, csr.perm.long(), entry))


@dataclass(frozen=True, eq=False)
class Dots:
    """<row[i], col[j]> for each entry (i, j) of a pattern with a single tap, computed where it is needed.

    A softmax of them may be one kernel that does not store them, see `gconv.basis.attended`.
    """

    pattern: Pattern
    row: Tensor
    col: Tensor

    @property
    def values(self) -> Tensor:
        """(*b, e, h), in at least float32."""
        csr, row, col = self.pattern.csr("expand"), widened(self.row), widened(self.col)
        return self.pattern.unordered(csr, heads_sddmm(csr, row, col, self.row.shape[-2], apart=True))

    def __rmul__(self, factor: Tensor) -> Tensor:
        return factor * self.values


@at_trace_time
def _outside(made: Any, layout: Layout) -> str | None:
    """The attribute that holds a layout built outside of the trace; None if the object was created within it."""
    if "_memo" not in made.__dict__ or not concrete(made):
        return None
    with untraced():
        return leave(made, layout, made.csr(layout) if isinstance(made, Pattern) else made.ordered(layout))


@dataclass(frozen=True, eq=False)
class Taps(Basis):
    """Sparse matrices S_k given by entries, each with a tap label.

    Args:
        pattern: the sparsity pattern.
        values: (e,) in the order of the pattern's entries; may require grad, which makes the structure learnable.
        reduce: "sum", or "max" for the maximum over the entries of a row (0 for an empty row; not linear).

    >>> pattern = Pattern((1, 2, 2), *torch.tensor([[0, 0], [0, 1], [1, 1]]))
    >>> Taps(pattern, torch.tensor([2.0, 3.0])).expand(torch.tensor([[1.0], [10.0]])).flatten()
    tensor([20., 30.])
    """

    pattern: Pattern
    values: Tensor
    reduce: Literal["sum", "max"] = "sum"
    _memo: dict[Layout, tuple[Tensor, Tensor, int]] = field(default_factory=dict, init=False)
    _products: dict[Any, Callable[..., Tensor] | Literal[False]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        values: Any = self.values
        if isinstance(values, Proxy):  # of dynamo
            return
        fits = isinstance(values, Tensor) and self.values.ndim == 1
        if fits and type(self.values.shape[0]) is int and type(entries := self.pattern.tap.shape[0]) is int:
            fits = self.values.shape[0] == entries  # sizes of a trace are not compared
        if not fits:
            what = tuple(self.values.shape) if isinstance(self.values, Tensor) else shown(self.values)
            raise ValueError(f"Taps take one value for each of {len(self.pattern)} entries, but the values are {what}.")
        if self.reduce not in ("sum", "max"):
            raise ValueError(f"reduce must be 'sum' or 'max', but it is {self.reduce!r}.")

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.pattern.shape

    @property
    def nnz(self) -> int:
        return len(self.pattern)

    @property
    def linear(self) -> bool:
        return self.reduce == "sum"

    @property
    def signature(self) -> Hashable:
        return "Taps", self.shape, self.nnz, self.reduce

    @property
    def T(self) -> Taps:
        known, values = self._memo.get("expand"), self.values
        if known is not None and self.pattern.shape[0] == 1 and not torch.compiler.is_dynamo_compiling():
            same = known[0] is known[1] and self.reduce == "sum" and not values.requires_grad
            if not same or values.is_inference() or known[2] == values._version:
                return self if same else self._transposed
        return self if self.linear and self.symmetric else self._transposed

    @lazy
    def _transposed(self) -> Taps:
        if not self.linear:
            raise ValueError("A structure that reduces with max has no transpose.")
        made = Taps(self.pattern.T, self.values)
        for layout, (values, back, version) in list(self._memo.items()):
            made._memo[layout if self.shape[0] == 1 else SWAPPED[layout]] = back, values, version
        return made

    def ordered(self, layout: Layout) -> tuple[CSR, Tensor, Tensor | None]:
        """The pattern in this layout, the values in row order, and in the row order of the transpose.

        The last is None if the values require a gradient.
        """
        if torch.compiler.is_dynamo_compiling() and not self.values.requires_grad:
            found = _outside(self, layout)
            if found is not None:
                return getattr(self, found)
        csr = self.pattern.csr(layout)
        if self.values.requires_grad or torch.compiler.is_dynamo_compiling():
            return csr, csr.ordered(self.values), None
        made, version = self._memo.get(layout), 0 if self.values.is_inference() else self.values._version
        if made is None or made[2] != version:  # or values were modified in place, which inference tensors do not count
            if wrapped(self.values):
                return csr, csr.ordered(self.values), None
            with lasting(self):
                values = csr.ordered(self.values).resolve_neg()  # compiled kernels read the numbers in memory
                values = values.clone() if values.is_inference() else values  # for use outside of inference mode
                back = values.index_select(0, csr.to_t)
                if csr.self_transposed and concrete(values) and torch.equal(values, back):
                    back = values  # a symmetric S is its own transpose
            made = self._memo[layout] = values, back, version
        return csr, made[0], made[1]

    @property
    def symmetric(self) -> bool:
        """Whether the (single) tap equals its transpose."""
        if self.shape[0] != 1 or self.values.requires_grad or is_batched(self.values):
            return False
        csr, values, back = self.ordered("expand")
        return csr.self_transposed and values is back

    def _product(self, layout: Layout, x: Tensor) -> Tensor:
        csr, values, back = self.ordered(layout)
        if self.reduce == "max":
            return segment_max(csr, values, x)
        return spmm(csr, values, x, back)

    def expand(self, x: Tensor) -> Tensor:
        y = self._product("expand", x)
        if self.shape[0] == 1:
            return y.unsqueeze(-3)
        return y.unflatten(-2, (self.shape[1], self.shape[0])).movedim(-2, -3)

    def contract(self, z: Tensor) -> Tensor:
        if not self.linear:
            return self.each(z).sum(-3)
        if self.shape[0] == 1:
            return self._product("contract", z.squeeze(-3))
        return self._product("contract", z.movedim(-3, -2).flatten(-3, -2))

    @property
    def learned(self) -> list[Tensor]:
        return [self.values] if self.values.requires_grad else []

    @property
    def fixed(self) -> bool:
        return self.reduce == "sum" and not self.values.requires_grad

    @property
    def tapwise(self) -> bool:
        return True

    @property
    def patterns(self) -> tuple[CSR, ...]:
        return self.pattern.layouts

    def entries(self, dtype: torch.dtype, device: torch.device) -> Taps:
        return self

    def tap(self, k: int, dtype: torch.dtype, device: torch.device) -> Taps:
        at = (self.pattern.tap == k).nonzero()[:, 0]
        pattern = Pattern((1, *self.shape[1:]), torch.zeros_like(at), self.pattern.row[at], self.pattern.col[at])
        return Taps(pattern, self.values[at], self.reduce)

    def expand_flat(self, x: Tensor) -> Tensor:
        version = 0 if self.values.is_inference() else self.values._version
        product = self._products.get(("expand", x.shape[-1], x.dtype, version)) if x.ndim == 2 else False
        if product is None:
            product = self._prepare("expand", x, version)
        if product:
            return product(x)
        csr, values, _ = self.ordered("expand")
        y = unrecorded(csr, values, x)
        k = self.shape[0]
        return y if k == 1 else y.view(*x.shape[:-2], self.shape[1], k * x.shape[-1])

    def contract_flat(self, z: Tensor, add: Tensor | None = None, row: Tensor | None = None) -> Tensor:
        version = 0 if self.values.is_inference() else self.values._version
        product = self._products.get(("contract", z.shape[-1], z.dtype, version)) if z.ndim == 2 else False
        if product is None:
            product = self._prepare("contract", z, version)
        if product:
            return product(z, add, row)
        csr, values, _ = self.ordered("contract")
        k = self.shape[0]
        z = z if k == 1 else z.reshape(*z.shape[:-2], self.shape[2] * k, z.shape[-1] // k)
        if z.ndim > 2 or (add is not None and row is not None):
            y = unrecorded(csr, values, z)
            y = y if add is None else add.add_(y)
            return y if row is None else y.add_(row)
        return spmm_rows(csr, values, z, add=row if add is None else add, out=add)

    def rows(self, x: Tensor) -> Callable[[slice, Tensor], Tensor]:
        k, c = self.shape[0], x.shape[1]
        csr, values, _ = self.ordered("expand")
        if in_order(csr, values, x):  # the schedule saves more time than chunks that stay in cache
            whole = spmm_rows(csr, values, x).view(-1, k * c)
            return lambda piece, out: whole[piece]
        return lambda piece, out: spmm_rows(csr, values, x, piece.start * k, piece.stop * k, out=out.view(-1, c)).view(
            -1, k * c
        )

    def _prepare(self, layout: Layout, x: Tensor, version: int) -> Callable[..., Tensor] | Literal[False]:
        """A prepared product for small matrices with x's width and dtype, or False; cached in `_products`."""
        (k, m, n), width = self.shape, x.shape[1]
        high = layout == "expand"
        c = width if high else width // k
        product: Callable[..., Tensor] | Literal[False] = False
        if n * width * (k if high else 1) * x.element_size() <= MAX_BYTES_PREPARED and x.dtype == self.values.dtype:
            csr, values, _ = self.ordered(layout)
            product = ready(csr, values, c, (m, k * c if high else c), beside=k > 1 and not high) or False
        if any(key[-1] != version for key in list(self._products)):  # of values that were modified in place since
            self._products.clear()
        self._products[layout, width, x.dtype, version] = product
        return product

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_memo": {}, "_products": {}}  # memory addresses, and versions of these tensors

    def each(self, z: Tensor) -> Tensor:
        """(*b, k, n, c) -> (*b, k, m, c): S_k z_k, tap by tap."""
        y = self._product("each", z.movedim(-3, -2).flatten(-3, -2))
        return y.unflatten(-2, (self.shape[1], self.shape[0])).movedim(-2, -3)


@dataclass(frozen=True, eq=False)
class Windows(Taps):
    """The windows of adaptive max pooling on a grid, as entries; torch's kernel can run them, too.

    Args:
        size, out: the input and output grid.
    """

    size: tuple[int, ...] = ()
    out: tuple[int, ...] = ()

    @property
    def grids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.size, self.out

    def traced_grid(self, native: bool) -> tuple[int, ...] | None:
        kept = any(n == o for n, o in zip(self.size, self.out, strict=True))
        return self.size if kept or not native else None

    @property
    def signature(self) -> Hashable:
        return "Windows", self.size, self.out, self.nnz
