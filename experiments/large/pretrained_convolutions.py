"""Pretrained convolutional networks from wheels on PyPI: loaded safely, converted, and fine-tuned on blood cells.

    pnet, rnet, onet   MTCNN (faces), 7k to 389k parameters, torch files
    emotions           mini-Xception (expressions of faces), 58k parameters, depthwise separable, HDF5 of Keras
    direction          MobileNetV3 (is a line of text upside down), 134k parameters, ONNX

Each is a torch.nn network (`experiments.large.wheel_networks`) with the weights of its file. `value` and `gradient` are
the differences made by `gconv.convert` in float64, as in `experiments.large.conversions`. Then the last layer is
replaced by one with three classes, and the network is trained to classify red cells, white cells and platelets:

    last      the last layer, on frozen features
    adapters  low-rank adapters on the frozen convolutions (`gconv.adapt`), and the last layer
    all       all parameters
    scratch   all parameters, without the pretrained weights

Protocol: BCCD; boxes are cropped and resized to the input size of the network, which removes the size of the cells.
`shots` crops per class are drawn by the seed from the training photos; `steps` steps of Adam in batches of 20, with
frozen batch statistics (but for scratch) and without model selection. All crops of the test photos are scored once, by
the mean recall of the three classes, since there are ten red cells for each other cell.

    python -m experiments.large.pretrained_convolutions                           run missing runs
    python -m experiments.large.pretrained_convolutions --network onet --explain  reports of `convert` and `adapt`
"""

import copy
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gconv
from datasets.bccd import CLASSES, load_bccd
from datasets.wheels import WEIGHTS, load_weights
from experiments.harness import common
from experiments.harness.experiment import Experiment, Place
from experiments.harness.options import command_name
from experiments.harness.render import Figure, Table, mean_std, several
from experiments.large.conversions import compare
from experiments.large.finetune import RATES, draw_shots, train
from experiments.large.wheel_networks import KINDS, Network, ready, trained

NETWORKS = tuple(KINDS)
WAYS = ("last", "adapters", "all", "scratch")


