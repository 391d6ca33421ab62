"""The README's tables and figures, rendered from the rows in experiments/results and never typed.

    python -m experiments.tables            write them into README.md and experiments/figures
    python -m experiments.tables --check    exit 1, with a diff, where README.md or a figure disagrees with the rows

A table appears between a line `<!-- table:NAME -->` and a line `<!-- /table:NAME -->`. To add one, add an entry to
`TABLES` (what the fields mean: `experiments.render.Table`) and the two lines to the README. Between the markers
`operators` and `outside` stand the tables of operators, from the registry (`experiments.operator_table`), and between
the markers `features` the comparison with other libraries (`experiments.features`).
"""

import difflib
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments import features, grids_summary, operator_table, published, render, speed_summary
from experiments.common import RESULTS, ROOT
from experiments.render import Figure, Table, TableError, bars, curve, last, lines, mean_std, one, several, worst


def plain(values: Sequence[float]) -> str:
    """Three digits after the point, none from 100 on; the mean where there are several rows.

    >>> plain([0.1234]), plain([1000, 2000])
    ('0.123', '1500')
    """
    mean = statistics.fmean(values)
    return f"{mean:.{0 if mean >= 100 else 3}f}"


def share(values: Sequence[float]) -> str:
    """How many of the rows have it, where each is 0 or 1.

    >>> share([1.0, 1.0, 0.0])
    '67 % of 3'
    """
    return f"{100 * statistics.fmean(values):.0f} % of {len(values)}"


