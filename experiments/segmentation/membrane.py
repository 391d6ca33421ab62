"""Segmentation of cell membranes in electron microscopy: a U-Net on pixels, and graph networks on superpixels.

    unet              three levels of two 3x3 convolutions, max pooling, transposed convolutions, skip connections
    gcn, sage, cheb   three layers on the adjacency graph of SLIC superpixels; features are the mean, standard
                      deviation, minimum and maximum of the grey values, and the relative area

Protocol: 30 slices of 512 x 512 pixels at half resolution. The last 6 are for testing, the 4 before them for
validation. Adam on the cross-entropy of pixels (for superpixels, of the proportion of cell pixels, weighted by area);
crops for the U-Net and whole slices for the graphs, with rotations and reflections (to which the graphs are
invariant). The validation loss is computed ten times, and the weights with the lowest one are kept. The test slices are
read once, at the end, at full resolution (with interpolated probabilities).

Scores are means over the test slices: mean IoU of the two classes and the fraction of wrong pixels, both at probability
1/2; for cells as connected components, the adapted Rand error and the variation of information (scikit-image, without
membranes), at the threshold with the lowest Rand error on the validation slices. `best possible` assigns each
superpixel its majority class. `transfer_gap` in the row of a U-Net is the largest difference, relative to the largest
logit, after `gconv.transfer` to a shuffled pixel graph.

    python -m experiments.sweep membrane                      run missing runs, one process per run
    python -m experiments.segmentation.membrane --model cheb
"""

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.membrane import MaskSet, load_membrane
from experiments.harness import common
from experiments.harness.experiment import Experiment, Place
from experiments.harness.progress import report as progress
from experiments.harness.render import Figure, Table, mean_std, several
from gconv import GConv, Graph, OperatorSpec, Pixels, transfer
from gconv.operators import cheb, conv2d, conv_transpose2d, gcn, max_pool2d, pointwise, sage

MODELS = ("unet", "cheb", "sage", "gcn")
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FEATURES = 5


