"""Checkerboard artefacts of transposed convolutions occur if the stride does not divide the kernel size.

The number of taps that contribute to an output pixel of a transposed convolution is the sum of its row in the matrix
with unit weights. If this number differs between neighbouring pixels, a constant image is mapped to a pattern. The
unevenness is (largest - smallest) / mean over the pixels away from the border. With learned weights the row sums can
differ even if the numbers of taps agree, so the unevenness is also given for random initial kernels (mean over ten).
Nearest-neighbour upsampling followed by a convolution is even in both cases.

    python -m experiments.sweep checkerboard
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from experiments.harness import common
from experiments.harness.experiment import Experiment, Place
from gconv import GConv, Grid
from gconv.analysis import matrix
from gconv.operators import conv2d, conv_transpose2d

CASES = ((2, 2), (3, 2), (4, 2), (5, 2), (3, 3), (4, 3), (6, 3))


@dataclass(frozen=True)
class Config:
    """An upsampling layer."""

    way: Literal["all", "transposed", "resized"] = "all"
    """Kind of upsampling: transposed convolution, or resizing followed by a convolution."""
    kernel: int = 0
    """Kernel size; 0 for all."""
    stride: int = 0
    """Stride; 0 for all."""
    side: int = 7
    """Pixels per side of the input."""


def expand(config: Config, seeds: int) -> list[Config]:
    """One run per kernel size and stride; nothing is trained."""
    if config.side < 5:
        raise ValueError(f"side must be at least 5, so that there are pixels away from the border, not {config.side}")
    found = [replace(config, way="transposed", kernel=k, stride=s) for k, s in CASES]
    found += [replace(config, way="resized", kernel=3, stride=s) for s in (2, 3)]
    axes = (("way", "all"), ("kernel", 0), ("stride", 0))
    chosen = [c for c in found if all(getattr(config, a) in (every, getattr(c, a)) for a, every in axes)]
    if not chosen:
        raise ValueError(f"there is no such case; kernels and strides are {CASES}, resized has kernel 3")
    return chosen


def sums(config: Config, layer: GConv) -> Tensor:
    """The row sums of the matrix as an image without its border: the output for a constant image."""
    side = config.side * (config.stride if config.way == "resized" else 1)
    a = matrix(layer, domain=Grid((side, side)))
    if config.way == "resized":  # upsampling: a column of the small image stands for stride x stride pixels
        low = torch.arange(side) // config.stride
        column = (low[:, None] * config.side + low).flatten()
        a = torch.zeros(a.shape[0], config.side**2, dtype=a.dtype).index_add_(1, column, a)
    out = round(a.shape[0] ** 0.5)
    border = config.kernel
    return a.sum(1).view(out, out)[border : out - border, border : out - border]


def uneven(values: Tensor) -> float:
    """(Largest - smallest) / mean of the absolute values.

    >>> uneven(torch.tensor([1.0, 2.0, 3.0]))
    1.0
    """
    return ((values.max() - values.min()) / values.abs().mean()).item()


def run(config: Config, place: Place) -> common.Outcome:
    """Compute the row sums of the matrix."""
    common.seed_everything(0)
    if config.way == "transposed":
        spec = conv_transpose2d(1, 1, config.kernel, config.stride, bias=False)
    else:
        spec = conv2d(1, 1, config.kernel, padding=config.kernel // 2, bias=False)
    drawn = [uneven(sums(config, GConv(spec).double())) for _ in range(10)]
    layer = GConv(spec).double()
    with torch.no_grad():
        layer.weight.fill_(1.0)  # type: ignore[union-attr]
    counts = sums(config, layer)
    metrics = {"case": name(config), "least": counts.min().item(), "most": counts.max().item()}
    return common.Outcome(metrics | {"uneven": uneven(counts), "uneven_at_start": sum(drawn) / len(drawn)})


def name(config: Config) -> str:
    """The label of a table row.

    >>> name(Config("transposed", 4, 2))
    'transposed 4x4, stride 2'
    """
    what = "stride" if config.way == "transposed" else "copies"
    return f"{config.way} {config.kernel}x{config.kernel}, {what} {config.stride}"


def report(rows: list[common.Row]) -> None:
    """Print one line per case."""
    for row in rows:
        found = row["metrics"]
        print(f"{found['case']:28s} {found['uneven']:.2f} by numbers of taps, {found['uneven_at_start']:.2f} at start")


EXPERIMENT = Experiment(
    name="checkerboard",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=run,
    data=lambda config, root: common.Data("no data", "none"),
    smoke={"kernel": 3},
    report=report,
    tolerance={"uneven_at_start": 1e-6},
)

main = EXPERIMENT.main

if __name__ == "__main__":
    main()
