"""Layout of the figures of results: size, labels, ticks and legend, set after an experiment has drawn its rows.

Most figures are drawn by the module of their experiment, whose code is hashed in its rows. What concerns only the
appearance is set here, so a change of layout does not make rows out of date.
"""

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from experiments.harness.common import Row
from experiments.harness.render import Draw, Figure, get

WIDTH_INCHES = 7
Step = Callable[[Any], None]


def laid_out(figure: Figure, *steps: Step, title: str = "", **settings: Any) -> Figure:
    """The figure, with functions applied to its axes and properties of the axes set after it is drawn.

    Args:
        figure: the figure as its experiment draws it.
        steps: functions of the axes, called in this order.
        title: replaces the title of the figure.
        settings: arguments of `axes.set`, such as `xlabel`.
    """

    @functools.wraps(figure.draw)
    def draw(axes: Any, rows: Sequence[Row]) -> None:
        figure.draw(axes, rows)
        axes.set(**settings)
        for step in steps:
            step(axes)

    return replace(figure, draw=draw, title=title or figure.title)


def grouped(rows: Sequence[Row], label: str, metric: str, scale: float = 100.0) -> dict[str, list[float]]:
    """The values of `metric`, times `scale`, of the rows with the same label.

    >>> grouped([{"a": "x", "b": 0.5}, {"a": "y", "b": 0.25}, {"a": "x", "b": 0.75}], "a", "b")
    {'x': [50.0, 75.0], 'y': [25.0]}
    """
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(str(get(row, label)), []).append(get(row, metric) * scale)
    return found


def means(rows: Sequence[Row], label: str, metric: str, scale: float = 100.0) -> dict[str, float]:
    """The means of `grouped`."""
    return {name: statistics.fmean(values) for name, values in grouped(rows, label, metric, scale).items()}