@dataclass(frozen=True)
class Config:
    """Network and training options."""

    model: Literal["unet", "gcn", "sage", "cheb", "all"] = "all"
    """Network."""
    dataset: Literal["membrane", "random"] = "membrane"
    """random: generated cells, for testing."""
    width: int = 16
    """unet: channels of the first level."""
    hidden: int = 64
    """Graph networks: channels of the hidden layers."""
    segments: int = 2000
    """Graph networks: approximate number of superpixels per slice."""
    crop: int = 128
    """unet: side of a crop, at half the resolution; a multiple of 4."""
    batch: int = 4
    """unet: number of crops per step. Graph networks use one slice per step."""
    steps: int = 300
    """Number of training steps."""
    lr: float = 0.003
    """Learning rate."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("width", "hidden", "segments", "batch", "steps", "crop"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.crop % 4:
            raise ValueError(f"crop must be a multiple of 4, not {self.crop}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive and finite, not {self.lr}")


def expand(config: Config, seeds: int) -> list[Config]:
    """One configuration per run."""
    models: Any = MODELS if config.model == "all" else (config.model,)
    return [replace(config, model=model, seed=config.seed + s) for s in range(seeds) for model in models]


# -- the slices ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def slices(dataset: str, root: Path | None = None) -> MaskSet:
    """The images, loaded once per process. Raises: DataUnavailable, DataCorrupt."""
    if dataset == "membrane":
        return load_membrane(root)
    generator = np.random.default_rng(0)
    places = np.stack(np.meshgrid(np.arange(64), np.arange(64), indexing="ij"), -1).reshape(-1, 1, 2)
    masks = []
    for _ in range(10):  # Voronoi cells of random points; membranes are between the cells
        near = np.sort(np.linalg.norm(places - generator.uniform(0, 64, (12, 2)), axis=-1), 1)
        masks.append((near[:, 1] - near[:, 0] > 3).reshape(64, 64))
    grey = np.stack(masks) * 120 + generator.integers(0, 100, (10, 64, 64))
    images, found = torch.from_numpy(grey.astype(np.uint8)), torch.from_numpy(np.stack(masks))
    return MaskSet(label="random cells", classes=("membrane", "cell"), content_hash="generated", source="generated",
                   images=images, masks=found)  # fmt: skip


class Parts(NamedTuple):
    """Indices of the slices for training, validation and testing."""

    train: range
    val: range
    test: range


def split(count: int) -> Parts:
    """Split: the last fifth is for testing, a seventh before it for validation.

    >>> split(30)
    Parts(train=range(0, 20), val=range(20, 24), test=range(24, 30))
    """
    test, val = count - count // 5, count - count // 5 - count // 7
    return Parts(range(val), range(val, test), range(test, count))


class Step(NamedTuple):
    """A training step: logits are `model(x, graph)`; weights sum to 1."""

    x: Tensor
    graph: Graph | None
    target: Tensor
    weight: Tensor


def halved(images: Tensor) -> Tensor:
    """(b, h, w) -> (b, h / 2, w / 2), by averaging four pixels."""
    return F.avg_pool2d(images.float()[:, None], 2)[:, 0]


class OnPixels:
    """Crops of slices for training, whole slices otherwise."""

    def __init__(self, data: MaskSet, config: Config):
        train = split(len(data.images)).train
        x = halved(data.images)
        self.x = (x - x[train].mean()) / x[train].std()
        self.y, self.config = halved(data.masks), config

    def draw(self, train: range, generator: torch.Generator) -> Step:
        """Random crops, rotated and mirrored."""
        side = min(self.config.crop, self.x.shape[-1])
        xs: list[Tensor] = []
        ys: list[Tensor] = []
        for _ in range(self.config.batch):
            i, top, left, turn, mirror = (
                int(torch.randint(n, (), generator=generator))
                for n in (len(train), self.x.shape[1] - side + 1, self.x.shape[2] - side + 1, 4, 2)
            )
            for images, out in ((self.x, xs), (self.y, ys)):
                crop = images[train[i], top : top + side, left : left + side].rot90(turn)
                out.append(crop.flip(1) if mirror else crop)
        y = torch.stack(ys)[:, None]
        return Step(torch.stack(xs)[:, None], None, y, torch.full_like(y, 1 / y.numel()))

    def whole(self, i: int) -> Step:
        """A slice."""
        y = self.y[i][None, None]
        return Step(self.x[i][None, None], None, y, torch.full_like(y, 1 / y.numel()))

    def map(self, i: int, values: Tensor) -> Tensor:
        """Values of `whole(i)` as an image, at half the resolution."""
        return values[0, 0]


class OnSuperpixels:
    """Each slice as a graph."""

    def __init__(self, data: MaskSet, config: Config):
        from skimage.segmentation import slic

        x, y = halved(data.images).numpy() / 255, halved(data.masks).numpy()
        self.parts, self.steps = [], []
        for image, mask in zip(x, y, strict=True):
            parts = slic(image, config.segments, compactness=0.1, start_label=0, channel_axis=None)
            self.parts.append(torch.from_numpy(parts))
            self.steps.append(superpixels(image, mask, parts))
        train = torch.cat([self.steps[i].x for i in split(len(x)).train])
        mean, std = train.mean(0), train.std(0).clamp(min=1e-6)
        self.steps = [step._replace(x=(step.x - mean) / std) for step in self.steps]

    def draw(self, train: range, generator: torch.Generator) -> Step:
        """One slice."""
        return self.steps[train[int(torch.randint(len(train), (), generator=generator))]]

    def whole(self, i: int) -> Step:
        """A slice."""
        return self.steps[i]

    def map(self, i: int, values: Tensor) -> Tensor:
        """Values of the superpixels as an image, at half the resolution."""
        return values[:, 0][self.parts[i]]


def superpixels(image: np.ndarray, mask: np.ndarray, parts: np.ndarray) -> Step:
    """The superpixel graph of a label map: parts with adjacent pixels are connected.

    >>> step = superpixels(np.eye(2), np.eye(2), np.array([[0, 0], [1, 2]]))
    >>> step.graph.edge_index.tolist(), step.target[:, 0].tolist(), step.x[:, 0].tolist()
    ([[1, 2, 0, 2, 0, 1], [0, 0, 1, 1, 2, 2]], [0.5, 0.0, 1.0], [0.5, 0.0, 1.0])
    """
    flat, n = parts.ravel(), int(parts.max()) + 1
    area = np.bincount(flat, minlength=n)
    mean = np.bincount(flat, image.ravel(), n) / area
    square = np.bincount(flat, image.ravel() ** 2, n) / area
    low, high = np.full(n, np.inf), np.full(n, -np.inf)
    np.minimum.at(low, flat, image.ravel())
    np.maximum.at(high, flat, image.ravel())
    x = np.stack([mean, np.sqrt(np.maximum(square - mean**2, 0)), low, high, area / flat.size], 1)
    target, weight = np.bincount(flat, mask.ravel(), n) / area, area / flat.size
    return Step(torch.from_numpy(x).float(), touching(parts), *_columns(target, weight))


def touching(parts: np.ndarray) -> Graph:
    """The adjacency graph of the parts of a label map.

    >>> touching(np.array([[0, 0, 1]])).edge_index.tolist()
    [[1, 0], [0, 1]]
    """
    n = int(parts.max()) + 1
    pairs = np.concatenate(
        [np.stack([parts[:, 1:], parts[:, :-1]]).reshape(2, -1), np.stack([parts[1:], parts[:-1]]).reshape(2, -1)], 1
    )
    pairs = pairs[:, pairs[0] != pairs[1]].astype(np.int64)
    key = np.unique(np.concatenate([pairs[0] * n + pairs[1], pairs[1] * n + pairs[0]]))
    return Graph(torch.from_numpy(np.stack([key % n, key // n])), n)


def _columns(a: np.ndarray, b: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(a).float()[:, None], torch.from_numpy(b).float()[:, None]


# -- the networks --------------------------------------------------------------------------------------------------


class UNet(nn.Module):
    """Three levels. Shapes: (b, 1, h, w) -> logits (b, 1, h, w), h and w multiples of 4."""

    def __init__(self, width: int):
        super().__init__()
        w = (width, 2 * width, 4 * width)
        self.one, self.two, self.three = _twice(1, w[0]), _twice(w[0], w[1]), _twice(w[1], w[2])
        self.pool = GConv(max_pool2d(2))
        self.up_two = GConv(conv_transpose2d(w[2], w[1], 2, stride=2))
        self.up_one = GConv(conv_transpose2d(w[1], w[0], 2, stride=2))
        self.back_two, self.back_one = _twice(2 * w[1], w[1]), _twice(2 * w[0], w[0])
        self.last = GConv(pointwise(w[0], 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of being inside of a cell."""
        a = self.one(x)
        b = self.two(self.pool(a))
        c = self.up_two(self.three(self.pool(b)))
        d = self.back_two(torch.cat([b, c], 1))
        y: Tensor = self.last(self.back_one(torch.cat([a, self.up_one(d)], 1)))
        return y