PLANS_VARY = ("seed", "case", "spec", "shape", "domain", "degree", "training", "dx")
TABLES: tuple[Table, ...] = (
    Table(
        name="plans",
        experiment="plans",
        label="config.group",
        cells=several(**{"within 10 % of the best": "metrics.close"}),
        format=share,
        vary=PLANS_VARY,
        same=("data.hash", "hardware.cpu", "metrics.rates"),
        caption="How often the way that the plan chose took at most 10 % longer than the best of all that could run.",
        command="python -m experiments.plans",
    ),
    Table(
        name="plans_misses",
        experiment="plans",
        label="config.case",
        where=(("metrics.close", 0.0),),
        cells=several(**{"time over the best": "metrics.ratio"}),
        format=plain,
        words=(("chosen", "metrics.chosen"), ("best", "metrics.best")),
        same=("data.hash", "hardware.cpu", "metrics.rates"),
        caption="The other cases: the time of what was chosen over that of the best.",
        command="python -m experiments.plans",
    ),
    Table(
        name="choices_product",
        experiment="choices",
        label="config.case",
        where=(("config.kind", "product"),),
        cells=several(**{"inference": "metrics.conv_ratio", "training": "metrics.conv_training_ratio"}),
        format=plain,
        same=("data.hash", "hardware.cpu"),
        caption="Matrix products: the time of torch.mm over that of a 1x1 convolution (above 1: torch.mm is slower).",
        command="python -m experiments.choices --only product",
    ),
    Table(
        name="choices_widened",
        experiment="choices",
        label="config.case",
        where=(("config.kind", "product"), ("config.what", "bfloat16")),
        cells=several(**{"inference": "metrics.widened_ratio", "training": "metrics.widened_training_ratio"}),
        format=plain,
        same=("data.hash", "hardware.cpu"),
        caption="The same over a product through float32, which gconv takes where the calibration says that it pays.",
        command="python -m experiments.choices --only product",
    ),
    Table(
        name="choices_order",
        experiment="choices",
        label="config.case",
        where=(("config.what", "rcm"),),
        cells=several(**{"before / after": "metrics.ratio", "order, ms": "metrics.order_ms"}),
        format=plain,
        same=("data.hash", "hardware.cpu"),
        caption="A GCN layer's training step on randomly numbered nodes over the same in reverse Cuthill-McKee order.",
        command="python -m experiments.choices --only order",
    ),
    Table(
        name="choices_schedule",
        experiment="choices",
        label="config.case",
        where=(("metrics.schedule", True),),
        cells=several(
            **{
                "as they come, ms": "metrics.before_ms",
                "times faster": "metrics.ratio",
                "order, ms": "metrics.order_ms",
            }
        ),
        format=plain,
        words=(("rows", "metrics.rows"),),
        same=("data.hash", "hardware.cpu"),
        caption=(
            "The order in which gconv goes through the rows of S by itself, on graphs whose nodes are numbered at "
            "random: a product S x and a GCN layer's training step, after many calls; results are the same to the bit."
        ),
        command="python -m experiments.choices --only schedule",
    ),
    Table(
        name="citation",
        experiment="citation",
        label="config.model",
        labels=("mlp", "gcn", "cheb", "sgc", "tag", "appnp", "gat", "sage", "monet"),
        cells=one("config.dataset", "metrics.test_accuracy"),
        format=mean_std(100),
        caption=(
            "Test accuracy in %, Planetoid public split; of 200 epochs the one with the lowest validation loss, for "
            "all models. Below the published number by more than its spread (0.5 where none is given), and why, as "
            "suspected: "
            + "; ".join(f"{model} on {data}: {why}" for (model, data), why in published.CITATION_MISSES.items())
            + "."
        ),
        command="python -m experiments.citation",
        published=published.CITATION,
        reruns=published.CITATION_RERUNS,
    ),
    Table(
        name="cifar10_cnn",
        experiment="cifar10_cnn",
        label="config.engine",
        cells=curve("metrics.test_accuracy"),
        format=mean_std(100),
        caption="Test accuracy in % after each epoch.",
        command="python -m experiments.cifar10_cnn",
    ),
    Table(
        name="cifar10_cnn_final",
        experiment="cifar10_cnn",
        label="config.engine",
        cells=last("metrics.test_accuracy"),
        format=mean_std(100),
        caption="Test accuracy in % after the last epoch.",
        command="python -m experiments.cifar10_cnn",
    ),
    Table(
        name="cifar10_twin",
        experiment="cifar10_twin",
        label="config.model",
        cells=several(
            **{"logit gap, float32": "metrics.logit_gap_float32", "logit gap, float64": "metrics.logit_gap_float64"},
            **{"largest logit": "metrics.logit_scale_float64"},
        ),
        format=worst,
        caption="The nine-offset graph twin with a trained CNN's weights: largest gap of logits.",
        command="python -m experiments.cifar10_graph --model twin",
    ),
    Table(
        name="cifar10_graph",
        experiment="cifar10_graph",
        label="config.model",
        cells=curve("metrics.test_accuracy"),
        format=mean_std(100),
        caption="Test accuracy in % after each epoch, pixels as graphs: the CNN's seeds, batches and loop.",
        command="python -m experiments.cifar10_graph",
    ),
    Table(
        name="digits_images",
        experiment="digits_pair",
        label="config.model",
        labels=("cnn", "selection", "gcn", "cheb"),
        where=(("config.task", "images"),),
        cells=one("config.dataset", "metrics.test_accuracy"),
        format=mean_std(100),
        caption="Embedded digits, as images (cnn) and as graphs of pixels: test accuracy in % after the last epoch.",
        command="python -m experiments.digits_pair",
    ),
    Table(
        name="digits_graphs",
        experiment="digits_pair",
        label="config.model",
        labels=("mlp", "gcn", "cheb", "gat"),
        where=(("config.task", "nodes"),),
        cells=one("config.dataset", "metrics.test_accuracy"),
        format=mean_std(100),
        caption="Embedded graphs, one label a node: test accuracy in % after the last epoch.",
        command="python -m experiments.digits_pair",
    ),
    Table(
        name="equivalence",
        experiment="equivalence",
        label="config.operator",
        cells=one("config.dtype", "metrics.max_error"),
        format=worst,
        vary=("seed", "lowering", "sample"),
        caption="Largest relative error in value and gradients, over all lowerings, against the matrix in float64.",
        command="python -m experiments.equivalence",
    ),
    Table(
        name="conformance",
        experiment="conformance",
        label="config.convention",
        cells=several(everything="metrics.everything", plain="metrics.plain"),
        format=plain,
        words=(
            ("known by", "metrics.known"),
            ("parts on", "metrics.parts_on"),
            ("differs in", "metrics.differs_in"),
            ("in gconv", "metrics.in_gconv"),
        ),
        caption=(
            "The matrix S that each library applies, against the first of its family: largest difference of an entry, "
            "on a five-node graph that has everything (a one-way edge, weights, a loop, a double edge, an isolated "
            "node) and on a plain undirected one; which feature alone, added to the plain one, parts them; and in "
            'what they differ. Only what is known by "run" was run.'
        ),
        command="python -m experiments.conformance",
    ),
    Table(
        name="overhead",
        experiment="overhead",
        label="config.case",
        cells=several(
            **{"bare ms": "metrics.bare_ms", "gconv ms": "metrics.gconv_ms", "ratio": "metrics.ratio"},
            **{"25 %": "metrics.ratio_low", "75 %": "metrics.ratio_high"},
        ),
        format=plain,
        same=("data.hash", "hardware.cpu", "hardware.threads", "metrics.kernels"),
        caption="Milliseconds a call or step, bare and through gconv: medians, with the quartiles of the ratio.",
        command="python -m experiments.overhead",
    ),
    Table(
        name="overhead_memory",
        experiment="overhead",
        label="config.case",
        where=(("config.kind", "gcn"),),
        cells=several(
            **{"bare MiB": "metrics.bare_peak_mb", "gconv MiB": "metrics.gconv_peak_mb", "ratio": "metrics.peak_ratio"},
            **{"fourth step, bare": "metrics.bare_step_peak_mb", "gconv": "metrics.gconv_step_peak_mb"},
        ),
        format=plain,
        same=("data.hash", "metrics.kernels"),
        caption="Peak memory of three training steps over what is resident before, set-up included; and of a fourth.",
        command="python -m experiments.overhead --only gcn",
    ),
    Table(
        name="speed",
        experiment="speed",
        label="config.case",
        where=(("config.compared", True),),
        cells=several(
            **{"gconv ms": "metrics.gconv_ms", "peer ms": "metrics.peer_ms", "times faster": "metrics.faster"},
            **{"25 %": "metrics.faster_low", "75 %": "metrics.faster_high"},
        ),
        format=plain,
        words=(("peer", "metrics.peer"), ("goal", "metrics.goal"), ("", "metrics.verdict")),
        same=("data.hash", "hardware.cpu", "hardware.threads", "metrics.kernels"),
        caption=(
            "Milliseconds a call or step, medians, and how many times faster gconv is, with quartiles. The peer is the "
            "fastest form of the other library, where the goal names none. In the training steps the features are "
            "declared constant once beforehand, as PyG caches its graph and takes sparse features; the rows also have "
            "gconv without that, and every other form and peer."
        ),
        command="python -m experiments.speed",
        remarks=speed_summary.remarks,
    ),
    Table(
        name="speed_memory",
        experiment="speed_memory",
        label="config.case",
        cells=several(
            **{"gconv MiB": "metrics.gconv_mb", "fastest form MiB": "metrics.peer_mb"},
            **{"usual form MiB": "metrics.usual_mb", "floor MiB": "metrics.floor_mb"},
            **{"gconv / fastest": "metrics.memory_share", "gconv / usual": "metrics.usual_share"},
            **{"floor / fastest": "metrics.floor_share"},
            **{"step, gconv": "metrics.gconv_step_mb"},
        ),
        format=plain,
        words=(("fastest form", "metrics.peer"), ("goal", "metrics.memory_goal"), ("", "metrics.memory_verdict")),
        same=("data.hash", "metrics.kernels"),
        caption=(
            "Peak memory over that of the data: making a side (layer, form of the graph) and two steps, each side in a "
            "process of its own, the median of three where there is a goal. The goal is a share of PyG's fastest form, "
            "by the times above; for S X, the form that its goal names. The usual form is edge_index, which writes out "
            "a message for each edge, cached where the fastest form is timed so. The floor is what is held at the end "
            "of a step where nothing is wasted: the results that the caller gets, and S by rows, once. The last column "
            "of numbers is a third step alone."
        ),
        command="python -m experiments.speed_memory",
        remarks=speed_summary.memory_remarks,
    ),
    Table(
        name="profiles",
        experiment="profiles",
        label="config.case",
        cells=several(**{"ms": "metrics.ms"}),
        format=plain,
        words=(("side", "metrics.side"), ("most of its time", "metrics.most")),
        same=("data.hash",),
        caption=(
            "What bounds the cases that miss their goal: one thread, the six functions that most of the time is spent "
            "in, under Python's profiler. Compiled kernels stand under the function that calls them."
        ),
        command="python -m experiments.profiles",
    ),
    Table(
        name="grids",
        experiment="grids",
        label="config.case",
        cells=several(
            **{"gconv ms": "metrics.gconv_ms", "peer ms": "metrics.peer_ms", "times faster": "metrics.faster"},
            **{"25 %": "metrics.faster_low", "75 %": "metrics.faster_high"},
        ),
        format=plain,
        words=(
            ("by", "metrics.lowering"),
            ("peer", "metrics.peer"),
            ("goal", "metrics.goal"),
            ("", "metrics.verdict"),
        ),
        same=("data.hash", "hardware.cpu", "hardware.threads", "metrics.kernels"),
        caption=(
            "On grids: milliseconds a step, medians, and how many times faster gconv is, with quartiles. F.conv2d and "
            "gconv have channels last in memory, which is the faster layout of F.conv2d here; `twin` is a 3x3 "
            "convolution as a graph convolution with nine labelled offsets, and `chebyshev` has all images on one "
            "graph where PyG has as many copies of it."
        ),
        command="python -m experiments.grids",
        remarks=grids_summary.remarks,
    ),
    Table(
        name="grids_memory",
        experiment="grids",
        label="config.case",
        where=(("config.backward", True),),
        cells=several(**{"gconv MiB": "metrics.gconv_peak_mb", "peer MiB": "metrics.peer_peak_mb"}),
        format=plain,
        words=(("peer", "metrics.peer"),),
        same=("data.hash", "metrics.kernels"),
        caption="Peak memory of three such steps over what is resident before the first, each side in its own process.",
        command="python -m experiments.grids",
    ),
    Table(
        name="whole_models",
        experiment="whole_models",
        label="config.case",
        cells=several(
            **{
                "seconds an epoch": "metrics.before_s",
                "converted": "metrics.after_s",
                "times faster": "metrics.faster",
            },
            **{"25 %": "metrics.faster_low", "75 %": "metrics.faster_high"},
            **{"peak MiB": "metrics.before_mb", "converted MiB": "metrics.after_mb"},
        ),
        format=plain,
        same=("data.hash", "hardware.cpu", "hardware.threads", "metrics.kernels"),
        caption=(
            "Models as PyG's and torch's users write them, before and after `gconv.convert`: an epoch is one step of "
            "Adam on everything. The losses of five steps without dropout, and the gradients of the first, agreed to "
            "rounding before (`gap` in the rows)."
        ),
        command="python -m experiments.whole_models",
    ),
)

