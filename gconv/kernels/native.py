"""The compiled kernels (csr.c), reached through ctypes where they were built; None where they were not."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
LEVELS = ("base", "avx2", "avx512")
SERIAL = 1 << 15  # multiply-adds below which waking a second thread costs more than it gives


class Product(ctypes.Structure):
    """The struct `product` of csr.c."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("crow", "col", "values", "x", "z", "y")]
        + [(name, ctypes.c_int64) for name in ("rows", "batch", "channels")]
        + [(name, ctypes.c_int64) for name in ("x_batch", "x_row", "y_batch", "y_row", "z_batch", "z_row")]
        + [(name, ctypes.c_double) for name in ("alpha", "beta")]
    )


def load() -> ctypes.CDLL | None:
    """The library beside this file, or None."""
    for path in sorted(Path(__file__).parent.glob("_csr*.so")):
        try:
            library = ctypes.CDLL(str(path))  # torch is loaded: both share one OpenMP
        except OSError:
            continue
        for name in ("gconv_spmm", "gconv_sddmm"):
            function = getattr(library, name)
            function.argtypes = [ctypes.POINTER(Product), ctypes.c_int, ctypes.c_int, ctypes.c_int]
            function.restype = None
        return library
    return None


LIBRARY = load()
LEVEL: int = LIBRARY.gconv_level() if LIBRARY is not None else -1


def serves(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors: floating point of a known type, on the CPU."""
    return LIBRARY is not None and all(t.device.type == "cpu" and t.dtype in TYPES for t in tensors)


def _rows(x: Tensor) -> Tensor:
    """(*b, n, c) -> (b, n, c) with channels side by side, a view where possible."""
    flat = x.flatten(0, -3) if x.ndim > 2 else x.unsqueeze(0)
    return flat if flat.stride(-1) == 1 or flat.shape[-1] == 1 else flat.contiguous()


def _threads(work: int) -> int:
    return 1 if work < SERIAL else torch.get_num_threads()  # never a fixed number: forked workers run with one


def spmm(
    crow: Tensor, col: Tensor, values: Tensor, x: Tensor, z: Tensor | None = None, alpha: float = 1.0, beta: float = 0.0
) -> Tensor:
    """alpha S x + beta z, (*b, n, c) -> (*b, m, c); int32 indices, values in x's type (float32 beside bfloat16)."""
    assert LIBRARY is not None
    m, signals = len(crow) - 1, _rows(x)
    b, _, c = signals.shape
    y = torch.empty(*x.shape[:-2], m, c, dtype=x.dtype)
    values = values.to(torch.float32 if x.dtype == torch.bfloat16 else x.dtype).contiguous()
    extra = None if z is None else _rows(z)
    p = Product(crow.data_ptr(), col.data_ptr(), values.data_ptr(), signals.data_ptr())
    if extra is not None:
        p.z, p.z_batch, p.z_row = extra.data_ptr(), extra.stride(0), extra.stride(1)
    p.y, p.y_batch, p.y_row = y.data_ptr(), m * c, c
    p.x_batch, p.x_row = signals.stride(0), signals.stride(1)
    p.rows, p.batch, p.channels, p.alpha, p.beta = m, b, c, alpha, beta
    LIBRARY.gconv_spmm(p, TYPES[x.dtype], LEVEL, _threads(len(col) * b * c))
    return y


def sddmm(crow: Tensor, col: Tensor, a: Tensor, x: Tensor) -> Tensor:
    """(e,) sum over batch and channels of a[..., i, :] x[..., j, :] at the entries, float32 beside bfloat16."""
    assert LIBRARY is not None
    left, right = _rows(a), _rows(x.to(a.dtype))
    out = torch.empty(len(col), dtype=torch.float32 if a.dtype == torch.bfloat16 else a.dtype)
    p = Product(crow.data_ptr(), col.data_ptr(), None, right.data_ptr(), left.data_ptr(), out.data_ptr())
    p.x_batch, p.x_row, p.z_batch, p.z_row = right.stride(0), right.stride(1), left.stride(0), left.stride(1)
    p.rows, (p.batch, _, p.channels) = len(crow) - 1, left.shape
    LIBRARY.gconv_sddmm(p, TYPES[a.dtype], LEVEL, _threads(len(col) * left.shape[0] * left.shape[2]))
    return out
