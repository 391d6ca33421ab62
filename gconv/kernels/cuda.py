"""The kernels on CUDA: Triton (triton_code.py) if it is installed and supports the arguments, otherwise pure torch.

float32 and float64 products with a single matrix use torch's CSR product, with cached transposes. Rows with more than
`LONG` entries are divided into pieces, whose results are combined in order, so that results are deterministic.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gconv.caches import WeakCache
from gconv.kernels.native_attention import PLANES, least

LONG = 1024  # maximum entries of a row, or of a column, that is not split
WIDE = 128  # maximum block size of a program along the channels
BATCHES = 65_535  # maximum number of signals in one launch
FLOATS = (torch.float32, torch.float64)
HALVES = (torch.bfloat16, torch.float16)

Structure = tuple[Tensor, ...]


INSTALLED = importlib.util.find_spec("triton") is not None


def code() -> Any:
    """The module of Triton kernels; None if Triton is not installed."""
    if not INSTALLED:
        return None
    from gconv.kernels import triton_code

    return triton_code


def fits(structure: Structure, *tensors: Tensor, types: tuple[torch.dtype, ...] = FLOATS, axes: int = 3) -> bool:
    """Whether the Triton kernels support these: one dtype, not empty, not too many signals.

    The last `axes` axes of the first tensor are not those of the signals.
    """
    kind = tensors[0].dtype
    supported = kind in types and all(t.dtype == kind and t.numel() for t in tensors)
    return supported and structure[1].numel() > 0 and tensors[0].shape[:-axes].numel() <= BATCHES and code() is not None


@dataclass(frozen=True)
class Rows:
    """The work of each program of a kernel: a row, or a piece of a long one.

    Args:
        start, stop: (programs,) the range of its entries.
        rows: (programs,) its row; only used if some rows are split.
        first: (rows + 1,) the first piece of each row; None if no row is split.
    """

    start: Tensor
    stop: Tensor
    rows: Tensor
    first: Tensor | None

    @property
    def programs(self) -> int:
        return self.start.shape[0]

    @property
    def split(self) -> bool:
        return self.first is not None


_PIECES = WeakCache("pieces of long rows")


def rows_of(crow: Tensor) -> Rows:
    """The programs of a pattern; the pieces of long rows are cached."""
    found: Rows | Literal[False] | None = _PIECES.get(crow)  # read once: another thread may empty the cache at any time
    if found is None:
        found = _PIECES[crow] = _pieces(crow.long()) or False
    return found or Rows(crow[:-1], crow[1:], crow, None)


def _pieces(crow: Tensor) -> Rows | None:
    """The pieces of rows; None if no row is long."""
    lengths = crow.diff()
    if not lengths.numel() or int(lengths.max()) <= LONG:
        return None
    first = torch.cat([crow.new_zeros(1), ((lengths + LONG - 1) // LONG).cumsum(0)])
    rows = torch.repeat_interleave(first.diff())
    start = crow[rows] + LONG * (torch.arange(rows.shape[0], device=crow.device) - first[rows])
    return Rows(start, torch.minimum(start + LONG, crow[rows + 1]), rows, first)


def _launch(kernel: Any, grid: tuple[int, ...], like: Tensor, *arguments: Any, **options: Any) -> None:
    if not like.is_cuda:  # Triton's interpreter
        kernel[grid](*arguments, **options)
        return
    with torch.cuda.device(like.device):
        kernel[grid](*arguments, **options)


def tile(width: int) -> dict[str, int]:
    """The block sizes of a program along channels and entries, and its number of warps."""
    wide = min(WIDE, 1 << (width - 1).bit_length())
    return {"BD": wide, "BE": max(8, min(32, 512 // wide)), "num_warps": max(1, wide // 32)}


def _blocks(width: int) -> int:
    return -(-width // min(WIDE, 1 << (width - 1).bit_length()))


def _joined(kernel: Any, over: Rows, part: Tensor, out: Tensor, **options: Any) -> Tensor:
    """Combines the results of pieces, (b, pieces, c) -> (b, rows, c)."""
    assert over.first is not None
    b, rows, c = out.shape
    how = {"BD": tile(c)["BD"], "num_warps": tile(c)["num_warps"], **options}
    _launch(kernel, (rows, _blocks(c), b), out, over.first, part, out, rows, over.programs, **how)
    return out


# -- products ------------------------------------------------------------------------------------------------------


def heads_spmm(
    values: Tensor, x: Tensor, together: bool, crow: Tensor, col: Tensor, order: Tensor | None = None
) -> Tensor:
    """`gconv.kernels.heads_spmm`, sums in float32 or wider."""
    m, heads, c = crow.shape[0] - 1, values.shape[-1], x.shape[-1]
    signals, values = _rows(x, 3), values.contiguous()
    b, over = signals.shape[0], rows_of(crow)
    wide = torch.promote_types(x.dtype, torch.float32)
    outer = 1 if together else heads
    y = x.new_empty(b, m, outer * c)
    part = x.new_empty(b, over.programs, outer * c, dtype=wide) if over.split else y
    module = code()
    _launch(
        module.product, (over.programs, _blocks(outer * c), b), x,
        over.start, over.stop, col if order is None else order, col, values, signals, part, over.programs,
        values.shape[-2:].numel() if values.ndim > 2 else 0,
        signals.stride(0), signals.stride(1), signals.stride(2) if signals.shape[2] > 1 else 0,
        HEADS=heads, C=c, TOGETHER=together, ORDER=order is not None, ACC=_type(wide), **tile(outer * c),
    )  # fmt: skip
    if over.split:
        _joined(module.join_sums, over, part, y, WIDTH=outer * c)
    return y.view(*x.shape[:-3], m, outer, c)


def heads_sddmm(a: Tensor, b: Tensor, heads: int, apart: bool, crow: Tensor, col: Tensor) -> Tensor:
    """`gconv.kernels.heads_sddmm`, sums in float32 or wider."""
    left, right, over = _rows(a, 3), _rows(b, 3), rows_of(crow)
    signals, c = left.shape[0], a.shape[-1]
    grid, added = (signals, 1) if apart else (1, signals)
    out = a.new_empty(*(a.shape[:-3] if apart else ()), col.shape[0], heads)
    strides = [[t.stride(0), t.stride(1), t.stride(2) if t.shape[2] > 1 else 0] for t in (left, right)]
    _launch(
        code().sampled, (over.programs, heads, grid), a,
        over.start, over.stop, over.rows, col, left, right, out, col.shape[0], added, *strides[0], *strides[1],
        HEADS=heads, C=c, SPLIT=over.split, ACC=_type(torch.promote_types(a.dtype, torch.float32)), **tile(c),
    )  # fmt: skip
    return out


def _rows(x: Tensor, axes: int) -> Tensor:
    """(*b, ...) -> (b, ...), with contiguous channels."""
    x = x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
    return x.flatten(0, -axes - 1) if x.ndim > axes else x.unsqueeze(0)


def _type(dtype: torch.dtype) -> Any:
    import triton.language

    return getattr(triton.language, str(dtype).removeprefix("torch."))


# -- functions of entries --------------------------------------------------------------------------------------------


def row_softmax(logits: Tensor, crow: Tensor) -> Tensor:
    """`gconv.kernels.row_softmax`."""
    signals, over, heads = _rows(logits.contiguous(), 2), rows_of(crow), logits.shape[-1]
    b, entries, _ = signals.shape
    top, total = signals.new_empty(2, b, over.programs, heads)
    _launch(
        code().stats, (over.programs, _blocks(heads), b), signals, over.start, over.stop, signals, top, total, entries,
        over.programs, HEADS=heads, **tile(heads),
    )  # fmt: skip
    return _normalised(signals, top, total, over, crow, torch.empty_like(signals)).view(logits.shape)


def _normalised(logits: Tensor, top: Tensor, total: Tensor, over: Rows, crow: Tensor, out: Tensor) -> Tensor:
    """The softmax of logits (b, e, heads), from the results of `stats`; `out` may be the logits."""
    b, entries, heads = logits.shape
    rows, how = crow.shape[0] - 1, tile(heads)
    if over.split:
        parts, (top, total) = (top, total), logits.new_empty(2, b, rows, heads)
        _launch(
            code().join_stats, (rows, _blocks(heads), b), logits, over.first, *parts, top, total, rows, over.programs,
            HEADS=heads, BD=how["BD"], num_warps=how["num_warps"],
        )  # fmt: skip
    given = over.start, over.stop, over.rows, logits, top, total, out, entries, rows
    _launch(code().softmax, (over.programs, _blocks(heads), b), logits, *given, HEADS=heads, SPLIT=over.split, **how)
    return out


def row_sums(a: Tensor, b: Tensor | None, crow: Tensor, order: Tensor | None) -> Tensor:
    """(*b, m, heads) the sums of a, or of a b, over the entries of each row."""
    signals, over, heads = _rows(a.contiguous(), 2), rows_of(crow), a.shape[-1]
    other, entry = signals if b is None else b.contiguous(), crow if order is None else order
    out = a.new_empty(signals.shape[0], crow.shape[0] - 1, heads)
    part = a.new_empty(signals.shape[0], over.programs, heads) if over.split else out
    _launch(
        code().sums, (over.programs, _blocks(heads), signals.shape[0]), a, over.start, over.stop, entry, signals, other,
        part, signals.shape[1], over.programs, HEADS=heads, TWO=b is not None, ORDER=order is not None, **tile(heads),
    )  # fmt: skip
    if over.split:
        _joined(code().join_sums, over, part, out, WIDTH=heads)
    return out.view(*a.shape[:-2], *out.shape[1:])


def softmax_back(a: Tensor, g: Tensor, crow: Tensor) -> Tensor:
    """`gconv.kernels.heads.softmax_back_torch`."""
    a, g, over, (entries, heads) = a.contiguous(), g.contiguous(), rows_of(crow), a.shape[-2:]
    total, out, b = row_sums(a, g, crow, None), torch.empty_like(a), a.shape[:-2].numel()
    given = over.start, over.stop, over.rows, a, g, total, out, entries, crow.shape[0] - 1
    grid = over.programs, _blocks(heads), b
    _launch(code().softmax_back, grid, a, *given, HEADS=heads, SPLIT=over.split, **tile(heads))
    return out


# -- attention -------------------------------------------------------------------------------------------------------


def _dropout(share: float, seed: Tensor | None) -> dict[str, Any]:
    if seed is None:
        return {"SCALE": 1.0, "LEAST": 0, "DROP": False}
    return {"SCALE": 1 / (1 - share), "LEAST": least(share), "DROP": True}


def attend(
    z: Tensor, p: Tensor, q: Tensor, seed: Tensor | None, slope: float, share: float, learn: bool, *structure: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """y, y_f and the scores of `gconv.kernels.attention`."""
    crow, col = structure[:2]
    signals, over = _rows(z.contiguous(), 3), rows_of(crow)
    b, n, heads, c = signals.shape
    scores = z.new_empty(b, PLANES, n, heads)
    torch.sum(signals * q, -1, out=scores[:, 0])
    torch.sum(signals * p, -1, out=scores[:, 1])
    planes = scores.unbind(1)
    y, y_f = torch.empty_like(signals), torch.empty_like(signals) if learn else z.new_empty(0)
    made = y, y_f, *planes[2:]
    parts, plane_out = made, PLANES * n
    if over.split:
        wide = z.new_empty(2 if learn else 1, b, over.programs, heads, c)
        parts, plane_out = (wide[0], wide[-1], *z.new_empty(3, b, over.programs, heads)), over.programs
    how: dict[str, Any] = {"HEADS": heads, "C": c, "LEARN": learn}
    grid, tiles = _blocks(heads * c), tile(heads * c)
    _launch(
        code().attend, (over.programs, grid, b), z, over.start, over.stop, over.rows, col, signals, *planes[:2],
        crow if seed is None else seed.to(z.device), *parts, col.shape[0], n, over.programs, PLANES * n, plane_out,
        SLOPE=slope, SPLIT=over.split, **_dropout(share, seed), **how, **tiles,
    )  # fmt: skip
    if over.split:
        how |= {"BD": tiles["BD"], "num_warps": tiles["num_warps"]}
        sizes = n, over.programs, PLANES * n
        _launch(code().join_attended, (n, grid, b), z, over.first, *parts, *made, *sizes, **how)
    if not learn:
        return y.view(z.shape), y_f, z.new_empty(0)
    return y.view(z.shape), y_f.view(z.shape), scores.view(*z.shape[:-3], PLANES, n, heads)


def attend_back(
    z: Tensor, p: Tensor, q: Tensor, seed: Tensor | None, slope: float, share: float, dy: Tensor, y: Tensor,
    y_f: Tensor, scores: Tensor, *structure: Tensor,
) -> Tensor:  # fmt: skip
    """The gradients in z, p and q, concatenated as in `gconv.kernels.attention`."""
    _, col, crow_t, col_t, to_t, _ = structure
    z, dy, y, y_f, scores = (_rows(t.contiguous(), 3) for t in (z, dy, y, y_f, scores))
    over, (b, n, heads, c) = rows_of(crow_t), z.shape
    source, target, top, inverse, g = scores.unbind(1)
    d = (dy * y).sum(-1)
    dt = (dy * y_f).sum(-1) - d * g
    dz, dz_f, ds = torch.empty_like(dy), torch.empty_like(dy), torch.empty_like(d)
    parts = [t.new_empty(b, over.programs, *t.shape[2:]) for t in (dz, dz_f, ds)] if over.split else [dz, dz_f, ds]
    _launch(
        code().attend_back, (over.programs, _blocks(heads * c), b), z, over.start, over.stop, over.rows, col_t, to_t,
        source, target, top, inverse, d, dy, crow_t if seed is None else seed.to(z.device), *parts,
        col.shape[0], n, over.programs, PLANES * n,
        HEADS=heads, C=c, SLOPE=slope, SPLIT=over.split, **_dropout(share, seed), **tile(heads * c),
    )  # fmt: skip
    if over.split:
        for part, whole in zip(parts, (dz, dz_f, ds), strict=True):
            width = whole[0, 0].numel()
            _joined(code().join_sums, over, part, whole.view(b, n, width), WIDTH=width)
    ds = (z * dz_f).sum(-1) - ds
    dt, ds = dt.unsqueeze(-1), ds.unsqueeze(-1)
    dz = (dz + dt * p + ds * q).flatten(0, 1)
    return torch.cat([dz, *((end * z).sum((0, 1)).unsqueeze(0) for end in (dt, ds))])


# -- joint attention -------------------------------------------------------------------------------------------------


def joint(s: Tensor, t: Tensor, vector: Tensor, slope: float, *structure: Tensor) -> Tensor:
    """`gconv.kernels.joint_attention`; the logits are stored where the values will be."""
    crow, col = structure[:2]
    columns, rows, over = _rows(s.contiguous(), 3), _rows(t.contiguous(), 3), rows_of(crow)
    (b, n, heads, c), m, e = columns.shape, rows.shape[1], col.shape[0]
    out, (top, total) = s.new_empty(b, e, heads), s.new_empty(2, b, over.programs, heads)
    blocks, how = tile_of_heads(s.dtype, heads, c)
    _launch(
        code().joint, (over.programs, blocks, b), s, over.start, over.stop, over.rows, col, columns, rows,
        vector.contiguous(), out, top, total, e, m, n, over.programs,
        HEADS=heads, C=c, SLOPE=slope, SPLIT=over.split, **how,
    )  # fmt: skip
    return _normalised(out, top, total, over, crow, out).view(*s.shape[:-3], e, heads)


def joint_back(s: Tensor, t: Tensor, vector: Tensor, slope: float, a: Tensor, g: Tensor, *structure: Tensor) -> Tensor:
    """The gradients in s, t and the vector, concatenated as in `gconv.kernels.joint`."""
    crow, col, crow_t, col_t, to_t, _ = structure
    columns, rows, vector = _rows(s.contiguous(), 3), _rows(t.contiguous(), 3), vector.contiguous()
    (b, n, heads, c), m, e = columns.shape, rows.shape[1], col.shape[0]
    width, a, g = heads * c, a.contiguous(), g.contiguous()
    d, out = row_sums(a, g, crow, None), s.new_empty(b * (n + m) + 1, heads, c)
    for of_rows in (True, False):
        over = rows_of(crow if of_rows else crow_t)
        whole = (out[b * n : -1] if of_rows else out[: b * n]).view(b, -1, width)
        part = s.new_empty(b, over.programs, width) if over.split else whole
        of_vector = s.new_empty(b, over.programs, width) if of_rows else part
        _launch(
            code().joint_back, (over.programs, _blocks(width), b), s, over.start, over.stop, over.rows,
            *((col, crow, rows, columns) if of_rows else (col_t, to_t, columns, rows)), vector, a, g, d, part,
            of_vector, e, *((m, n) if of_rows else (n, m)), over.programs,
            HEADS=heads, C=c, SLOPE=slope, SPLIT=over.split, ORDER=not of_rows, **tile(width),
        )  # fmt: skip
        if over.split:
            _joined(code().join_sums, over, part, whole, WIDTH=width)
        if of_rows:
            out[-1] = of_vector.sum((0, 1)).view(heads, c)
    return out


def tile_of_heads(dtype: torch.dtype, heads: int, *channels: int) -> tuple[int, dict[str, int]]:
    """The number of blocks of heads, and the sizes of a program's block of heads, channels and entries."""
    wide = [min(WIDE, _power(c)) for c in channels]
    high = min(_power(heads), WIDE // max(wide))
    how, sizes = tile(high * max(wide)), dict(zip(("BC", "BV"), wide, strict=False))
    at_once = how["BE"] // (2 if dtype == torch.float64 else 1)  # of 8-byte numbers half as many fit in the registers
    return -(-heads // high), {"BE": at_once, "BH": high, **sizes, "num_warps": how["num_warps"]}


def _power(size: int) -> int:
    return 1 << (size - 1).bit_length()


# -- dot-product attention -------------------------------------------------------------------------------------------


def dot(
    q: Tensor, k: Tensor, v: Tensor, seed: Tensor | None, share: float, learn: bool, *structure: Tensor
) -> tuple[Tensor, Tensor]:
    """y and the scores of `gconv.kernels.dot_attention`, sums in float32 or wider."""
    crow, col = structure[:2]
    rows, columns, values = (_rows(x.contiguous(), 3) for x in (q, k, v))
    (b, m, heads, c), n, (of_v, cv), over = rows.shape, columns.shape[1], values.shape[2:], rows_of(crow)
    wide = torch.promote_types(q.dtype, torch.float32)
    y, scores = q.new_empty(b, m, heads, cv), q.new_empty(2, b, m, heads, dtype=wide)
    parts = y, *scores
    if over.split:
        parts = q.new_empty(b, over.programs, heads, cv, dtype=wide), *scores.new_empty(2, b, over.programs, heads)
    blocks, how = tile_of_heads(wide, heads, c, cv)
    across = -(-cv // how["BV"])
    _launch(
        code().dot, (over.programs, blocks * across, b), q, over.start, over.stop, over.rows, col, rows, columns,
        values, crow if seed is None else seed.to(q.device), *parts, col.shape[0], m, n, over.programs,
        HEADS=heads, C=c, CV=cv, HV=of_v, **_dropout(share, seed), LEARN=learn, SPLIT=over.split, ACC=_type(wide),
        BLOCKS=across, **how,
    )  # fmt: skip
    if over.split:
        flat = tile(heads * cv)
        _launch(
            code().join_dot, (m, _blocks(heads * cv), b), q, over.first, *parts, y, *scores, m, over.programs,
            HEADS=heads, C=cv, LEARN=learn, BD=flat["BD"], num_warps=flat["num_warps"],
        )  # fmt: skip
    return y.view(*q.shape[:-1], cv), scores.view(2, *q.shape[:-1]) if learn else scores.new_empty(0)


def dot_back(
    q: Tensor, k: Tensor, v: Tensor, seed: Tensor | None, share: float, dy: Tensor, y: Tensor, scores: Tensor,
    *structure: Tensor,
) -> Tensor:  # fmt: skip
    """The gradients in q, k and v, flattened and concatenated."""
    crow, col, crow_t, col_t, to_t, _ = structure
    rows, columns, values, dys = (_rows(x.contiguous(), 3) for x in (q, k, v, dy))
    (b, m, heads, c), n, (of_v, cv) = rows.shape, columns.shape[1], values.shape[2:]
    wide = torch.promote_types(q.dtype, torch.float32)
    d, scores = (dys.to(wide) * y.view(dys.shape)).sum(-1).contiguous(), scores.contiguous()
    blocks, how = tile_of_heads(wide, heads, c, cv)
    made = []
    for of_rows in (True, False):
        over = rows_of(crow if of_rows else crow_t)
        ends = (rows, dys, columns, values) if of_rows else (columns, values, rows, dys)
        sizes = (m, n) if of_rows else (n, m)
        wholes = [q.new_empty(b, sizes[0], heads * width) for width in ((c,) if of_rows else (c, cv))]
        parts = [q.new_empty(b, over.programs, w.shape[-1], dtype=wide) for w in wholes] if over.split else wholes
        across = max(-(-c // how["BC"]), 0 if of_rows else -(-cv // how["BV"]))
        _launch(
            code().dot_back, (over.programs, blocks * across, b), q, over.start, over.stop, over.rows,
            *((col, crow) if of_rows else (col_t, to_t)), *ends, *scores, d,
            crow if seed is None else seed.to(q.device), parts[0], parts[-1], col.shape[0], *sizes, over.programs,
            HEADS=heads, C=c, CV=cv, HV=of_v, **_dropout(share, seed), SPLIT=over.split, ORDER=not of_rows,
            ACC=_type(wide), BLOCKS=across, **how,
        )  # fmt: skip
        if over.split:
            for part, whole in zip(parts, wholes, strict=True):
                _joined(code().join_sums, over, part, whole, WIDTH=whole.shape[-1])
        made += wholes
    if of_v < heads:
        made[2] = made[2].view(b, n, heads, cv).sum(2)
    return torch.cat([x.flatten() for x in made])


# -- maxima ----------------------------------------------------------------------------------------------------------


def segment_max(values: Tensor, x: Tensor, crow: Tensor, col: Tensor) -> Tensor:
    """`gconv.kernels.segment_max`."""
    signals, over = _rows(x, 2), rows_of(crow)
    b, _, c = signals.shape
    y = x.new_empty(b, crow.shape[0] - 1, c)
    part = x.new_empty(b, over.programs, c) if over.split else y
    _launch(
        code().largest, (over.programs, _blocks(c), b), x, over.start, over.stop, col, values.contiguous(), signals,
        part, over.programs, signals.stride(0), signals.stride(1), C=c, SPLIT=over.split, **tile(c),
    )  # fmt: skip
    if over.split:
        _joined(code().join_largest, over, part, y, C=c)
    return y.view(*x.shape[:-2], *y.shape[1:])
