"""How fast this machine does what the lowerings are made of: measured rates, read lazily, and defaults.

A rate is a curve: points (size, amount a second), straight lines between them on logarithmic scales. What the size is
depends on the kind of work:

    gemm TYPE            flops              by the smaller of the two dimensions of W
    gemm widened         flops              bfloat16 through float32
    conv TYPE, large     flops              by the channels out of a group; `large`: kernels wider than 7
    conv TYPE last       flops              channels last in memory; by channels (mean of in and out) times kernel side
    conv TYPE back       flops              each of the two gradients; by the same
    single, last, back   flops              each channel by itself, by the taps; `last`: channels last in memory
    gather near, middle, far   bytes        by the bytes of a row; tables of `TABLES` bytes
    stream               bytes              by the bytes of the array
    turn, scatter        bytes              laying channels side by side, and max over entries: single numbers
    conv transposed      flops              of stride 2, by the channels out
    image                images             beyond their arithmetic, a single number
    pool sum, max        sites out          times channels; by the taps
    fft, mix             flops              transforms: a single number; mixing in between: by channels of a group
    call, slice          library calls      a term of a recurrence and what one tap reads: single numbers

`python -m gconv.calibrate` measures them and writes the file that `rates` reads: $GCONV_CALIBRATION, else
gconv/calibration.json in the user's cache folder. Without a file the defaults serve, which are what that command
measured on two cores of an AMD EPYC (Zen 3, AVX2).
"""

from __future__ import annotations

import json
import math
import os
import warnings
from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

Curve = tuple[tuple[float, float], ...]
FORMAT = 1
TYPES = ("float32", "float64", "bfloat16")
TABLES = {"near": 2.0**18, "middle": 2.0**22, "far": 2.0**26}  # bytes of what a sparse product gathers from


def at(curve: Curve, size: float) -> float:
    """The value of a curve, that of its nearest end outside of it.

    >>> at(((1.0, 10.0), (100.0, 1000.0)), 10.0), at(((1.0, 10.0),), 7.0)
    (100.0, 10.0)
    """
    if len(curve) == 1 or size <= curve[0][0]:
        return curve[0][1]
    if size >= curve[-1][0]:
        return curve[-1][1]
    k = bisect([point[0] for point in curve], size)
    (low, a), (high, b) = curve[k - 1], curve[k]
    return round(a * (b / a) ** (math.log(size / low) / math.log(high / low)), 9)


@dataclass(frozen=True)
class Rates:
    """What a plan prices work with.

    Args:
        curves: kind of work -> how much of it a second, by its size.
        overheads: lowering, "LOWERING weight" with the gradient in the weight, "LOWERING back" with that in x too ->
            seconds of a call on next to nothing.
        source: where the numbers come from.
    """

    curves: Mapping[str, Curve]
    overheads: Mapping[str, float]
    source: str = "defaults"

    def seconds(self, kind: str, amount: float, size: float = 1.0, table: float = 0.0) -> float:
        """How long an amount of work takes; "gather" reads rows of `size` bytes at random places of a table."""
        if not amount:
            return 0.0
        if kind != "gather":
            return amount / at(self.curves[kind], size)
        return amount / at(tuple((TABLES[p], at(self.curves[f"gather {p}"], size)) for p in TABLES), table)


def path() -> Path:
    """Where the calibration is stored."""
    given = os.environ.get("GCONV_CALIBRATION")
    cache_folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(cache_folder) / "gconv" / "calibration.json"


def rates() -> Rates:
    """The rates for the number of threads in use: those of the file, of its nearest number of threads, or defaults.

    The file is read once. One that cannot be used is one warning, and then the defaults serve.
    """
    found = _read(path())
    threads = torch.get_num_threads()
    return found[min(found, key=lambda have: (abs(math.log(have / threads)), have))]


def price(name: str, steps: tuple[tuple[str, float, float, float], ...]) -> float:
    """Seconds of a call of a lowering: its overhead by `name`, and its steps (kind, amount, size, table)."""
    now = rates()
    return now.overheads.get(name, 0.0) + sum(now.seconds(*step) for step in steps)


