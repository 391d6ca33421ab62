"""Throughputs of this machine, from which the planner predicts times: measured ones from a file, or built-in defaults.

A throughput is a curve: points (size, amount per second), interpolated linearly on logarithmic scales. What amount and
size are depends on the kind of work:

    gemm TYPE            flops         a matrix product X W, by the columns of W; for bfloat16 (`widened`: computed in
                                       float32) by the smaller side of W
    gemm TYPE inner      flops         additional time if W has few rows
    gemm heads           flops         one product per head, by the columns of each W
    conv                 flops         a float32 convolution or its gradient, by the output channels per group; other
                                       types are slower by the ratio of their matrix products
    single, single last  flops         depthwise convolutions of contiguous images and of channels-last ones, by the
                                       square of the kernel size; the second also for gradients in x
    single weight, single weight last  flops   gradients in the weight of depthwise convolutions
    transposed           calls         additional time of a transposed convolution, by stride
    onednn               calls         overhead of oneDNN's calls: forward, with one gradient, with two
    image                images        overhead per image in oneDNN: a single number
    group                calls         overhead per group outside of oneDNN: forward, and for each gradient
    columns              bytes         written by the taps of a transposed convolution outside of oneDNN: the same
    gather near, middle, far   bytes   rows read through an index from tables of `TABLES` bytes, by the bytes of a row
    sampled              bytes         sampled products (gradients of a learned structure), by the bytes of a row
    stream               bytes         a pass over an array, by the bytes of the array
    turn                 bytes         a change of memory layout to channels last, by how many channels fall into the
                                       same set of the L1 cache
    scatter, back        bytes         max over entries, and its gradient, by the bytes of a row
    pool sum, max, back  sites out     times channels, by the number of taps; `volume`: in 3-D
    fft, mix             flops         transforms: a single number; products of spectra: by channels times signals
    call, slice          library calls one term of a recurrence, and the slice of one tap: single numbers

`python -m gconv.calibrate` measures them and writes the file that `rates` reads: $GCONV_CALIBRATION, else
gconv/calibration.json in the user's cache folder. If there is no such file, or no home folder, or (with one warning)
the file cannot be used, plans use the built-in throughputs: rates.json in this package, which was written by that
command for one thread of an AMD EPYC (Zen 4; depthwise convolutions: Zen 5; AVX-512). For more threads they are used,
too, and predict single-thread times. `--device cuda` measures a GPU, for layers that run there; without it, plans use
the throughputs of the CPU.
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
from gconv.errors import first_line

Curve = tuple[tuple[float, float], ...]
FORMAT = 2
MAX_BYTES, MAX_THREADS, MAX_POINTS = 1 << 24, 1 << 16, 1 << 12  # of a calibration file; of one curve
SMALLEST, LARGEST = 1e-30, 1e30  # limits for sizes and throughputs
TYPES = ("float32", "float64", "bfloat16")
DEVICES = ("cuda", "xpu")  # other than the CPU
COMPARED_COLUMNS = 64.0  # columns of W at which matrix products in two types are compared
TABLES = {"near": 2.0**18, "middle": 2.0**22, "far": 2.0**26}  # bytes of what a sparse product gathers from


def at(curve: Curve, size: float) -> float:
    """The value of a curve at a size, constant beyond its ends.

    >>> at(((1.0, 10.0), (100.0, 1000.0)), 10.0), at(((1.0, 10.0),), 7.0)
    (100.0, 10.0)
    """
    if len(curve) == 1 or size <= curve[0][0]:
        return curve[0][1]
    if size >= curve[-1][0]:
        return curve[-1][1]
    k = bisect([point[0] for point in curve], size)
    (low, a), (high, b) = curve[k - 1], curve[k]
    between = a * (b / a) ** (math.log(size / low) / math.log(high / low))
    return min(max(round(between, 9), min(a, b)), max(a, b))  # tiny rates would be rounded to 0


@dataclass(frozen=True)
class Rates:
    """Throughputs and overheads for predicting times.

    Args:
        curves: kind of work -> amount per second, by size.
        overheads: seconds of a call on tiny inputs, by "LOWERING" for the forward pass, "LOWERING weight" with the
            gradient in the weight, and "LOWERING back" with the gradient in x, too.
        source: where the numbers come from.
    """

    curves: Mapping[str, Curve]
    overheads: Mapping[str, float]
    source: str = "defaults"

    def seconds(self, kind: str, amount: float, size: float = 1.0, table: float = 0.0) -> float:
        """The time that an amount of work takes; "gather" reads rows of `size` bytes at random from a table."""
        if not amount:
            return 0.0
        if kind.startswith("conv "):  # the curve is for float32
            float32, own = (at(self.curves[f"gemm {type}"], COMPARED_COLUMNS) for type in ("float32", kind[5:]))
            return amount * float32 / own / at(self.curves["conv"], size)
        if kind != "gather":
            return amount / at(self.curves[kind], size)
        return amount / at(tuple((TABLES[p], at(self.curves[f"gather {p}"], size)) for p in TABLES), table)

    def overhead(self, name: str, form: str, passes: str) -> float:
        """The overhead of a call: the one measured for the form, or for the form without some of its last words."""
        while form and f"{name}{form}{passes}" not in self.overheads:
            form = form[: form.rindex(" ")]
        return self.overheads.get(f"{name}{form}{passes}", 0.0)


def words(name: str) -> tuple[str, str, str]:
    """The arguments of `Rates.overhead` from the name of an overhead: lowering, form and passes.

    >>> words("dense heads many back"), words("dense weight"), words("im2col")
    (('dense', ' heads many', ' back'), ('dense', '', ' weight'), ('im2col', '', ''))
    """
    passes = next((end for end in (" weight", " back") if name.endswith(end)), "")
    lowering, space, form = name.removesuffix(passes).partition(" ")
    return lowering, space + form, passes


def path() -> Path | None:
    """The file of the calibration; None if there is neither $GCONV_CALIBRATION nor a home folder."""
    given = os.environ.get("GCONV_CALIBRATION")
    folder = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(given).expanduser() if given else Path(folder).expanduser() / "gconv" / "calibration.json"
    except RuntimeError:  # no home folder
        return Path(given) if given else None


def rates(device: str = "cpu") -> Rates:
    """The throughputs of a type of device, from the calibration file or the defaults.

    On the CPU, and if the file has none for the device, they are those for the nearest number of threads. The file is
    read once. If it cannot be used, there is one warning, and the built-in throughputs are used.
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
        form: words, each after a space, that select the overhead, see `Rates.overhead`.
        passes: "", " weight" or " back".
        steps: its work.
        device: its type, "cpu" or "cuda".
    """
    now = rates(device)
    return now.overhead(name, form, passes) + sum(now.seconds(*step) for step in steps)


# The same as torch.compiler.assume_constant_result, without importing the compiler, which cannot read files and should
# not guard on all these numbers.
price._dynamo_marked_constant = True  # type: ignore[attr-defined]


@function("calibrations")
def _read(where: Path | None) -> Mapping[int | str, Rates]:
    try:
        if where is None or not where.exists():
            return DEFAULTS
        return parse(json.loads(read_bounded(where)), str(where))
    except (NotADirectoryError, FileNotFoundError):
        return DEFAULTS
    except Exception as error:  # layers work without the file, whatever is wrong with it
        return _unusable(where, getattr(error, "strerror", None) or first_line(error))


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
        f"The calibration {where} cannot be used ({why}), so plans use the built-in rates; "
        "`python -m gconv.calibrate` writes a new one.",
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
    """A number from `least` to `LARGEST`; compared before the conversion, which huge integers overflow."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= LARGEST:
        raise ValueError(f"{what}: a number is not from {least:g} to {LARGEST:g}")
    return float(value)


def _built_in() -> str:
    content = pkgutil.get_data("gconv", "rates.json")  # works in zip archives, too
    if content is None:
        raise ImportError("gconv/rates.json is missing; install gconv again.")
    return content.decode("utf-8")


DEFAULTS = parse(json.loads(_built_in()), "defaults")
