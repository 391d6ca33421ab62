"""How fast this machine does what the lowerings are made of: measured rates, read lazily, and defaults.

A rate is a curve: points (size, amount a second), straight lines between them on logarithmic scales. What the size is
depends on the kind of work:

    gemm TYPE            flops              by the columns of W, or by the smaller of its sides (bfloat16, `widened`:
                                            through float32)
    gemm TYPE inner      flops              what few rows of W take besides
    gemm heads           flops              a product for each head, by the columns of its W
    conv                 flops              a convolution in float32 or a gradient of it, by the channels out of a
                                            group; in another type as much slower as its products of matrices are
    single               flops              each channel by itself, by the square of the kernel's side
    transposed           calls              what a transposed one takes more than a plain one, by stride
    onednn               calls              what its calls take besides: forward, with one gradient, with two
    image                images             beyond their arithmetic, by oneDNN: a single number
    group                calls              a group more, by torch's own: forward, and for a gradient
    columns              bytes              what the taps of a transposed one write, by torch's own: the same
    gather near, middle, far   bytes        by the bytes of a row; tables of `TABLES` bytes
    sampled              bytes              the product for what a structure learns; by the bytes of a row
    stream               bytes              by the bytes of the array
    turn                 bytes              laying channels side by side, by how many share a place of the nearest cache
    scatter, back        bytes              max over entries, and its gradient; by the bytes of a row
    pool sum, max, back  sites out          times channels; by the taps; `volume`: in 3-D
    fft, mix             flops              transforms: a single number; mixing in between: by channels times signals
    call, slice          library calls      a term of a recurrence and what one tap reads: single numbers

`python -m gconv.calibrate` measures them and writes the file that `rates` reads: $GCONV_CALIBRATION, else
gconv/calibration.json in the user's cache folder. Without such a file, without a home folder, and (with one warning)
where the file cannot be used, plans take the built-in rates: rates.json beside this module, which that command wrote
for one thread of an AMD EPYC (Zen 4, AVX-512). With more threads plans use these too, and predict the times of one.
`--device cuda` measures a GPU, for layers that run there; until then they are planned with the rates of the CPU.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import pkgutil
import warnings
from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gconv.caches import function

Curve = tuple[tuple[float, float], ...]
FORMAT = 2
MAX_BYTES, MAX_THREADS, MAX_POINTS = 1 << 24, 1 << 16, 1 << 12  # of a calibration file; of one curve
SMALLEST, LARGEST = 1e-30, 1e30  # sizes and rates
TYPES = ("float32", "float64", "bfloat16")
DEVICES = ("cuda", "xpu")  # beside the CPU
WIDE = 64.0  # columns at which products of matrices in two types are compared
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
        if kind.startswith("conv "):  # one curve, for float32
            wide, own = (at(self.curves[f"gemm {type}"], WIDE) for type in ("float32", kind[5:]))
            return amount * wide / own / at(self.curves["conv"], size)
        if kind != "gather":
            return amount / at(self.curves[kind], size)
        return amount / at(tuple((TABLES[p], at(self.curves[f"gather {p}"], size)) for p in TABLES), table)

    def overhead(self, name: str, form: str, passes: str) -> float:
        """Of a call: what was measured for the form, or for the form with fewer of its words at the end."""
        while form and f"{name}{form}{passes}" not in self.overheads:
            form = form[: form.rindex(" ")]
        return self.overheads.get(f"{name}{form}{passes}", 0.0)


def words(name: str) -> tuple[str, str, str]:
    """What `Rates.overhead` takes for a name of an overhead: lowering, form and passes.

    >>> words("dense heads many back"), words("dense weight"), words("im2col")
    (('dense', ' heads many', ' back'), ('dense', '', ' weight'), ('im2col', '', ''))
    """
    passes = next((end for end in (" weight", " back") if name.endswith(end)), "")
    lowering, space, form = name.removesuffix(passes).partition(" ")
    return lowering, space + form, passes


def path() -> Path | None:
    """Where the calibration is stored; None where there is neither $GCONV_CALIBRATION nor a home folder."""
    given = os.environ.get("GCONV_CALIBRATION")
    folder = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(given).expanduser() if given else Path(folder).expanduser() / "gconv" / "calibration.json"
    except RuntimeError:  # no home folder
        return Path(given) if given else None


def rates(device: str = "cpu") -> Rates:
    """The rates of a type of device: those of the file, or defaults.

    On the CPU, and where the file has none of the device, they are those of the nearest number of threads. The file is
    read once. One that cannot be used is one warning, and then plans take the built-in rates.
    """
    found = _read(path())
    if device in found:
        return found[device]
    threads = torch.get_num_threads()
    return found[min((key for key in found if isinstance(key, int)), key=lambda n: (abs(math.log(n / threads)), n))]


def price(
    name: str, form: str, passes: str, steps: tuple[tuple[str, float, float, float], ...], device: str = "cpu"
) -> float:
    """Seconds of a call of a lowering: its overhead, and its steps (kind, amount, size, table).

    Args:
        name: of the lowering.
        form: of its overhead, words after spaces; where it was not measured so, with fewer of them.
        passes: "", " weight" or " back".
        steps: its work.
        device: its type, "cpu" or "cuda".
    """
    now = rates(device)
    return now.overhead(name, form, passes) + sum(now.seconds(*step) for step in steps)


# As torch.compiler.assume_constant_result does, which would import the compiler: it can neither read files nor should
# it watch all these numbers.
price._dynamo_marked_constant = True  # type: ignore[attr-defined]


@function("calibrations")
def _read(where: Path | None) -> Mapping[int | str, Rates]:
    try:
        if where is None or not where.exists():
            return DEFAULTS
        return parse(json.loads(read_bounded(where)), str(where))
    except (NotADirectoryError, FileNotFoundError):
        return DEFAULTS
    except Exception as error:  # whatever is wrong with the file, a layer runs without it
        why = getattr(error, "strerror", None) or str(error).splitlines()[:1] or type(error).__name__
        return _unusable(where, why if isinstance(why, str) else why[0][:200])


def read_bounded(where: Path) -> str:
    """The text of a calibration file. Raises: OSError, ValueError."""
    if not where.is_file():
        raise ValueError("it is not a file")
    with open(where, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
    return content.decode("utf-8")


def _unusable(where: Path | None, why: str) -> Mapping[int | str, Rates]:
    warnings.warn(
        f"The calibration {where} cannot be used ({why}), so plans take the built-in rates; "
        "`python -m gconv.calibrate` writes it anew.",
        stacklevel=2,
    )
    return DEFAULTS


def parse(data: Any, source: str) -> dict[int | str, Rates]:
    """Rates by number of threads of the CPU, and by the type of other devices, from what the file holds.

    Raises:
        ValueError: if it is not a calibration.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("threads"), dict):
        raise ValueError(f"it is not a calibration of format {FORMAT}")
    if not data["threads"]:
        raise ValueError("it has no rates")
    others = data.get("devices", {})
    if not isinstance(others, dict) or not all(key in DEVICES for key in others):
        raise ValueError(f"its devices are not among {', '.join(DEVICES)}")
    found: dict[int | str, Rates] = {_thread_count(key): _rates_of(n, source) for key, n in data["threads"].items()}
    return found | {key: _rates_of(numbers, source) for key, numbers in others.items()}