# As torch.compiler.assume_constant_result does, which would import the compiler: it can neither read files nor should
# it watch all these numbers.
price._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _read(where: Path) -> dict[int, Rates]:
    try:
        text = where.read_text(encoding="utf-8")
    except FileNotFoundError:
        return DEFAULTS
    except OSError as error:
        return _unusable(where, error.strerror or str(error))
    try:
        return parse(json.loads(text), str(where))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return _unusable(where, str(error) or type(error).__name__)


def _unusable(where: Path, why: str) -> dict[int, Rates]:
    warnings.warn(
        f"The calibration {where} cannot be used ({why}), so plans take the built-in rates; "
        "`python -m gconv.calibrate` writes it anew.",
        stacklevel=2,
    )
    return DEFAULTS


def parse(data: Any, source: str) -> dict[int, Rates]:
    """Rates by number of threads, from what the file holds.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: if it is not a calibration.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT or not data.get("threads"):
        raise ValueError(f"it is not a calibration of format {FORMAT}")
    found = {}
    for threads, numbers in data["threads"].items():
        curves = {kind: tuple((float(size), float(rate)) for size, rate in c) for kind, c in numbers["curves"].items()}
        overheads = {name: float(seconds) for name, seconds in numbers["overheads"].items()}
        _check(curves, overheads)
        found[int(threads)] = Rates(curves, overheads, source)
    return found


def _check(curves: Mapping[str, Curve], overheads: Mapping[str, float]) -> None:
    want = next(iter(DEFAULTS.values()))
    missing = [name for name in [*want.curves, *want.overheads] if name not in curves and name not in overheads]
    if missing:
        raise ValueError(f"it lacks {missing[0]!r}")
    for kind, curve in curves.items():
        sizes = [size for size, _ in curve]
        numbers = [number for point in curve for number in point]
        if not curve or sizes != sorted(set(sizes)) or not all(math.isfinite(x) and x > 0 for x in numbers):
            raise ValueError(f"{kind!r} is not a curve of positive numbers, its sizes ascending")
    if not all(math.isfinite(seconds) and seconds >= 0 for seconds in overheads.values()):
        raise ValueError("an overhead is not a number of seconds")


DEFAULTS: dict[int, Rates] = {
    1: Rates(
        {
            "gemm float32": (
                (1, 2.94e09),
                (4, 3.33e09),
                (16, 6.03e10),
                (64, 8.37e10),
                (256, 9.42e10),
            ),
            "conv float32": (
                (4, 9.63e09),
                (16, 5.2e10),
                (64, 8.06e10),
            ),
            "conv float32 large": (
                (4, 8.9e09),
                (16, 2.92e10),
            ),
            "conv float32 last": (
                (12, 1.02e10),
                (36, 2.78e10),
                (48, 6.87e10),
                (144, 9.72e10),
                (192, 9.06e10),
            ),
            "conv float32 back": (
                (4, 2.39e09),
                (12, 5.46e09),
                (16, 2.02e10),
                (48, 4.7e10),
                (192, 6.93e10),
            ),
            "gemm float64": (
                (1, 2.36e09),
                (4, 3.28e09),
                (16, 1.3e10),
                (64, 2.81e10),
                (256, 3.89e10),
            ),
            "conv float64": (
                (4, 8.62e09),
                (16, 2.14e10),
                (64, 3.2e10),
            ),
            "conv float64 large": (
                (4, 8.57e09),
                (16, 4.68e09),
            ),
            "conv float64 last": (
                (12, 4.19e09),
                (36, 4.86e09),
                (48, 1.7e10),
                (144, 4.41e09),
                (192, 3.28e10),
            ),
            "conv float64 back": (
                (4, 2.06e09),
                (12, 5.67e09),
                (16, 1.22e10),
                (48, 7.48e09),
                (192, 1.74e10),
            ),
            "gemm bfloat16": (
                (1, 6.85e07),
                (4, 1.39e09),
                (16, 2.46e09),
                (64, 2.98e09),
                (256, 1.4e09),
            ),
            "conv bfloat16": (
                (4, 2.3e09),
                (16, 1.3e09),
                (64, 1.29e09),
            ),
            "conv bfloat16 large": (
                (4, 1.27e09),
                (16, 9e08),
            ),
            "conv bfloat16 last": (
                (12, 1.66e09),
                (36, 3.96e09),
                (48, 6.39e09),
                (144, 9.73e09),
                (192, 9.85e09),
            ),
            "conv bfloat16 back": (
                (4, 7.18e08),
                (12, 2.86e09),
                (16, 5.5e09),
                (48, 7.39e09),
                (192, 1.08e10),
            ),
            "gemm widened": (
                (1, 1.96e08),
                (4, 1.59e09),
                (16, 2.14e10),
                (64, 6.14e10),
                (256, 8.67e10),
            ),
            "single": (
                (9, 3.34e09),
                (49, 1.51e10),
                (225, 2.68e09),
                (961, 2.94e09),
            ),
            "single back": (
                (9, 2.06e09),
                (49, 2.99e09),
                (225, 3.36e09),
                (961, 3.07e09),
            ),
            "single last": (
                (9, 4.86e09),
                (49, 1.96e10),
                (225, 4.02e10),
                (961, 5.98e10),
            ),
            "single last back": (
                (9, 2.46e09),
                (49, 7.46e09),
                (225, 3.49e09),
                (961, 8.99e08),
            ),
            "gather near": (
                (4, 2.7e09),
                (32, 1.85e10),
                (128, 5.33e10),
                (512, 6.48e10),
            ),
            "gather middle": (
                (4, 2.01e09),
                (32, 1.66e10),
                (128, 4.63e10),
                (512, 4.8e10),
            ),
            "gather far": (
                (4, 5.94e08),
                (32, 4.48e09),
                (128, 1.08e10),
                (512, 1.21e10),
            ),
            "stream": (
                (16400, 7.87e09),
                (262000, 4.36e10),
                (4.19e06, 6e10),
                (6.71e07, 3.05e09),
            ),
            "scatter": ((1, 1.58e10),),
            "turn": ((1, 5.15e09),),
            "fft": ((1, 3.85e09),),
            "pool max": (
                (4, 5.01e07),
                (25, 1.61e07),
            ),
            "pool sum": (
                (4, 1.08e08),
                (25, 4.94e07),
            ),
            "conv transposed": (
                (4, 1.76e09),
                (16, 2.05e10),
                (64, 6.82e10),
            ),
            "image": ((1, 917000),),
            "slice": ((1, 127000),),
            "mix": (
                (1, 8.97e09),
                (8, 4.4e09),
                (64, 1.02e10),
            ),
            "call": ((1, 34800),),
        },
        {
            "native": 2.86e-05,
            "im2col": 7.3e-05,
            "fft": 0.00047,
            "dense": 0.000216,
            "native weight": 0.000147,
            "im2col weight": 0.00018,
            "fft weight": 0.00104,
            "dense weight": 0.000409,
            "native back": 0.000161,
            "im2col back": 0.000127,
            "fft back": 0.00116,
            "dense back": 0.000425,
            "sparse:aggregate": 4.07e-05,
            "sparse:transform": 3.77e-05,
            "sparse:aggregate weight": 0.000133,
            "sparse:transform weight": 0.000221,
            "sparse:aggregate back": 0.000227,
            "sparse:transform back": 0.000222,
            "recurrence:aggregate": 3.43e-05,
            "recurrence:transform": 4.26e-05,
            "recurrence:aggregate weight": 0.00014,
            "recurrence:transform weight": 0.000234,
            "recurrence:aggregate back": 0.000237,
            "recurrence:transform back": 0.000244,
            "gft": 3.11e-05,
            "gft weight": 0.000136,
            "gft back": 0.000192,
        },
    ),
}