FIGURES: tuple[Figure, ...] = (
    Figure(
        name="cifar10_cnn",
        experiment="cifar10_cnn",
        draw=lines("config.engine", "metrics.test_accuracy"),
        title="CIFAR-10: test accuracy in %",
    ),
    Figure(
        name="cifar10_graph",
        experiment="cifar10_graph",
        draw=lines("config.model", "metrics.test_accuracy"),
        title="CIFAR-10, the pixels as graphs: test accuracy in %",
    ),
    Figure(
        name="digits_pair",
        experiment="digits_pair",
        draw=bars("config.model", "config.dataset", "metrics.test_accuracy"),
        title="Embedded data: test accuracy in %",
    ),
    Figure(
        name="citation",
        experiment="citation",
        draw=bars("config.model", "config.dataset", "metrics.test_accuracy"),
        title="Planetoid public split: test accuracy in %",
    ),
    *(
        Figure(
            name=f"speed_{axis}_{what}",
            experiment=experiment,
            draw=speed_summary.grown(group, axis, unit),
            title=f"{title}, forward + backward: {what}",
        )
        for group, axis, title in (("edges", "edges", "A gcn layer, 16 -> 16"), ("spmm", "width", "S X, 170k nodes"))
        for experiment, unit, what in (("speed", "ms", "time"), ("speed_memory", "mb", "memory"))
    ),
    Figure(name="speed_ratios", experiment="speed", draw=speed_summary.ratios, title="Times faster than the peer"),
    *(
        Figure(
            name=f"grids_{name}",
            experiment="grids",
            draw=grids_summary.by_kernel(backward),
            title=f"Depthwise, 64 channels at 64x64, batch 8: {what}",
        )
        for backward, name, what in ((False, "inference", "forward"), (True, "training", "forward + backward"))
    ),
    Figure(name="speed_roofline", experiment="speed", draw=speed_summary.roofline, title="Roofline, forward passes"),
)