def spread(values: Sequence[float]) -> float:
    """The standard deviation, 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def dots(label: str, column: str, metric: str, scale: float = 100.0) -> Draw:
    """One line per label and one mark per column: mean of `metric` with one standard deviation, best label on top."""

    def draw(axes: Any, rows: Sequence[Row]) -> None:
        found: dict[str, dict[str, list[float]]] = {}
        for row in rows:
            cells = found.setdefault(str(get(row, column)), {})
            cells.setdefault(str(get(row, label)), []).append(get(row, metric) * scale)
        names = sorted({name for cells in found.values() for name in cells})
        first = next(iter(found.values()))
        names.sort(key=lambda name: np.mean(first[name]) if name in first else -np.inf)
        for i, (place, cells) in enumerate(found.items()):
            y = [names.index(name) for name in cells]
            std = [np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in cells.values()]
            mean = [np.mean(v) for v in cells.values()]
            axes.errorbar(mean, y, xerr=std, fmt="os^Dv"[i % 5], markersize=5, capsize=2, label=place)
        axes.figure.set_size_inches(WIDTH_INCHES, 1.3 + 0.22 * len(names))
        axes.set_yticks(range(len(names)), names, fontsize="small")
        axes.set(xlabel=metric.split(".")[-1].replace("_", " "), ylim=(-0.7, len(names) - 0.3))
        axes.grid(axis="y", linewidth=0.4)
        axes.set_axisbelow(True)
        axes.legend(fontsize="small")

    return draw


def by_size(label: str, size: str, metric: str, scale: float = 100.0) -> Draw:
    """One line per label: mean of `metric` against a size, with one standard deviation, side by side at each size."""

    def draw(axes: Any, rows: Sequence[Row]) -> None:
        found: dict[str, dict[float, list[float]]] = {}
        for row in rows:
            cells = found.setdefault(str(get(row, label)), {})
            cells.setdefault(get(row, size), []).append(get(row, metric) * scale)
        sizes = sorted({x for cells in found.values() for x in cells})
        for i, (name, cells) in enumerate(found.items()):
            places = [sizes.index(x) + 0.06 * (i - (len(found) - 1) / 2) for x in sorted(cells)]
            y = [np.mean(cells[x]) for x in sorted(cells)]
            std = [np.std(cells[x], ddof=1) if len(cells[x]) > 1 else 0.0 for x in sorted(cells)]
            axes.errorbar(places, y, yerr=std, fmt="o-", markersize=4, linewidth=1, capsize=2, label=name)
        axes.set_xticks(range(len(sizes)), [f"{x:,g}" for x in sizes])
        axes.legend(fontsize="small")

    return draw


def join_bars(axes: Any) -> None:
    """Move the bars of each group of `render.bars` together and to its tick, where networks have no rows yet."""
    groups: dict[int, list[Any]] = {}
    for bars in axes.containers:
        if hasattr(bars, "patches") and bars.patches[0].get_width():
            groups.setdefault(int(bars.patches[0].get_x()), []).append(bars)
    for group, members in groups.items():
        members.sort(key=lambda bars: bars.patches[0].get_x())
        for i, bars in enumerate(members):
            (bar,) = bars.patches
            centre = group + 0.5 + (i - (len(members) - 1) / 2) * bar.get_width() / 0.9
            shift = centre - bar.get_width() / 2 - bar.get_x()
            bar.set_x(bar.get_x() + shift)
            for whiskers in bars.errorbar[2] if bars.errorbar else ():
                whiskers.set_segments([np.add(segment, [shift, 0]) for segment in whiskers.get_segments()])
    axes.set_xlim(0, max(groups, default=0) + 1)


def bars_from_one(axes: Any) -> None:
    """Start horizontal bars of ratios on a logarithmic axis at 1, the ratio of equal times, and write out the ticks."""
    for bar in axes.patches:
        end = bar.get_x() + bar.get_width()
        bar.set_x(1)
        bar.set_width(end - 1)
    axes.margins(y=0.01)
    decimals(axes.xaxis)


def decimals(*sides: Any) -> None:
    """Write the ticks of logarithmic axes as 1, 2, 5, 10 instead of as powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for side in sides:
        if side.get_scale() != "log":  # nothing was drawn
            continue
        low, high = side.get_view_interval()
        side.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,), numticks=20))
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.12g}"))
        side.set_minor_formatter(NullFormatter())


def decimal_axes(axes: Any) -> None:
    """`decimals` for both axes."""
    decimals(axes.xaxis, axes.yaxis)


def decimal_values(axes: Any) -> None:
    """`decimals` for the vertical axis."""
    decimals(axes.yaxis)


def measured_sizes(axes: Any) -> None:
    """One tick at each size that was measured, written out."""
    from matplotlib.ticker import NullFormatter

    sizes = sorted({float(x) for line in axes.lines for x in line.get_xdata()})
    axes.set_xticks(sizes, [f"{size:,g}" for size in sizes] if max(sizes, default=0) < 1e6 else None)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_minor_formatter(NullFormatter())


def whole_epochs(axes: Any) -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def legend_beside(axes: Any) -> None:
    """The legend to the right of the axes, as high as it needs; lines beyond the ten colours of the cycle are black."""
    for line in axes.lines[10:]:
        line.set_color("black")
    if axes.lines:
        wide, high = axes.figure.get_size_inches()
        axes.figure.set_size_inches(wide, max(high, 0.5 + 0.2 * len(axes.lines)))
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))


def fit_image(axes: Any) -> None:
    """The height of the figure from the shape of its image, so that no empty space remains above and below."""
    letters = max((len(label.get_text()) for label in axes.get_yticklabels()), default=0)
    below = 0.2 * (any(label.get_text() for label in axes.get_xticklabels()) + bool(axes.get_xlabel()))
    for image in axes.images:
        high, wide = image.get_array().shape[:2]
        axes.figure.set_size_inches(WIDTH_INCHES, 0.4 + below + (WIDTH_INCHES - 0.09 * letters) * high / wide)