def _thread_count(key: Any) -> int:
    text = str(key)[:20]
    if not (text.isascii() and text.isdigit() and not text.startswith("0") and int(text) <= MAX_THREADS):
        raise ValueError(f"{text!r} is not a number of threads")
    return int(text)


def _rates_of(numbers: Any, source: str) -> Rates:
    if not isinstance(numbers, dict) or not all(isinstance(numbers.get(key), dict) for key in ("curves", "overheads")):
        raise ValueError("the rates of a number of threads are curves and overheads")
    curves = {kind: _curve(kind, points) for kind, points in numbers["curves"].items()}
    overheads = {name: _number(f"the overhead {name!r}", value, 0.0) for name, value in numbers["overheads"].items()}
    found = Rates(curves, overheads, source)
    for want in (DEFAULTS if source != "defaults" else {}).values():
        missing = [kind for kind in want.curves if kind not in curves]
        missing += [name for name in want.overheads if not found.overhead(*words(name))]
        if missing:
            raise ValueError(f"it lacks {missing[0]!r}")
    return found


def _curve(kind: str, points: Any) -> Curve:
    what = f"{kind!r} is not a curve of positive numbers, its sizes ascending"
    if not isinstance(points, list | tuple) or not 0 < len(points) <= MAX_POINTS:
        raise ValueError(what)
    if not all(isinstance(point, list | tuple) and len(point) == 2 for point in points):
        raise ValueError(what)
    curve = tuple((_number(what, size), _number(what, rate)) for size, rate in points)
    if any(a[0] >= b[0] for a, b in itertools.pairwise(curve)):
        raise ValueError(what)
    return curve


def _number(what: str, value: Any, least: float = SMALLEST) -> float:
    """A number between `least` and `LARGEST`; compared before it is converted, so that no integer is too long."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= LARGEST:
        raise ValueError(f"{what}: a number is not from {least:g} to {LARGEST:g}")
    return float(value)


def _built_in() -> str:
    content = pkgutil.get_data("gconv", "rates.json")  # also from a zip archive
    if content is None:
        raise ImportError("gconv/rates.json is missing; install gconv again.")
    return content.decode("utf-8")


DEFAULTS = parse(json.loads(_built_in()), "defaults")
