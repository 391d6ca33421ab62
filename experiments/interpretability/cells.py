"""Which attribution methods pass quantitative tests: four methods on two networks, with thresholds fixed beforehand.

    cnn      three convolutions (5x5, 3x3, 3x3) with max pooling between them
    graph    three Chebyshev convolutions on the pixel graph at half the resolution, with a mean as readout

Protocol: windows of 64 x 64 pixels of BCCD's photos at a quarter of their size; each network is trained to recognise
which of red cells, white cells and platelets a window contains (at least half of the box). Its logits of white cells
and platelets are then attributed to the pixels of windows of the test photos that contain one. A method passes a test
if
    completeness    the sum of a map differs from the logit by at most 1 % (exact rows) or 5 % (integrated gradients)
    weights         the rank correlation with the maps of a network with random weights is at most 0.3
    labels          the rank correlation with the maps of a network trained on permuted labels is at most 0.3
    deletion        the area under the deletion curve is at least 0.05 below that of a random order
    insertion       the area under the insertion curve is at least 0.05 above that of a random order
    pointing        the largest value lies in a box of the class (with a margin of 2 pixels) for a fraction of windows
                    that is at least 0.1 higher than for the centre of the window

    python -m experiments.sweep interpretability
    python -m experiments.interpretability.cells --model graph

Source: randomisation, Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018; pointing, Zhang et al. 2016.
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

from datasets.bccd import CLASSES, BoxSet, load_bccd
from experiments.harness import common
from experiments.harness.experiment import Experiment, Place
from experiments.harness.progress import report as progress
from experiments.harness.render import Figure, Table, mean_std, several
from experiments.interpretability.methods import (
    CONTROLS,
    METHODS,
    alike,
    completeness,
    curves,
    pointed,
    resized,
    scrambled,
)
from gconv import GConv, Graph, Grid, grid_graph
from gconv.analysis import frequency_response
from gconv.operators import avg_pool2d, cheb, conv2d, max_pool2d

MODELS = ("cnn", "graph")
ASKED = {"WBC": 1, "Platelets": 2}
LEAST_GAIN, LEAST_POINTS, MOST_ALIKE = 0.05, 0.10, 0.3
MOST_MISSING = {"exact": 0.01, "integrated": 0.05}
MEAN, STD = (200.0, 185.0, 185.0), 30.0  # approximately those of BCCD's red, green and blue channels
AROUND = 2  # margin around a box in pixels
SHOWN = 32  # size of the maps stored in a row


@dataclass(frozen=True)
class Config:
    """Network, training and number of windows."""

    model: Literal["cnn", "graph", "all"] = "all"
    """Network."""
    dataset: Literal["BCCD", "random"] = "BCCD"
    """random: generated discs, for testing."""
    width: int = 16
    """Number of channels."""
    side: int = 64
    """Side of a window in pixels; a multiple of 4."""
    windows: int = 3000
    """Number of windows for training."""
    epochs: int = 8
    """Number of epochs."""
    lr: float = 0.005
    """Learning rate."""
    asked: int = 50
    """Maximum number of windows per class for which attributions are computed."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("width", "side", "windows", "epochs", "asked"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        most = {"BCCD": 120, "random": 64}[self.dataset]
        if self.side % 4 or self.side > most:
            raise ValueError(f"side must be a multiple of 4 and at most {most} for {self.dataset}, not {self.side}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive and finite, not {self.lr}")


def expand(config: Config, seeds: int) -> list[Config]:
    """One configuration per run."""
    models: Any = MODELS if config.model == "all" else (config.model,)
    return [replace(config, model=model, seed=config.seed + s) for s in range(seeds) for model in models]


# -- windows -------------------------------------------------------------------------------------------------------


class Windows(NamedTuple):
    """Windows. Shapes: x (b, 3, side, side); y (b, 3), 1 for present classes; inside (b, 3, side, side) bool."""

    x: Tensor
    y: Tensor
    inside: Tensor


