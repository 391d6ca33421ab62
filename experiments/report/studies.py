"""Figures of the ablations of a CNN, and sentences computed from their rows that answer the questions of each table.

A sentence is left out until all networks that it compares have rows.
"""

from collections.abc import Sequence
from typing import Any

from experiments.harness.common import Row
from experiments.harness.render import Figure, get
from experiments.images import overfitting, studies, superpixels
from experiments.images.pixel_operators import SPECS
from experiments.report.pictures import WIDTH_INCHES, grouped, means, spread

ACCURACY = "metrics.test_accuracy"


def listed(values: dict[str, float], best_first: bool = False) -> str:
    """Names and numbers.

    >>> listed({"a": 1.0, "b": 2.04}, best_first=True)
    'b 2.0, a 1.0'
    """
    names = sorted(values, key=lambda name: -values[name]) if best_first else list(values)
    return ", ".join(f"{name} {values[name]:.1f}" for name in names)


# -- kernel size, stride, padding, activation, depth, lightweight blocks ---------------------------------------------


def ablations(rows: Sequence[Row]) -> list[str]:
    """One sentence per choice."""
    test, border = (means(rows, "config.network", f"metrics.{name}") for name in ("test_accuracy", "border_accuracy"))
    cost = means(rows, "config.network", "metrics.multiply_adds", 1.0)

    def chosen(values: dict[str, float], names: dict[str, str]) -> dict[str, float]:
        return {title: values[name] for title, name in names.items()}

    kernels = {f"{k}x{k}": "base" if k == 3 else f"kernel {k}x{k}" for k in (1, 3, 5, 7)}
    equal = {title: name if name == "base" else f"{name}=" for title, name in kernels.items()}
    down = {"max pooling": "base", "average pooling": "stride: mean", "convolutions with stride 2": "stride: stride"}
    padding = {"zeros": "base"} | {n: f"padding {n}" for n in ("circular", "reflect", "replicate")}
    padding |= {"no padding": "padding valid"}
    activation = {name: "base" if name == "relu" else name for name in studies.ACTIVATIONS}
    depth = {"one": "depth 1", "two": "base", "four": "depth 4"}
    light = {"MobileNetV2's": "light: mobile", "ShuffleNetV2's": "light: shuffle"}
    found = []
    if {*kernels.values(), *equal.values(), "one 5x5"} <= test.keys():
        found.append(
            f"Kernel size: {listed(chosen(test, kernels))} % at equal width; {listed(chosen(test, equal))} with an "
            f"equal number of parameters. Two 3x3 convolutions per stage reach {test['base']:.1f}, one 5x5 "
            f"{test['one 5x5']:.1f}."
        )
    if {*down.values(), "stride: none"} <= test.keys():
        found.append(
            f"Between the stages: {listed(chosen(test, down), True)} %. At full resolution throughout, "
            f"{test['stride: none']:.1f} with {cost['stride: none'] / cost['base']:.1f} times the multiply-adds."
        )
    if {*padding.values()} <= test.keys():
        found.append(
            f"Padding: {listed(chosen(test, padding), True)} %; objects at the border: "
            f"{listed(chosen(border, padding), True)}."
        )
    if {*activation.values()} <= test.keys():
        found.append(f"Activation: {listed(chosen(test, activation), True)} %.")
    if {*depth.values()} <= test.keys():
        found.append(f"Convolutions per stage: {listed(chosen(test, depth))} %.")
    if {"base", *light.values()} <= test.keys():
        parts = [f"{who} blocks {test[n]:.1f} % with {cost[n] / cost['base']:.2f}" for who, n in light.items()]
        found.append(
            f"Lightweight blocks: {' and '.join(parts)} times the multiply-adds of `base` ({test['base']:.1f})."
        )
    return found


def draw_ablations(axes: Any, rows: Sequence[Row]) -> None:
    """One line per network: accuracy on the test images and with objects at the border; a line at the base."""
    for marker, metric, name in (
        ("o", "test_accuracy", "test images"),
        ("^", "border_accuracy", "moved to the border"),
    ):
        found = grouped(rows, "config.network", f"metrics.{metric}")
        names = [name for name in studies.NETWORKS if name in found][::-1]
        mean = means(rows, "config.network", f"metrics.{metric}")
        std = [spread(found[n]) for n in names]
        place = range(len(names))
        axes.errorbar([mean[n] for n in names], place, xerr=std, fmt=marker, markersize=5, capsize=2, label=name)
        if marker == "o" and "base" in mean:
            axes.axvline(mean["base"], color="grey", linewidth=0.8)
    axes.figure.set_size_inches(WIDTH_INCHES, 1.3 + 0.22 * len(names))
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.set(xlabel="accuracy, %", ylim=(-0.7, len(names) - 0.3))
    axes.grid(axis="y", linewidth=0.4)
    axes.set_axisbelow(True)
    axes.legend(fontsize="small")