@dataclass(frozen=True)
class Config:
    """Network and fine-tuning options."""

    network: Literal["pnet", "rnet", "onet", "emotions", "direction", "every"] = "every"
    """Network."""
    way: Literal["last", "adapters", "all", "scratch", "every"] = "every"
    """Fine-tuning method."""
    dataset: Literal["bccd", "random"] = "bccd"
    """random: generated images and weights, for testing."""
    shots: int = 20
    """Number of images per class."""
    steps: int = 100
    """Number of training steps."""
    rank: int = 4
    """adapters: rank."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("shots", "steps", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


def expand(config: Config, seeds: int) -> list[Config]:
    """One configuration per run."""
    networks: Any = NETWORKS if config.network == "every" else (config.network,)
    ways: Any = WAYS if config.way == "every" else (config.way,)
    return [
        replace(config, network=n, way=w, seed=config.seed + s) for s in range(seeds) for n in networks for w in ways
    ]


# -- images --------------------------------------------------------------------------------------------------------


class Crops(NamedTuple):
    """uint8 images (b, 3, side, side) and their classes."""

    images: Tensor
    labels: Tensor


class Cells(NamedTuple):
    """Training and test crops, with label and hash."""

    train: Crops
    test: Crops
    label: str
    hash: str


def cut(images: Tensor, boxes: Sequence[Tensor], kinds: Sequence[Tensor], rows: range, side: int) -> Crops:
    """Crop the boxes of some photos, rounded outwards to whole pixels, and resize them to side x side.

    >>> boxes = [torch.tensor([[0.0, 0.0, 4.0, 2.0]])]
    >>> crops = cut(torch.full((1, 3, 8, 8), 7, dtype=torch.uint8), boxes, [torch.tensor([1])], range(1), 6)
    >>> crops.images.shape, int(crops.images.max()), crops.labels.tolist()
    (torch.Size([1, 3, 6, 6]), 7, [1])
    """
    crops = []
    for i in rows:
        for box in boxes[i]:
            left, top = (int(v) for v in box[:2].floor())
            right, bottom = (int(v) for v in box[2:].ceil())
            part = images[i, :, top : max(bottom, top + 1), left : max(right, left + 1)]
            small = F.interpolate(part[None].float(), (side, side), mode="bilinear", antialias=True)
            crops.append(small[0].round().clamp(0, 255).to(torch.uint8))
    return Crops(torch.stack(crops), torch.cat([kinds[i] for i in rows]))


@lru_cache(maxsize=2)
def cells(dataset: str, side: int, root: Path | None = None) -> Cells:
    """The crops at a given size. Raises: DataUnavailable, DataCorrupt."""
    if dataset == "random":
        generator, labels = torch.Generator().manual_seed(0), torch.arange(60) % 3
        images = torch.randint(0, 128, (60, 3, side, side), generator=generator, dtype=torch.uint8)
        images += (40 * labels).to(torch.uint8)[:, None, None, None]
        return Cells(Crops(images[:30], labels[:30]), Crops(images[30:], labels[30:]), "random images", "generated")
    data = photos(root)
    train, test = (cut(data.images, data.boxes, data.kinds, data.parts[part], side) for part in ("train", "test"))
    return Cells(train, test, data.label, data.content_hash)


@lru_cache(maxsize=1)
def photos(root: Path | None) -> Any:
    """BCCD, loaded once per process. Raises: DataUnavailable, DataCorrupt."""
    return load_bccd(root)


# -- networks ------------------------------------------------------------------------------------------------------


def loaded(config: Config, root: Path | None = None) -> Network:
    """The network with the weights of its file, or with random weights for `random`. Raises: DataUnavailable."""
    if config.dataset == "random":
        return KINDS[config.network].build().eval()
    return trained(config.network, load_weights(config.network, root))


def prepared(model: Network, config: Config) -> Network:
    """The converted network with three classes; only parameters of the method require gradients."""
    model = copy.deepcopy(KINDS[config.network].build() if config.way == "scratch" else model)
    old = model.last
    model.last = nn.Conv2d(old.in_channels, len(CLASSES), old.kernel_size, padding=old.padding)  # type: ignore[arg-type]
    model = gconv.convert(model)
    if config.way == "adapters":
        model = gconv.adapt(model, rank=config.rank, layers=["features"])
        model.last.requires_grad_(True)
    else:
        model.features.requires_grad_(config.way != "last")
    return model


@torch.no_grad()
def recalls(model: nn.Module, x: Tensor, y: Tensor) -> list[float]:
    """The recall of each class, in eval mode."""
    model.eval()
    guess = torch.cat([model(part).argmax(1) for part in x.split(200)])
    return [(guess[y == c] == c).double().mean().item() for c in range(len(CLASSES))]


def run(config: Config, place: Place) -> common.Outcome:
    """Run one network with one method and one seed."""
    kind = KINDS[config.network]
    data = cells(config.dataset, kind.side, place.root)
    common.seed_everything(config.seed)
    given = loaded(config, place.root)
    probe = ready(data.train.images[:2], kind).double()
    double = copy.deepcopy(given).double()
    gaps = compare(double, gconv.convert(double), lambda model: model(probe))
    report = gconv.interop.preview(given)
    common.seed_everything(config.seed)
    model = prepared(given, config)
    rows = draw_shots(data.train.labels, config.shots, config.seed)
    x, clock = ready(data.train.images[rows], kind), time.perf_counter()
    fresh = config.way == "scratch"
    loss = train(model, x, data.train.labels[rows], config.steps, 20, RATES[config.way], config.seed, not fresh)
    seconds = time.perf_counter() - clock
    each = recalls(model, ready(data.test.images, kind), data.test.labels)
    metrics: dict[str, Any] = {
        "value": gaps["value"],
        "gradient": gaps["gradient"],
        "layers": len(report),
        "converted": len(report.converted),
        "train_loss": loss,
        "seconds_training": round(seconds, 2),
        "test_recall": sum(each) / len(each),
        "recalls": each,
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "parameters": sum(p.numel() for p in given.parameters()),
    }
    return common.Outcome(metrics, sorted({repr(entry.spec) for entry in report.converted}))


def seen(config: Config, root: Path | None) -> common.Data:
    """The data of a run. Raises: ValueError if there are too few crops."""
    data = cells(config.dataset, KINDS[config.network].side, root)
    draw_shots(data.train.labels, config.shots, config.seed)
    if config.dataset == "random":
        return common.Data(data.label, data.hash)
    return common.Data(f"{data.label} and {config.network}", data.hash[:8] + WEIGHTS[config.network].hash[:8])


def report(rows: list[common.Row]) -> None:
    """Print one line per network and way."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["config"]["network"], row["config"]["way"]), []).append(row["metrics"])
    for (network, way), all_ in found.items():
        one, recall = all_[0], mean_std(100)([m["test_recall"] for m in all_])
        print(
            f"{network:9s} {way:8s} {recall:14s} {one['trained']:7,} trained, {one['converted']} of {one['layers']} "
            f"layers converted: value {one['value']:.1e}, gradient {one['gradient']:.1e}"
        )


