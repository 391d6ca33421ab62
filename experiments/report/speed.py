"""Tables and figures of time, memory and plans, for `experiments.tables`."""

import math
from collections.abc import Sequence
from dataclasses import replace

from experiments.grids import summary as grids_summary
from experiments.harness.common import Row
from experiments.harness.render import Figure, Table, plain, several, share
from experiments.images import data_parallel
from experiments.report import pictures
from experiments.report.pictures import laid_out
from experiments.speed import summary as speed_summary

PLANS_VARY = ("seed", "case", "spec", "shape", "domain", "degree", "training", "dx")


def _choices(rows: Sequence[Row]) -> list[str]:
    """How often the chosen lowering was close to the best, and the mean ratio of their times."""
    said = []
    for what, held in (("listed", False), ("held-out", True)):
        found = [row["metrics"] for row in rows if row["config"]["group"].startswith("held-out") == held]
        close = sum(m["close"] for m in found) / len(found) if found else 0.0
        said.append(f"{close:.1%} of the {len(found)} {what} cases are within 10 %.")
    longer = math.exp(sum(math.log(row["metrics"]["ratio"]) for row in rows) / len(rows)) - 1
    return [*said, f"Over all cases the chosen lowering takes {longer:.1%} longer than the best (geometric mean)."]


PLANS = Table(
    name="plans",
    experiment="plans",
    label="config.group",
    cells=several(**{"within 10 % of the best": "metrics.close"}),
    format=share,
    vary=PLANS_VARY,
    same=("data.hash", "hardware.cpu", "metrics.rates"),
    caption="How often the chosen lowering took at most 10 % longer than the best lowering; misses are measured again, "
    "in alternation, with five times as many rounds.",
    command="python -m experiments.planner.plans",
    remarks=_choices,
)

