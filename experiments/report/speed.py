"""Tables and figures of time, memory and the planner's choices, for `experiments.tables`."""

import math
from collections.abc import Sequence

from experiments.grids import summary as grids_summary
from experiments.harness.common import Row
from experiments.harness.render import Figure, Table, plain, several, share
from experiments.speed import summary as speed_summary

PLANS_VARY = ("seed", "case", "spec", "shape", "domain", "degree", "training", "dx")


def _choices(rows: Sequence[Row]) -> list[str]:
    """How often the choice was close, and how much longer it takes than the best, over all cases."""
    said = []
    for what, held in (("listed", False), ("held-out", True)):
        found = [row["metrics"] for row in rows if row["config"]["group"].startswith("held-out") == held]
        close = sum(m["close"] for m in found) / len(found) if found else 0.0
        said.append(f"{close:.1%} of the {len(found)} {what} cases are within 10 %.")
    longer = math.exp(sum(math.log(row["metrics"]["ratio"]) for row in rows) / len(rows)) - 1
    return [*said, f"Over all of them the choice takes {longer:.1%} longer than the best (geometric mean)."]


TABLES: tuple[Table, ...] = (
    Table(
        name="plans",
        experiment="plans",
        label="config.group",
        cells=several(**{"within 10 % of the best": "metrics.close"}),
        format=share,
        vary=PLANS_VARY,
        same=("data.hash", "hardware.cpu", "metrics.rates"),
        caption="How often the way that the plan chose took at most 10 % longer than the best of all that could run; "
        "what is a miss at first is measured again, in turns, over five times the rounds.",
        command="python -m experiments.planner.plans",
        remarks=_choices,
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
        caption="Matrix products: the time of torch.mm over that of a 1x1 convolution (above 1: torch.mm is slower).",
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
        caption="The same over a product through float32, which gconv takes where the calibration says that it pays.",
        command="python -m experiments.planner.choices --only product",
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
        command="python -m experiments.planner.choices --only order",
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
        command="python -m experiments.planner.choices --only schedule",
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
        command="python -m experiments.speed.overhead",
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
            ("over the floor", "metrics.times_the_floor"),
            ("peer", "metrics.peer"),
            ("goal", "metrics.goal"),
            ("", "metrics.verdict"),
        ),
        same=("data.hash", "hardware.cpu", "hardware.threads", "metrics.kernels"),
        caption=(
            "Milliseconds a call or step, medians, and how many times faster gconv is, with quartiles. The peer is the "
            "fastest form of the other library, where the goal names none; in layers, training steps and single calls "
            "the forms under torch.compile are among them, and `than compiled` is against the fastest of these. `Over "
            "the floor`: gconv's time by that of the bare matrix and sparse products that the layer needs. In the "
            "training steps the features are declared constant once beforehand, as PyG caches its graph and takes "
            "sparse features; the rows also have gconv without that, and every other form and peer."
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
        command="python -m experiments.speed.memory",
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
        words=(("than compiled", "metrics.than_compiled"),),
        same=("data.hash", "hardware.cpu", "hardware.threads", "metrics.kernels"),
        caption=(
            "Models as PyG's and torch's users write them, before and after `gconv.convert`, and before under "
            "torch.compile (its faster mode): an epoch is one step of Adam on everything. The losses of five steps "
            "without dropout, and the gradients of the first, agreed to rounding before (`gap` in the rows)."
        ),
        command="python -m experiments.speed.whole_models",
    ),
)

FIGURES: tuple[Figure, ...] = (
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