EXPERIMENT = Experiment(
    name="pretrained",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=run,
    data=seen,
    smoke={"dataset": "random", "shots": 4, "steps": 2, "rank": 1},
    report=report,
    measured=("seconds_training",),
    tolerance={"test_recall": 0.05, "recalls": 0.1, "train_loss": 0.3, "value": 1e-12, "gradient": 1e-12},
    defaults={"seeds": 3},
)


def columns(row: common.Row) -> dict[str, float]:
    """Cells of a row: recall by network."""
    return {row["config"]["network"]: row["metrics"]["test_recall"]}


TABLE = Table(
    name="pretrained",
    experiment="pretrained",
    label="config.way",
    labels=WAYS,
    n=3,
    unfinished=("*",),
    cells=columns,
    format=mean_std(100),
    vary=("seed", "network"),
    caption=(
        "Red cells, white cells and platelets in crops of BCCD, 20 training crops a class, 100 steps, nothing "
        "selected: mean recall of the three classes in % (chance is 33.3) of networks that others trained on faces "
        "(pnet, rnet, onet, emotions) and lines of text (direction). scratch: the same network and steps, without the "
        "weights. No published number was found for this task."
    ),
    command="python -m experiments.large.pretrained_convolutions --official",
)

_CONVERTED: dict[str, str] = {
    "value": "metrics.value",
    "gradient": "metrics.gradient",
    "layers": "metrics.layers",
    "converted": "metrics.converted",
    "parameters": "metrics.parameters",
}


def cost(row: common.Row) -> dict[str, float]:
    """Cells of a row: trained parameters and seconds by method."""
    way, metrics = row["config"]["way"], row["metrics"]
    return {f"{way}: trained": metrics["trained"], f"{way}: s": metrics["seconds_training"]}


CONVERTED = Table(
    name="pretrained_converted",
    experiment="pretrained",
    label="config.network",
    labels=NETWORKS,
    where=(("config.way", "last"), ("config.seed", 0)),
    cells=several(**_CONVERTED),
    format=lambda values: f"{values[0]:.1e}" if 0 < values[0] < 1e-3 else f"{values[0]:g}",
    caption=(
        "The same networks before and after `gconv.convert`, in float64: largest difference of a score and of a "
        "parameter's gradient, relative to the largest; how many layers there are and how many run through gconv."
    ),
    command="python -m experiments.large.pretrained_convolutions --official",
)
COST = Table(
    name="pretrained_cost",
    experiment="pretrained",
    label="config.network",
    labels=NETWORKS,
    vary=("seed", "way"),
    cells=cost,
    format=lambda values: f"{sorted(values)[len(values) // 2]:,.4g}" if max(values) < 1000 else f"{values[0]:,.0f}",
    caption="Parameters that are trained, and seconds of the 100 steps (median of the seeds, one thread).",
    command="python -m experiments.large.pretrained_convolutions --official",
)
TABLES = (CONVERTED, TABLE, COST)


def draw(axes: Any, rows: Sequence[common.Row]) -> None:
    """Plot recall against the number of trained parameters."""
    for network in NETWORKS:
        points = []
        for way in WAYS:
            found = [r["metrics"] for r in rows if r["config"]["network"] == network and r["config"]["way"] == way]
            if found:
                recall = 100 * sum(m["test_recall"] for m in found) / len(found)
                points.append((found[0]["trained"], recall, way))
        if points:
            kept = [p for p in points if p[2] != "scratch"]
            (line,) = axes.plot([p[0] for p in kept], [p[1] for p in kept], "o-", label=network)
            for trained_, recall, way in points:
                if way == "scratch":
                    axes.plot([trained_], [recall], "x", color=line.get_color())
    axes.set_xscale("log")
    axes.set_xlabel("trained parameters: last layer, adapters, all; crosses: all, from scratch")
    axes.legend()


FIGURE = Figure(name="pretrained", experiment="pretrained", draw=draw, title="Blood cells: mean recall in %")


def explain(argv: Sequence[str]) -> None:
    """Print the reports of `convert` and `adapt` for a network."""
    import tyro

    config = tyro.cli(Config, prog=command_name(), args=[a for a in argv if a != "--explain"])
    for one in expand(replace(config, way="adapters"), 1):
        model = loaded(one)
        converted: Any = gconv.convert(model)
        adapted: Any = prepared(model, one)
        print(f"{one.network}:\n{converted.report()}\n\nwith adapters: {adapted.report()}\n")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line. Raises: SystemExit."""
    given = list(sys.argv[1:] if argv is None else argv)
    if "--explain" in given:
        explain(given)
    else:
        EXPERIMENT.main(given)


if __name__ == "__main__":
    main()