# -- remedies against overfitting ------------------------------------------------------------------------------------


def remedies(rows: Sequence[Row]) -> list[str]:
    """Which remedy helps most."""
    test, gap = (means(rows, "config.remedy", f"metrics.{name}") for name in ("test_accuracy", "gap"))
    if not {*overfitting.REMEDIES} <= test.keys():
        return []
    single = [name for name in overfitting.REMEDIES if name not in ("none", "all")]
    gained = {name: test[name] - test["none"] for name in single}
    least = min(single, key=gap.__getitem__)
    return [
        f"Without a remedy {test['none']:.1f} % are reached, and training accuracy is {gap['none']:.1f} points above "
        f"validation accuracy. Points gained on the test images: "
        + ", ".join(f"{name} {gained[name]:+.1f}" for name in sorted(single, key=lambda name: -gained[name]))
        + f", all together {test['all'] - test['none']:+.1f}. The smallest difference between training and validation "
        f"of a single remedy is that of {least}, {gap[least]:.1f} points; all together {gap['all']:.1f}."
    ]


def draw_remedies(axes: Any, rows: Sequence[Row]) -> None:
    """Accuracy on the training (dashed) and the validation images by epoch, a colour per remedy."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(str(get(row, "config.remedy")), []).append(row)
    for i, name in enumerate(name for name in overfitting.REMEDIES if name in found):
        for metric, style in (("train_accuracy", "--"), ("val_accuracy", "-")):
            curves = zip(*(row["metrics"][metric] for row in found[name]), strict=True)
            y = [100 * sum(values) / len(values) for values in curves]
            axes.plot(range(1, len(y) + 1), y, style, color=f"C{i}", linewidth=1, label=name if style == "-" else None)
    axes.plot([], [], "-", color="grey", label="validation images")
    axes.plot([], [], "--", color="grey", label="training images")
    axes.set(xlabel="epoch", ylabel="accuracy, %")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))


# -- other operators on pixels and superpixels -----------------------------------------------------------------------


def recovered(rows: Sequence[Row]) -> list[str]:
    """How much of the difference between a GCN and the CNN other operators on the pixel graph make up for."""
    test = means(rows, "config.network", ACCURACY)
    if not {"1", "9", "pointwise", *SPECS} <= test.keys():
        return []
    share = {name: 100 * (test[name] - test["1"]) / (test["9"] - test["1"]) for name in SPECS}
    return [
        f"Of the {test['9'] - test['1']:.1f} points by which the CNN is above the GCN, the other operators make up, in "
        "%: " + ", ".join(f"{name} {share[name]:.0f}" for name in sorted(share, key=lambda name: -share[name])) + "."
    ]


def superpixel_sentences(rows: Sequence[Row]) -> list[str]:
    """What edges, and directions, are worth on superpixels."""
    test = means(rows, "config.model", ACCURACY)
    if not {*superpixels.MODELS} <= test.keys():
        return []
    graphs = [name for name in superpixels.MODELS if name not in ("mlp", "cnn")]
    gained = {name: test[name] - test["mlp"] for name in graphs}
    best = max(graphs, key=gained.__getitem__)
    return [
        "Points above the network without edges: "
        + ", ".join(f"{name} {gained[name]:+.1f}" for name in sorted(graphs, key=lambda name: -gained[name]))
        + f". The CNN on the pixels is {test['cnn'] - test[best]:.1f} points above the best of them ({best})."
    ]


FIGURES = (
    Figure(
        name="studies",
        experiment="studies",
        draw=draw_ablations,
        title="CIFAR-10, ablations of a small CNN",
        where=(("config.epochs", 8), ("config.limit", None), ("config.width", 16)),
    ),
    Figure(
        name="overfitting",
        experiment="overfitting",
        draw=draw_remedies,
        title="Training on 5,000 images of CIFAR-10",
        where=(("config.epochs", 30), ("config.images", 5000)),
    ),
)
