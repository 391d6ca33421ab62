"""The figure of `experiments.images.ladder`, accuracy against the number of distinct taps, and what its rows say."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.harness.common import Row
from experiments.harness.render import Figure
from experiments.report.pictures import grouped, means

TAPS = {"pointwise": 0, "1": 1, "2": 2, "3": 3, "6": 6, "9": 9}


def draw(axes: Any, rows: Sequence[Row]) -> None:
    """Draw mean and standard deviation per rung; networks with mixed stages at the side; p4 and p4m as lines."""
    found = grouped(rows, "metrics.network", "metrics.test_accuracy")
    spread = {name: (np.mean(y), np.std(y, ddof=1) if len(y) > 1 else 0.0) for name, y in found.items()}
    rungs = [name for name in TAPS if name in spread]
    mean, std = (np.array([spread[name][part] for name in rungs]) for part in (0, 1))
    axes.errorbar([TAPS[name] for name in rungs], mean, std, marker="o", capsize=3, label="all stages")
    mixed = [name for name in spread if name.startswith("3, ")]
    for number, name in enumerate(mixed):
        axes.errorbar(10 + number / 2, *spread[name], marker="s", capsize=3, color=f"C{number + 1}", label=name)
    for name, style in (("p4", "--"), ("p4m", ":")):
        if name in spread:
            axes.axhline(spread[name][0], linestyle=style, color="grey", label=name)
    axes.set(xlabel="distinct weight matrices in a 3 x 3 kernel (0: the centre pixel only)", ylabel="test accuracy, %")
    axes.set_xticks(list(TAPS.values()))
    axes.legend(fontsize="small")


def sentences(rows: Sequence[Row]) -> list[str]:
    """Where direction matters, for below the table: what three matrices instead of nine cost in which stages."""
    mean = means(rows, "metrics.network", "metrics.test_accuracy")
    places = ("first", "middle", "last")
    if not {"9", "3", *(f"3, {here}" for here in places), *(f"3, not {here}" for here in places)} <= mean.keys():
        return []
    lost = {name: mean["9"] - y for name, y in mean.items()}
    one = ", ".join(f"{lost[f'3, {here}']:.1f} (only in the {here})" for here in places)
    rest = ", ".join(f"{lost[f'3, not {here}']:.1f} (all but the {here})" for here in places)
    return [
        "Where direction matters: points of accuracy that three matrices instead of nine cost, by stage: "
        f"{one}, {rest}, {lost['3']:.1f} (all)."
    ]


FIGURE = Figure(
    name="ladder",
    experiment="ladder",
    draw=draw,
    title="CIFAR-10: test accuracy by number of distinct weight matrices",
    where=(("config.spec", ""), ("config.epochs", 8), ("config.limit", None)),
)
