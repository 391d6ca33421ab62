"""How fast this machine does what the lowerings are made of: measured rates, read lazily, and defaults.

A rate is a curve: points (size, amount a second), straight lines between them on logarithmic scales. What the size is
depends on the kind of work:

    gemm TYPE            flops              by the columns of W, or by the smaller of its sides (bfloat16, `widened`:
                                            through float32)
    gemm TYPE inner      flops              what few rows of W take besides
    gemm heads           flops              a product for each head, by the columns of its W
    conv TYPE FORM       flops              by the channels out of a group; the forms are those that `native` names:
                                            none, large, line, point (1x1), plain (1x1 without oneDNN), volume, dilated,
                                            groups, transposed
    conv TYPE FORM back  flops              each of the two gradients; by the same
    conv TYPE last       flops              channels last in memory; by channels (mean of in and out) times kernel side
    single, last         flops              each channel by itself, by the square of the kernel's side; `last`: channels
                                            last in memory; `weight`, `back`: the gradients in the weight and in x
    transposed           calls              what a transposed one takes more than a plain one, by stride
    onednn               calls              what its calls take besides: forward, with one gradient, with two
    image, image plain   images             beyond their arithmetic, by oneDNN and by torch's own: single numbers
    lay, weight          bytes              what 1x1 kernels, and weights, take to be laid out anew for oneDNN
    laid over            bytes              what transposed ones write, by stride; `weight`, `back`: as above
    group                calls              a group more, by torch's own: forward, and for a gradient
    columns              bytes              what the taps of a transposed one write, by torch's own: the same
    gather near, middle, far   bytes        by the bytes of a row; tables of `TABLES` bytes
    sampled              bytes              the product for what a structure learns; by the bytes of a row
    stream               bytes              by the bytes of the array
    turn                 bytes              laying channels side by side, by how many share a place of the nearest cache
    scatter, back        bytes              max over entries, and its gradient; by the bytes of a row
    pool sum, max, back  sites out          times channels; by the taps; `volume`: in 3-D, `max line`: in 1-D
    fft, mix             flops              transforms: a single number; mixing in between: by channels times signals
    call, slice          library calls      a term of a recurrence and what one tap reads: single numbers

`python -m gconv.calibrate` measures them and writes the file that `rates` reads: $GCONV_CALIBRATION, else
gconv/calibration.json in the user's cache folder. Without a file the defaults serve: rates.json beside this module,
which that command wrote on two cores of an AMD EPYC (Zen 4, AVX-512).
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


def price(name: str, form: str, passes: str, steps: tuple[tuple[str, float, float, float], ...]) -> float:
    """Seconds of a call of a lowering: its overhead, and its steps (kind, amount, size, table).

    Args:
        name: of the lowering.
        form: of its overhead, words after spaces; where it was not measured so, with fewer of them.
        passes: "", " weight" or " back".
        steps: its work.
    """
    now = rates()
    while form and f"{name}{form}{passes}" not in now.overheads:
        form = form[: form.rindex(" ")]
    begun = now.overheads.get(f"{name}{form}{passes}", 0.0)
    return begun + sum(now.seconds(*step) for step in steps)


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
        _check(curves, overheads, DEFAULTS if source != "defaults" else {})
        found[int(threads)] = Rates(curves, overheads, source)
    return found


def _check(curves: Mapping[str, Curve], overheads: Mapping[str, float], like: Mapping[int, Rates]) -> None:
    for want in like.values():
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


DEFAULTS = parse(json.loads(Path(__file__).with_name("rates.json").read_text(encoding="utf-8")), "defaults")
