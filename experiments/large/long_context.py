"""Time and memory of a causal mixer against the number of tokens: a long FFT convolution and attention.

Protocol: one step (value and all gradients) of the mixer alone, with 64 channels, one sequence and one thread. The time
is processor time, the minimum of `repeats` steps after a warm-up; the memory is the peak resident size during these
steps above that before them. Exponents are slopes of lines fitted to the logarithms.

    python -m experiments.sweep long_context
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.harness import common
from experiments.harness.experiment import Experiment, Place
from experiments.harness.render import Figure, Table, plain
from gconv import GConv
from gconv.operators import depthwise

MODELS = ("convolution", "attention")
LEAST_MB = 16  # smaller sizes are dominated by pages and memory pools
TOKENS = {"convolution": tuple(2**i for i in range(9, 17)), "attention": tuple(2**i for i in range(9, 14))}


@dataclass(frozen=True)
class Config:
    """Options."""

    model: Literal["convolution", "attention", "all"] = "all"
    """Mixer."""
    tokens: int = 0
    """0: 512, 1024, ... 65,536, of attention 8192."""
    width: int = 64
    """Channels; a multiple of 4."""
    repeats: int = 3
    """Number of repetitions, of which the minimum is used."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Check the options."""
        if self.tokens < 0 or self.repeats < 1 or self.width < 4 or self.width % 4:
            raise ValueError(
                "tokens must not be negative, repeats at least 1 and width a multiple of 4, "
                f"not {self.tokens}, {self.repeats} and {self.width}"
            )


def expand(config: Config, seeds: int) -> list[Config]:
    """One configuration per run."""
    models: Any = MODELS if config.model == "all" else (config.model,)
    return [
        replace(config, model=model, tokens=n, seed=config.seed + s)
        for s in range(seeds)
        for model in models
        for n in ((config.tokens,) if config.tokens else TOKENS[model])
    ]


def step(config: Config) -> Any:
    """One step as a function."""
    n, w = config.tokens, config.width
    if config.model == "convolution":
        layer = GConv(depthwise(w, n, padding=((n - 1, 0),), bias=False, ndim=1))
        x = torch.randn(1, w, n, requires_grad=True)
        leaves: list[Tensor] = [x, *layer.parameters()]
        dy = torch.randn(1, w, n)
        return lambda: torch.autograd.grad(layer(x, lowering="fft"), leaves, dy)
    q, k, v = (torch.randn(1, 4, n, w // 4, requires_grad=True) for _ in range(3))
    dy = torch.randn(1, 4, n, w // 4)
    return lambda: torch.autograd.grad(F.scaled_dot_product_attention(q, k, v, is_causal=True), (q, k, v), dy)


def run(config: Config, place: Place) -> common.Outcome:
    """Measure one mixer at one length."""
    common.seed_everything(config.seed)
    step(replace(config, tokens=min(config.tokens, 64)))()  # what libraries load once is not counted
    one = step(config)
    common.reset_peak_memory()
    before, times = common.peak_memory_mb(), []
    one()
    for _ in range(config.repeats):
        clock = time.process_time()
        one()
        times.append(time.process_time() - clock)
    metrics = {"cpu_seconds": min(times), "memory_mb": max(0.0, common.peak_memory_mb() - before)}
    return common.Outcome(metrics)


def seen(config: Config, root: Path | None) -> common.Data:
    """The data of a run."""
    return common.Data("random signals", "generated")


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The exponent p of the power law y = c x^p nearest to these points, by their logarithms.

    >>> slope([(1.0, 3.0), (2.0, 12.0), (4.0, 48.0)])
    2.0
    """
    logs = [(math.log2(x), math.log2(y)) for x, y in points]
    mx, my = (sum(v) / len(v) for v in zip(*logs, strict=True))
    return sum((x - mx) * (y - my) for x, y in logs) / sum((x - mx) ** 2 for x, _ in logs)


def exponents(rows: Sequence[common.Row]) -> list[str]:
    """A sentence a mixer and measure."""
    said = []
    for model in MODELS:
        found = [(r["config"]["tokens"], r["metrics"]) for r in rows if r["config"]["model"] == model]
        found.sort(key=lambda pair: pair[0])
        if len({n for n, _ in found}) < 2:
            continue
        text = f"{model}, {found[0][0]:,} to {found[-1][0]:,} tokens: time grows as n^"
        text += f"{slope([(n, m['cpu_seconds']) for n, m in found]):.2f}"
        large = [(n, m["memory_mb"]) for n, m in found if m["memory_mb"] >= LEAST_MB]
        if len({n for n, _ in large}) > 1:
            text += f", memory from {large[0][0]:,} tokens ({LEAST_MB} MB) as n^{slope(large):.2f}"
        said.append(f"{text}.")
    return said


def report(rows: list[common.Row]) -> None:
    """A line a run, and the exponents."""
    for row in rows:
        m = row["metrics"]
        name = f"{row['config']['model']:12s} {row['config']['tokens']:6d}"
        print(f"{name} tokens: {1e3 * m['cpu_seconds']:9.1f} ms, {m['memory_mb']:7.1f} MB")
    print("\n".join(exponents(rows)))


EXPERIMENT = Experiment(
    name="long_context",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=run,
    data=seen,
    smoke={"tokens": 64, "width": 4, "repeats": 1},
    report=report,
    measured=("cpu_seconds", "memory_mb"),
)


def columns(row: common.Row) -> dict[str, float]:
    """Cells of a row: time and memory of a mixer."""
    model, m = row["config"]["model"], row["metrics"]
    return {f"{model}, ms": 1e3 * m["cpu_seconds"], f"{model}, MB": m["memory_mb"]}


TABLE = Table(
    name="long_context",
    experiment="long_context",
    label="config.tokens",
    labels=tuple(map(str, TOKENS["convolution"])),
    cells=columns,
    format=plain,
    vary=("seed", "model"),
    caption=(
        "One step (value and all gradients) of a causal mixer of 64 channels on one sequence, one thread: processor "
        "time and resident memory. Attention is torch's fused kernel, four heads, up to 8,192 tokens."
    ),
    command="python -m experiments.sweep long_context --official",
    remarks=exponents,
)


def draw(axes: Any, rows: Sequence[common.Row]) -> None:
    """Time against tokens."""
    for model in MODELS:
        found = sorted(
            (r["config"]["tokens"], r["metrics"]["cpu_seconds"]) for r in rows if r["config"]["model"] == model
        )
        if found:
            axes.loglog(*zip(*found, strict=True), "o-", base=2, label=model)
    axes.set_xlabel("tokens")
    axes.set_ylabel("seconds a step")
    axes.legend()


FIGURE = Figure(name="long_context", experiment="long_context", draw=draw, title="Time of a step against tokens")

main = EXPERIMENT.main

if __name__ == "__main__":
    main()