def _twice(i: int, o: int) -> nn.Sequential:
    first, second = (GConv(conv2d(k, o, 3, padding=1, bias=False)) for k in (i, o))
    return nn.Sequential(first, nn.BatchNorm2d(o), nn.ReLU(), second, nn.BatchNorm2d(o), nn.ReLU())


def operators(config: Config) -> list[OperatorSpec]:
    """The operators of the graph network."""
    widths = ((FEATURES, config.hidden), (config.hidden, config.hidden), (config.hidden, 1))
    make: Any = {"gcn": gcn, "sage": sage, "cheb": lambda i, o: cheb(i, o, k=3)}[config.model]
    return [make(i, o) for i, o in widths]


class GraphNetwork(nn.Module):
    """Graph convolutions with ReLU between them. Shapes: (n, features) -> logits (n, 1)."""

    def __init__(self, specs: Sequence[OperatorSpec]):
        super().__init__()
        self.layers = nn.ModuleList(GConv(spec) for spec in specs)

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        """Logits of being inside of a cell."""
        for number, layer in enumerate(self.layers):
            x = layer(F.relu(x) if number else x, graph)
        return x


def network(config: Config) -> UNet | GraphNetwork:
    """The network of a configuration."""
    return UNet(config.width) if config.model == "unet" else GraphNetwork(operators(config))


# -- one loop ------------------------------------------------------------------------------------------------------


def loss_of(model: nn.Module, step: Step) -> Tensor:
    """Weighted cross-entropy."""
    logits = model(step.x) if step.graph is None else model(step.x, step.graph)
    return F.binary_cross_entropy_with_logits(logits, step.target, step.weight, reduction="sum")