TABLES: tuple[Table, ...] = (
    data_parallel.TABLE,
    PLANS,
    replace(
        PLANS,
        name="plans_avx512",
        experiment="plans_avx512",
        caption="The same on another processor (AVX-512), with the built-in rates.",
        command="python -m experiments.planner.plans --name plans_avx512",
    ),
    replace(
        PLANS,
        name="plans_avx512_calibrated",
        experiment="plans_avx512_calibrated",
        caption="The same times on that processor; the choices are those made after `python -m gconv calibrate`.",
        command="python -m experiments.planner.plans --name plans_avx512_calibrated --replay",
    ),
    Table(
        name="plans_misses",
        experiment="plans",
        label="config.case",
        where=(("metrics.close", 0.0),),
        cells=several(**{"time / best": "metrics.ratio"}),
        format=plain,
        words=(("chosen", "metrics.chosen"), ("best", "metrics.best")),
        same=("data.hash", "hardware.cpu", "metrics.rates"),
        caption="The remaining cases: time of the chosen lowering divided by that of the best.",
        command="python -m experiments.planner.plans",
    ),
    Table(
        name="choices_product",
        experiment="choices",
        label="config.case",
        where=(("config.kind", "product"),),
        cells=several(**{"inference": "metrics.conv_ratio", "training": "metrics.conv_training_ratio"}),
        format=plain,
        same=("data.hash", "hardware.cpu"),
        caption="Matrix products: time of torch.mm / time of a 1x1 convolution (above 1: torch.mm is slower).",
        command="python -m experiments.planner.choices --only product",
    ),
    Table(
        name="choices_widened",
        experiment="choices",
        label="config.case",
        where=(("config.kind", "product"), ("config.what", "bfloat16")),
        cells=several(**{"inference": "metrics.widened_ratio", "training": "metrics.widened_training_ratio"}),
        format=plain,
        same=("data.hash", "hardware.cpu"),
        caption="Time of torch.mm / time of a product in float32, which gconv uses if the calibration favours it.",
        command="python -m experiments.planner.choices --only product",
    ),
    Table(
        name="choices_order",
        experiment="choices",
        label="config.case",
        where=(("config.what", "rcm"),),
        cells=several(**{"before / after": "metrics.ratio", "reordering, ms": "metrics.order_ms"}),
        format=plain,
        same=("data.hash", "hardware.cpu"),
        caption="Training step of a GCN layer: time in random node order / time in reverse Cuthill-McKee order.",
        command="python -m experiments.planner.choices --only order",
    ),
    Table(
        name="choices_schedule",
        experiment="choices",
        label="config.case",
        where=(("metrics.schedule", True),),
        cells=several(
            **{
                "original order, ms": "metrics.before_ms",
                "times faster": "metrics.ratio",
                "reordering, ms": "metrics.order_ms",
            }
        ),
        format=plain,
        words=(("rows", "metrics.rows"),),
        same=("data.hash", "hardware.cpu"),
        caption=(
            "Automatic row order of repeated products, on graphs with random node numbers: a product S x and a "
            "training step of a GCN layer, after many calls. The results are bitwise equal."
        ),
        command="python -m experiments.planner.choices --only schedule",
    ),
    Table(
        name="overhead",
        experiment="overhead",
        label="config.case",
        cells=several(
            **{"direct ms": "metrics.bare_ms", "gconv ms": "metrics.gconv_ms", "ratio": "metrics.ratio"},
            **{"25 %": "metrics.ratio_low", "75 %": "metrics.ratio_high"},
        ),
        format=plain,
        same=("data.hash", "hardware.cpu", "hardware.threads", "metrics.kernels"),
        caption="Milliseconds per call or step, directly and through gconv: medians, with quartiles of the ratio.",
        command="python -m experiments.speed.overhead",
    ),
    Table(
        name="overhead_memory",
        experiment="overhead",
        label="config.case",
        where=(("config.kind", "gcn"),),
        cells=several(
            **{"direct MiB": "metrics.bare_peak_mb", "gconv MiB": "metrics.gconv_peak_mb"},
            **{"ratio": "metrics.peak_ratio"},
            **{"fourth step, direct": "metrics.bare_step_peak_mb", "gconv": "metrics.gconv_step_peak_mb"},
        ),
        format=plain,
        same=("data.hash", "metrics.kernels"),
        caption="Peak memory of three training steps with set-up, and of a fourth step, above the memory used before.",
        command="python -m experiments.speed.overhead --only gcn",
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
        words=(
            ("than compiled", "metrics.than_compiled"),
            ("time / products", "metrics.times_the_floor"),
            ("peer", "metrics.peer"),
            ("goal", "metrics.goal"),
            ("", "metrics.verdict"),
        ),
        same=("data.hash", "hardware.cpu", "hardware.threads", "metrics.kernels"),
        caption=(
            "Milliseconds per call or step (medians), and how many times faster gconv is, with quartiles. The peer is "
            "the fastest variant of the other library, unless the goal names one. For layers, training steps and "
            "single calls these include variants compiled by torch.compile; `than compiled` is the ratio to the "
            "fastest of them. `time / products` is gconv's time divided by that of the matrix and sparse products "
            "alone. In training steps the features are declared constant beforehand, as PyG caches its graph and "
            "supports sparse features; the rows also contain gconv without this, and all other variants."
        ),
        command="python -m experiments.speed",
        remarks=speed_summary.remarks,
    ),
    Table(
        name="speed_memory",
        experiment="speed_memory",
        label="config.case",
        cells=several(
            **{"gconv MiB": "metrics.gconv_mb", "fastest PyG MiB": "metrics.peer_mb"},
            **{"edge_index MiB": "metrics.usual_mb", "minimum MiB": "metrics.floor_mb"},
            **{"gconv / fastest": "metrics.memory_share", "gconv / edge_index": "metrics.usual_share"},
            **{"minimum / fastest": "metrics.floor_share"},
            **{"third step, gconv MiB": "metrics.gconv_step_mb"},
        ),
        format=plain,
        words=(("fastest PyG", "metrics.peer"), ("goal", "metrics.memory_goal"), ("", "metrics.memory_verdict")),
        same=("data.hash", "metrics.kernels"),
        caption=(
            "Peak memory above that of the data, for set-up (layer and graph) and two steps, each library in its own "
            "process; the median of three processes if there is a goal. The goal is a share of the memory of PyG's "
            "fastest variant in the table above that is not compiled (for S X: the one named by its goal). "
            "`edge_index` is PyG's usual form, which stores a message for each edge, with caching if the fastest "
            "variant caches. The minimum is the memory that any implementation holds at the end of a step: the "
            "results and one copy of S in CSR. The last number is the peak of a third step alone."
        ),
        command="python -m experiments.speed.memory",
        remarks=speed_summary.memory_remarks,
    ),
    Table(
        name="profiles",
        experiment="profiles",
        label="config.case",
        cells=several(**{"ms": "metrics.ms"}),
        format=plain,
        words=(("library", "metrics.side"), ("functions with the most time", "metrics.most")),
        same=("data.hash",),
        caption=(
            "Profiles of the cases that miss their goal: the six functions with the most time in Python's profiler, "
            "with one thread. The time of compiled kernels is attributed to the function that calls them."
        ),
        command="python -m experiments.speed.profiles",
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
            ("lowering", "metrics.lowering"),
            ("peer", "metrics.peer"),
            ("goal", "metrics.goal"),
            ("", "metrics.verdict"),
        ),
        same=("data.hash", "hardware.cpu", "hardware.threads", "metrics.kernels"),
        caption=(
            "Convolutions on grids: milliseconds per step (medians), and how many times faster gconv is, with "
            "quartiles. F.conv2d and gconv use the channels-last memory format, which is the faster one for F.conv2d "
            "here. `twin` is a 3x3 convolution computed as a graph convolution with nine edge labels; for `chebyshev`, "
            "gconv processes all images on one graph, while PyG has a copy of the graph for each image."
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
        caption="Peak memory of three such steps above the memory used before, each library in its own process.",
        command="python -m experiments.grids",
    ),
    Table(
        name="whole_models",
        experiment="whole_models",
        label="config.case",
        cells=several(
            **{
                "seconds per epoch": "metrics.before_s",
                "converted": "metrics.after_s",
                "times faster": "metrics.faster",
            },
            **{"25 %": "metrics.faster_low", "75 %": "metrics.faster_high"},
            **{"peak MiB": "metrics.before_mb", "converted MiB": "metrics.after_mb"},
        ),
        format=plain,
        words=(
            ("than compiled", "metrics.faster_than_compiled"),
            ("both compiled", "metrics.faster_both_compiled"),
            ("dropout", "metrics.dropout_share"),
            ("kernels", "metrics.kernels"),
        ),
        same=("data.hash", "hardware.cpu", "hardware.threads", "metrics.kernels"),
        caption=(
            "Models written in PyG and torch, before and after `gconv.convert`. `than compiled` compares the "
            "converted model with the original under torch.compile, in its faster mode; for `both compiled`, the "
            "converted model is compiled as well. `dropout` is the time of dropout on the input features divided by "
            "that of an epoch of the original: conversion does not change it, and a compiler replaces it by code of "
            "its own. An epoch is one step of Adam on the whole data set. Before timing, the losses of five steps "
            "without dropout and the gradients of the first step were compared and agreed up to rounding (`gap` in "
            "the rows). Rows with other kernels were recorded on another machine: only numbers of one row can be "
            "compared."
        ),
        command="python -m experiments.speed.whole_models",
    ),
)