@dataclass(frozen=True)
class Config:
    """What to render, and where to."""

    check: bool = False
    """Change nothing; exit 1 where something is not what the rows say."""
    readme: Path = ROOT / "README.md"
    """The page with the markers."""
    results: Path = RESULTS
    """Folder of the rows."""
    figures: Path = ROOT / "experiments" / "figures"
    """Folder of the figures."""


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: `python -m experiments.tables --help`. Raises: SystemExit where something is wrong."""
    import tyro

    config = tyro.cli(Config, description=__doc__, args=argv)
    try:
        old = config.readme.read_text(encoding="utf-8")
        new = features.fill(operator_table.fill(render.fill(old, config.results, TABLES)))
        rows = {f: render.select(render.load(config.results, f.experiment), f.where) for f in FIGURES}
        paths = {f: config.figures / f"{f.name}.png" for f in FIGURES}
        stale = [f for f in FIGURES if rows[f] and render.drawn_from(paths[f]) != render.fingerprint(rows[f])]
        if config.check:
            names = config.readme.name, f"{config.readme.name}, by the rows"
            sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), *names))
            wrong = [config.readme.name] * (old != new) + [paths[f].name for f in stale]
            if wrong:
                sys.exit(f"error: not what the rows say: {', '.join(wrong)}; `make tables` renders them")
            return
        for figure in stale:
            render.paint(figure, rows[figure], paths[figure])
            print(f"drew {paths[figure]}")
        if new != old:
            trial = config.readme.with_suffix(".tmp")
            trial.write_text(new, encoding="utf-8")
            os.replace(trial, config.readme)
            print(f"wrote {config.readme}")
    except (TableError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