@lru_cache(maxsize=2)
def pictures(dataset: str, root: Path | None = None) -> BoxSet:
    """The photos, loaded once per process. Raises: DataUnavailable, DataCorrupt."""
    if dataset == "BCCD":
        return load_bccd(root, 4)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :96]
    images, boxes, kinds = [], [], []
    for _ in range(12):  # three disjoint discs, one per class
        image, box = rng.normal(200, 8, (64, 96, 3)), []
        for c, place in enumerate(rng.permutation(6)[:3]):
            r, cx, cy = (8, 12, 5)[c], 16 + 32 * (place % 3), 16 + 32 * (place // 3)
            image[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = 60 + 100 * np.eye(3)[c]
            box.append([cx - r, cy - r, cx + r, cy + r])
        images.append(torch.from_numpy(image.clip(0, 255).astype(np.uint8)).permute(2, 0, 1))
        boxes.append(torch.tensor(box, dtype=torch.float32))
        kinds.append(torch.arange(3))
    return BoxSet(label="random discs", classes=CLASSES, content_hash="generated", source="generated",
                  names=tuple(map(str, range(12))), images=torch.stack(images), boxes=tuple(boxes), kinds=tuple(kinds),
                  parts={"train": range(8), "val": range(8, 9), "test": range(9, 12)})  # fmt: skip


def windows(data: BoxSet, part: str, count: int, side: int, seed: int) -> Windows:
    """Random windows of the photos of a split, every second one mirrored."""
    generator = torch.Generator().manual_seed(seed)
    mean, std = torch.tensor(MEAN).reshape(3, 1, 1), STD
    h, w = data.images.shape[-2:]
    xs, ys, insides = [], [], []
    for number in range(count):
        i, top, left = (
            int(torch.randint(n, (), generator=generator)) for n in (len(data.parts[part]), h - side + 1, w - side + 1)
        )
        i = data.parts[part][i]
        x = (data.images[i, :, top : top + side, left : left + side].float() - mean) / std
        y, inside = torch.zeros(3), torch.zeros(3, side, side, dtype=torch.bool)
        for box, kind in zip(data.boxes[i], data.kinds[i], strict=True):
            box = box - torch.tensor([left, top, left, top])
            seen = box.clamp(0, side)
            if (seen[2:] - seen[:2]).prod() >= 0.5 * (box[2:] - box[:2]).prod():
                y[kind] = 1
                l0, t, r, b = (int(v) for v in (seen + AROUND * torch.tensor([-1, -1, 1, 1])).clamp(0, side).round())
                inside[kind, t:b, l0:r] = True
        flip = [-1] if number % 2 else []
        xs.append(x.flip(flip))
        ys.append(y)
        insides.append(inside.flip(flip))
    return Windows(torch.stack(xs), torch.stack(ys), torch.stack(insides))


# -- networks ------------------------------------------------------------------------------------------------------


def _normed(layer: nn.Module, o: int) -> list[nn.Module]:
    return [layer, nn.BatchNorm2d(o), nn.ReLU()]


class CNN(nn.Module):
    """Shapes: (b, 3, h, w) -> logits (b, 3)."""

    def __init__(self, width: int):
        super().__init__()
        w = width
        self.first = GConv(conv2d(3, w, 5, padding=2, bias=False))
        self.body = nn.Sequential(
            nn.BatchNorm2d(w), nn.ReLU(), GConv(max_pool2d(2)),
            *_normed(GConv(conv2d(w, 2 * w, 3, padding=1, bias=False)), 2 * w), GConv(max_pool2d(2)),
        )  # fmt: skip
        self.last = nn.Sequential(*_normed(GConv(conv2d(2 * w, 4 * w, 3, padding=1, bias=False)), 4 * w))
        self.read = nn.Linear(4 * w, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the classes being there."""
        y: Tensor = self.read(self.last(self.body(self.first(x))).mean((2, 3)))
        return y


class OnPixels(nn.Module):
    """A graph convolution on the pixel graph. Shapes: (b, i, h, w) -> (b, o, h, w)."""

    def __init__(self, i: int, o: int, graph: Graph):
        super().__init__()
        self.conv, self.graph = GConv(cheb(i, o, k=3)), graph

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolution on the graph."""
        y: Tensor = self.conv(x.flatten(2).mT, self.graph)
        return y.mT.unflatten(-1, x.shape[-2:])


class GraphNetwork(nn.Module):
    """Shapes: (b, 3, side, side) -> logits (b, 3), on a graph of side / 2 x side / 2 pixels."""

    def __init__(self, width: int, side: int):
        super().__init__()
        graph, w = grid_graph((side // 2, side // 2), 8), width
        self.halved, self.first = GConv(avg_pool2d(2)), OnPixels(3, w, graph)
        self.body = nn.Sequential(nn.BatchNorm2d(w), nn.ReLU(), *_normed(OnPixels(w, 2 * w, graph), 2 * w))
        self.last = nn.Sequential(*_normed(OnPixels(2 * w, 2 * w, graph), 2 * w))
        self.read = nn.Linear(2 * w, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the classes being there."""
        y: Tensor = self.read(self.last(self.body(self.first(self.halved(x)))).mean((2, 3)))
        return y


def network(config: Config) -> CNN | GraphNetwork:
    """The network of a configuration."""
    return CNN(config.width) if config.model == "cnn" else GraphNetwork(config.width, config.side)


def fit(model: nn.Module, data: Windows, config: Config, what: str) -> float:
    """Train. Returns: the loss of the last epoch. Raises: ArithmeticError if the loss becomes NaN or infinite."""
    adam = torch.optim.Adam(model.parameters(), config.lr)
    generator, steps = torch.Generator().manual_seed(config.seed), config.epochs * math.ceil(len(data.x) / 32)
    cycle, total = torch.optim.lr_scheduler.OneCycleLR(adam, config.lr, steps), 0.0
    model.train()
    for epoch in range(1, config.epochs + 1):
        total = 0.0
        for index in torch.randperm(len(data.x), generator=generator).split(32):
            adam.zero_grad(set_to_none=True)
            loss = F.binary_cross_entropy_with_logits(model(data.x[index]), data.y[index])
            loss.backward()
            adam.step()
            cycle.step()
            total += loss.item() * len(index) / len(data.x)
        if not math.isfinite(total):
            raise ArithmeticError(f"the training loss became {total} in epoch {epoch}: lower the learning rate")
        progress(epoch / config.epochs, f"{what}, epoch {epoch}, loss {total:.3f}")
    model.eval()
    return total


# -- evaluation ----------------------------------------------------------------------------------------------------


def judged(model: Any, random: Any, permuted: Any, test: Windows, config: Config) -> dict[str, dict[str, float]]:
    """The scores of every method and baseline, as means over the classes."""
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in (*METHODS, *CONTROLS)}
    for c in ASKED.values():
        chosen = test.y[:, c].nonzero()[: config.asked, 0]
        if not len(chosen):
            raise ValueError("no window of the test photos holds the class; ask for more windows")
        x, inside = test.x[chosen], test.inside[chosen, c]
        for name, method in (METHODS | CONTROLS).items():
            maps = method(model, x, c)
            deletion, insertion = curves(model, x, c, maps)
            found = {"pointing": pointed(maps, inside), "deletion": deletion, "insertion": insertion}
            if name in METHODS:
                found |= {what: alike(maps, method(other, x, c)) for what, other in
                          (("weights", random), ("labels", permuted))}  # fmt: skip
            if name in MOST_MISSING:
                found["completeness"] = completeness(model, x, c, maps, name)
            for what, value in found.items():
                scores[name].setdefault(what, []).append(value)
        progress(0.99, f"class {c} of {len(ASKED)}")
    return {name: {what: float(np.mean(v)) for what, v in found.items()} for name, found in scores.items()}


def verdicts(scores: dict[str, dict[str, float]]) -> dict[str, dict[str, bool]]:
    """The tests that each method passes."""
    noise, middle = scores["noise"], scores["centre"]["pointing"]
    return {
        name: {
            "weights": found["weights"] <= MOST_ALIKE,
            "labels": found["labels"] <= MOST_ALIKE,
            "deletion": found["deletion"] <= noise["deletion"] - LEAST_GAIN,
            "insertion": found["insertion"] >= noise["insertion"] + LEAST_GAIN,
            "pointing": found["pointing"] >= middle + LEAST_POINTS,
        } | ({"completeness": found["completeness"] <= MOST_MISSING[name]} if name in MOST_MISSING else {})
        for name, found in scores.items() if name in METHODS
    }  # fmt: skip


@torch.no_grad()
def filters(model: Any) -> dict[str, Any]:
    """The filters of the first layer and the absolute values of their frequency responses.

    cnn: kernels (o, 3, 5, 5) and responses (o, 9, 9), norms over the colours, from -1/2 to 1/2 cycles a pixel. graph:
    for each output channel the norm over the colours at 21 eigenvalues of the rescaled Laplacian, -1 to 1.
    """
    if isinstance(model, CNN):
        f = torch.linspace(-0.5, 0.5, 9, dtype=torch.float64)
        found = frequency_response(model.first, Grid((32, 32)), torch.cartesian_prod(f, f))
        kernels = model.first.weight
        assert kernels is not None  # (25, 3, o)
        response = found.gain.abs().norm(dim=1).T.unflatten(1, (9, 9))
        return {"response": _short(response), "kernels": _short(kernels.permute(2, 1, 0).unflatten(2, (5, 5)))}
    found = frequency_response(model.first.conv, model.first.graph, torch.linspace(-1, 1, 21, dtype=torch.float64))
    return {"response": _short(found.gain.abs().norm(dim=1).T)}


def _short(values: Tensor) -> list[Any]:
    return [_short(v) if v.ndim > 0 else round(v.item(), 3) for v in values]


# -- runs ----------------------------------------------------------------------------------------------------------


def run(config: Config, place: Place) -> common.Outcome:
    """Run one network, its controls, and every method."""
    data = pictures(config.dataset, place.root)
    common.seed_everything(config.seed)
    clock = time.perf_counter()
    train = windows(data, "train", config.windows, config.side, config.seed)
    test = windows(data, "test", max(64, 8 * config.asked), config.side, config.seed)
    model, permuted = network(config), network(config)
    metrics: dict[str, Any] = {"train_loss": fit(model, train, config, "network")}
    order = torch.randperm(len(train.y), generator=torch.Generator().manual_seed(config.seed))
    fit(permuted, train._replace(y=train.y[order]), config, "permuted labels")
    with torch.no_grad():
        right = torch.cat(
            [(model(x) > 0) == (y > 0.5) for x, y in zip(test.x.split(64), test.y.split(64), strict=True)]
        )
    scores = judged(model, scrambled(copy.deepcopy(model), config.seed), permuted, test, config)
    metrics |= scores | {"passed": verdicts(scores), "filters": filters(model)}
    metrics["test_accuracy"] = right.double().mean().item()
    metrics["parameters"] = sum(p.numel() for p in model.parameters())
    metrics["seconds"] = round(time.perf_counter() - clock, 1)
    metrics["maps"] = [drawn(model, test, c) for c in ASKED.values()]
    return common.Outcome(metrics, [repr(layer.spec) for layer in model.modules() if isinstance(layer, GConv)])


def drawn(model: Any, test: Windows, c: int) -> list[str]:
    """The first window that contains a class, its boxes and the maps of all methods, as hex digits."""
    i = int(test.y[:, c].nonzero()[0])
    x = test.x[i : i + 1]
    grey = F.interpolate(x.mean(1, keepdim=True), (SHOWN, SHOWN), mode="area")[0, 0]
    shown = [(grey - grey.min()) / (grey.max() - grey.min()).clamp(min=1e-9)]
    shown += [resized(test.inside[i, c][None].float(), SHOWN)[0]]
    shown += [resized(method(model, x, c), SHOWN)[0] for method in METHODS.values()]
    return [(255 * values).round().to(torch.uint8).numpy().tobytes().hex() for values in shown]


def seen(config: Config, root: Path | None) -> common.Data:
    """The data of a run."""
    data = pictures(config.dataset, root)
    return common.Data(data.label, data.content_hash)


def said(rows: Sequence[common.Row]) -> list[str]:
    """One sentence per network: the methods that passed all of their tests in every row."""
    lines = []
    for model in MODELS:
        found = [row["metrics"]["passed"] for row in rows if row["config"]["model"] == model]
        if not found:
            continue
        failed = {m: [t for t in found[0][m] if not all(one[m][t] for one in found)] for m in METHODS}
        passed = ", ".join(m for m in METHODS if not failed[m]) or "none"
        rest = "; ".join(f"{m} failed {', '.join(tests)}" for m, tests in failed.items() if tests)
        lines.append(f"{model}: passed all tests: {passed}.{f' Not all: {rest}.' if rest else ''}")
    return lines


def report(rows: list[common.Row]) -> None:
    """Print one line per network and method."""
    for row in rows:
        metrics = row["metrics"]
        print(f"{row['config']['model']}: accuracy {100 * metrics['test_accuracy']:.1f} %, {metrics['seconds']:.0f} s")
        for name in (*METHODS, *CONTROLS):
            print(f"  {name:10s} " + ", ".join(f"{what} {value:.3f}" for what, value in metrics[name].items()))
    print("\n".join(said(rows)))


EXPERIMENT = Experiment(
    name="interpretability",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=run,
    data=seen,
    smoke={"dataset": "random", "epochs": 1, "width": 4, "side": 32, "windows": 32, "asked": 2},
    report=report,
    measured=("seconds",),
    tolerance={"test_accuracy": 0.02, "train_loss": 0.05},
    defaults={"seeds": 1},
)


def _table(test: str, methods: Sequence[str], caption: str, digits: int = 3) -> Table:
    return Table(
        name=f"interpretability_{test}",
        experiment="interpretability",
        label="config.model",
        labels=MODELS,
        cells=several(**{name: f"metrics.{name}.{test}" for name in methods}),
        format=mean_std(1, digits),
        caption=caption,
        command="python -m experiments.sweep interpretability --official",
        remarks=said if test == "pointing" else lambda rows: [],
    )


_ALL = (*METHODS, *CONTROLS)
TABLES = (
    _table(
        "pointing",
        _ALL,
        "Share of windows in which the largest value lies in a box of the class; to pass: "
        f"{LEAST_POINTS} above that of `centre`, the middle of the window.",
    ),
    _table(
        "deletion",
        _ALL,
        f"Area under the deletion curve, less is better; to pass: {LEAST_GAIN} below that of `noise`, a random order.",
    ),
    _table("insertion", _ALL, f"Area under the insertion curve; to pass: {LEAST_GAIN} above that of `noise`."),
    _table(
        "weights",
        tuple(METHODS),
        f"Rank correlation to the maps of the network with random weights; to pass: at most {MOST_ALIKE}.",
    ),
    _table(
        "labels",
        tuple(METHODS),
        f"Rank correlation to the maps of a network trained on permuted labels; to pass: at most {MOST_ALIKE}.",
    ),
    _table(
        "completeness",
        tuple(MOST_MISSING),
        "Largest part of a logit that the sum of a map misses; to pass: "
        + ", ".join(f"{m} at most {v}" for m, v in MOST_MISSING.items())
        + ".",
        6,
    ),
)


def draw_maps(axes: Any, rows: Sequence[common.Row]) -> None:
    """Draw a window of each class with its boxes and the maps of all methods, one row per network and class."""
    first = {row["config"]["model"]: row["metrics"]["maps"] for row in reversed(rows)}
    names = [m for m in MODELS if m in first]
    lines = []
    for name in names:
        for texts in first[name]:
            squares = [np.frombuffer(bytes.fromhex(text), np.uint8).reshape(SHOWN, SHOWN) for text in texts]
            lines.append(np.concatenate([np.pad(s, ((0, 2), (0, 2)), constant_values=255) for s in squares], 1))
    axes.imshow(np.concatenate(lines), cmap="gray", interpolation="nearest")
    step = SHOWN + 2
    axes.set_yticks([step * (i + 0.5) for i in range(len(lines))], [f"{n}, {c}" for n in names for c in ASKED])
    axes.set_xticks([step * (i + 0.5) for i in range(2 + len(METHODS))], ["window", "boxes", *METHODS])


def draw_filters(axes: Any, rows: Sequence[common.Row]) -> None:
    """Draw the kernels of `cnn` above their frequency responses, with low frequencies in the centre."""
    found = next((row["metrics"]["filters"] for row in rows if row["config"]["model"] == "cnn"), None)
    if found is None:
        axes.set_axis_off()
        return
    kernels, responses = np.array(found["kernels"]).transpose(0, 2, 3, 1), np.array(found["response"])
    tops = [np.pad(k.repeat(9, 0).repeat(9, 1) / (2 * np.abs(k).max() + 1e-9) + 0.5, ((0, 3), (0, 3), (0, 0)),
                   constant_values=1) for k in kernels]  # fmt: skip
    lows = [np.pad((r / (r.max() + 1e-9)).repeat(5, 0).repeat(5, 1), ((0, 3), (0, 3)), constant_values=1)[..., None]
            .repeat(3, 2) for r in responses]  # fmt: skip
    half = math.ceil(len(tops) / 2)
    lines = [np.concatenate(part, 1) for part in (tops[:half], lows[:half], tops[half:], lows[half:]) if part]
    wide = max(line.shape[1] for line in lines)
    axes.imshow(np.concatenate([np.pad(v, ((0, 0), (0, wide - v.shape[1]), (0, 0)), constant_values=1) for v in lines]))
    axes.set_xticks([])
    axes.set_yticks([24 + 48 * i for i in range(len(lines))], ["kernels", "responses"] * (len(lines) // 2))


FIGURES = (
    Figure("interpretability", "interpretability", draw_maps, "Where a class was seen, by four methods"),
    Figure("interpretability_filters", "interpretability", draw_filters, "First layer of the CNN"),
)

main = EXPERIMENT.main

if __name__ == "__main__":
    main()