def fit(model: nn.Module, task: OnPixels | OnSuperpixels, parts: Parts, config: Config) -> dict[str, Any]:
    """Train, and keep the weights with the lowest validation loss.

    Raises: ArithmeticError if the loss becomes NaN or infinite.
    """
    adam = torch.optim.Adam(model.parameters(), config.lr)
    generator = torch.Generator().manual_seed(config.seed)
    best, kept, at, losses, clock = math.inf, model.state_dict(), 0, [], time.perf_counter()
    every = max(1, config.steps // 10)
    for number in range(1, config.steps + 1):
        model.train()
        adam.zero_grad(set_to_none=True)
        loss = loss_of(model, task.draw(parts.train, generator))
        loss.backward()
        adam.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise ArithmeticError(f"the training loss became {losses[-1]} in step {number}: lower the learning rate")
        if number % every == 0 or number == config.steps:
            model.eval()
            with torch.no_grad():
                val = sum(loss_of(model, task.whole(i)).item() for i in parts.val) / len(parts.val)
            progress(number / config.steps, f"step {number}, loss {losses[-1]:.3f}, validation {val:.3f}")
            if val < best:
                best, kept, at = val, copy.deepcopy(model.state_dict()), number
    seconds = time.perf_counter() - clock
    model.load_state_dict(kept)
    last = losses[-every:]
    return {"val_loss": best, "step": at, "train_loss": sum(last) / len(last), "seconds_training": round(seconds, 1)}


@torch.no_grad()
def probabilities(model: nn.Module, task: OnPixels | OnSuperpixels, i: int) -> Tensor:
    """Probabilities of being inside a cell, at full resolution."""
    model.eval()
    step = task.whole(i)
    logits = model(step.x) if step.graph is None else model(step.x, step.graph)
    return doubled(task.map(i, logits.sigmoid()))


def doubled(image: Tensor) -> Tensor:
    """(h, w) -> (2 h, 2 w), interpolated."""
    return F.interpolate(image[None, None], scale_factor=2, mode="bilinear")[0, 0]


# -- scores --------------------------------------------------------------------------------------------------------


def pixel_scores(found: Tensor, mask: Tensor) -> dict[str, float]:
    """Mean IoU of the two classes, and the fraction of wrong pixels.

    >>> pixel_scores(torch.tensor([True, True, False, False]), torch.tensor([True, False, False, False]))
    {'mean_iou': 0.5833333333333333, 'pixel_error': 0.25}
    """
    pairs = ((found, mask), (~found, ~mask))
    ious = [(a & b).sum().item() / (a | b).sum().item() if (a | b).any() else 1.0 for a, b in pairs]
    return {"mean_iou": float(np.mean(ious)), "pixel_error": (found != mask).float().mean().item()}


def cell_scores(found: Tensor, mask: Tensor) -> dict[str, float]:
    """Adapted Rand error and variation of information (sum of its two parts) of connected components."""
    from skimage.measure import label
    from skimage.metrics import adapted_rand_error, variation_of_information

    truth, guess = (label(v.numpy(), connectivity=1) for v in (mask, found))
    if not guess.any():  # no membrane was found: all pixels are in one component
        guess = np.ones_like(guess)
    error = float(adapted_rand_error(truth, guess, ignore_labels=(0,))[0])
    return {"rand_error": error, "variation": float(sum(variation_of_information(truth, guess, ignore_labels=(0,))))}


def scores(maps: Sequence[Tensor], masks: Tensor, threshold: float) -> dict[str, float]:
    """Means over slices."""
    each = [{**pixel_scores(p > 0.5, m), **cell_scores(p > threshold, m)} for p, m in zip(maps, masks, strict=True)]
    return {name: float(np.mean([one[name] for one in each])) for name in each[0]}


def transfer_gap(model: UNet, seed: int = 0) -> float:
    """Largest difference of the logits of the network and its transfer to a shuffled graph of 16 x 16 pixels."""
    generator = torch.Generator().manual_seed(seed)
    double = copy.deepcopy(model).double().eval()
    image = torch.rand(1, 1, 16, 16, dtype=torch.float64, generator=generator)
    order = torch.randperm(256, generator=generator)
    domain = Pixels.from_pos(torch.cartesian_prod(torch.arange(16), torch.arange(16))[order])
    with torch.no_grad():
        logits = double(image)
        moved = transfer(double, domain)
        assert isinstance(moved.target, Pixels)
        there = moved.target.scatter(moved(domain.gather(image)))
    return ((there - logits).abs().max() / logits.abs().max()).item()


def drawing(found: Tensor, mask: Tensor, side: int = 128) -> str:
    """The upper left corner as hex digits, two pixels per byte: 0 membrane, 1 missed, 2 false membrane, 3 cell."""
    codes = (2 * mask.int() + found.int())[:side, :side].flatten().to(torch.uint8).numpy()
    return (codes[::2] * 16 + codes[1::2]).tobytes().hex()


# -- runs ----------------------------------------------------------------------------------------------------------


def run(config: Config, place: Place) -> common.Outcome:
    """Run one network with one seed."""
    data = slices(config.dataset, place.root)
    common.seed_everything(config.seed)
    parts, model = split(len(data.images)), network(config)
    task = OnPixels(data, config) if config.model == "unet" else OnSuperpixels(data, config)
    metrics = fit(model, task, parts, config)
    val = [probabilities(model, task, i) for i in parts.val]
    chosen = min(THRESHOLDS, key=lambda t: scores(val, data.masks[parts.val], t)["rand_error"])
    maps, masks = [probabilities(model, task, i) for i in parts.test], data.masks[parts.test]
    metrics |= {**scores(maps, masks, chosen), "threshold": chosen, "picture": drawing(maps[0] > 0.5, masks[0])}
    metrics["parameters"] = sum(p.numel() for p in model.parameters())
    if isinstance(model, UNet):
        metrics["transfer_gap"] = transfer_gap(model)
    else:
        best = [doubled((task.map(i, task.whole(i).target) > 0.5).float()) for i in parts.test]
        metrics |= {f"best_possible_{name}": value for name, value in scores(best, masks, 0.5).items()}
    return common.Outcome(metrics, [repr(layer.spec) for layer in model.modules() if isinstance(layer, GConv)])


def seen(config: Config, root: Path | None) -> common.Data:
    """The data of a run."""
    data = slices(config.dataset, root)
    return common.Data(data.label, data.content_hash)


def report(rows: list[common.Row]) -> None:
    """Print one line per network."""
    for model in dict.fromkeys(row["config"]["model"] for row in rows):
        found = [row["metrics"] for row in rows if row["config"]["model"] == model]
        shown = (f"{name} {mean_std(1, 3)([m[name] for m in found])}" for name in SCORES.values())
        print(f"{model:5s} {', '.join(shown)}; {found[0]['parameters']:,} parameters")


SCORES = {
    "mean IoU": "mean_iou",
    "pixel error": "pixel_error",
    "adapted Rand error": "rand_error",
    "variation of information": "variation",
}

EXPERIMENT = Experiment(
    name="membrane",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=run,
    data=seen,
    smoke={"dataset": "random", "steps": 3, "width": 4, "hidden": 8, "segments": 60, "crop": 16},
    report=report,
    measured=("seconds_training",),
    tolerance={name: 0.02 for name in (*SCORES.values(), "val_loss", "train_loss")},
    defaults={"seeds": 3},
)

TABLE = Table(
    name="membrane",
    experiment="membrane",
    label="config.model",
    labels=MODELS,
    cells=several(**{title: f"metrics.{name}" for title, name in SCORES.items()}),
    format=mean_std(1, 3),
    caption=(
        "Last 6 of the 30 training slices of ISBI 2012, n seeds: a U-Net on pixels, and graph networks on about 2,000 "
        "superpixels a slice. Not comparable, for another test set and thinned borders: the U-Net's published Rand "
        "score of 0.951 to 0.964 on the challenge's hidden slices. No published number of a graph network was found."
    ),
    command="python -m experiments.sweep membrane",
)


def draw(axes: Any, rows: Sequence[common.Row]) -> None:
    """Draw a corner of the first test slice for each network, coloured by correct and wrong pixels."""
    colours = np.array([[40, 40, 40], [220, 60, 40], [60, 110, 220], [235, 235, 235]], np.uint8)
    first = {row["config"]["model"]: row["metrics"]["picture"] for row in reversed(rows)}
    names, pictures = [m for m in MODELS if m in first], []
    for name in names:
        packed = np.frombuffer(bytes.fromhex(first[name]), np.uint8)
        codes = np.stack([packed >> 4, packed & 15], 1).ravel()
        side = math.isqrt(len(codes))
        pictures.append(np.pad(colours[codes.reshape(side, side)], ((0, 0), (0, 4), (0, 0)), constant_values=255))
    axes.imshow(np.concatenate(pictures, 1), interpolation="nearest")
    side = pictures[0].shape[1]
    axes.set_xticks([side * (i + 0.5) for i in range(len(names))], names)
    axes.set_yticks([])
    axes.set_xlabel("red: membrane missed, blue: membrane where there is none")


FIGURE = Figure(name="membrane", experiment="membrane", draw=draw, title="Corner of the first test slice")

main = EXPERIMENT.main

if __name__ == "__main__":
    main()