FIGURES: tuple[Figure, ...] = (
    *(
        laid_out(
            Figure(
                name=f"speed_{axis}_{what}",
                experiment=experiment,
                draw=speed_summary.grown(group, axis, unit),
                title=f"{title}, forward + backward: {what}",
            ),
            *([pictures.measured_sizes] if axis == "width" else []),
            pictures.decimal_values,
        )
        for group, axis, title in (("edges", "edges", "A gcn layer, 16 -> 16"), ("spmm", "width", "S X, 170k nodes"))
        for experiment, unit, what in (("speed", "ms", "time"), ("speed_memory", "mb", "memory"))
    ),
    laid_out(
        Figure("speed_ratios", "speed", speed_summary.ratios, "Times faster than the peer"),
        pictures.bars_from_one,
        xlabel="times faster than the peer; black mark: the goal, red: goal missed",
    ),
    *(
        laid_out(
            Figure(
                name=f"grids_{name}",
                experiment="grids",
                draw=grids_summary.by_kernel(backward),
                title=f"Depthwise, 64 channels at 64x64, batch 8: {what}",
            ),
            pictures.measured_sizes,
            pictures.decimal_values,
        )
        for backward, name, what in ((False, "inference", "forward"), (True, "training", "forward + backward"))
    ),
    laid_out(
        Figure("speed_roofline", "speed", speed_summary.roofline, "Roofline, forward passes"),
        pictures.decimal_axes,
        pictures.legend_beside,
        xlabel="FLOP per byte, if every array is read or written once",
    ),
)
