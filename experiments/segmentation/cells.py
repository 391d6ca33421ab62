"""Segmentation of red cells, white cells and platelets: a U-Net on pixels, and graph networks on superpixels.

    unet         three levels of two 3x3 convolutions, max pooling, transposed convolutions, skip connections
    sage, gcn    three layers on the adjacency graph of SLIC superpixels; features are the mean and standard deviation
                 of the colours, the relative area, and whether a superpixel touches the border

BCCD has boxes but no masks, so masks are drawn from the boxes: the ellipse in each box, first red cells, then white
cells, then platelets. The scores measure how well a network finds these ellipses.

Protocol: the split of `experiments.detection`, photos at a quarter of their size (160 x 120); `steps` steps of Adam
with a one-cycle learning rate on the cross-entropy of `batch` photos, randomly mirrored; classes are weighted by the
inverse square root of their frequency in the training pixels. The last weights are tested in half precision, without
model selection; the validation photos are scored as well. Score: intersection over union of each class over all pixels
of the test photos, and the mean over the four classes. `best possible` assigns each superpixel its most frequent class.

    python -m experiments.sweep cells                        run missing runs, one process per run
    python -m experiments.segmentation.cells --model sage
    python -m experiments.segmentation.predict PHOTO --out areas.png
"""

import base64
import copy
import io
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
from experiments.segmentation.membrane import GraphNetwork, UNet, touching
from gconv import GConv, Graph, save
from gconv.operators import conv2d, gcn, pointwise, sage

MODELS = ("unet", "sage", "gcn")
NAMES = ("background", *CLASSES)
COLOURS = ((255, 255, 255), (220, 60, 40), (40, 90, 220), (20, 140, 60))
FEATURES = 8
SHRINK = 4


@dataclass(frozen=True)
class Config:
    """Network and training options."""

    model: Literal["unet", "sage", "gcn", "all"] = "all"
    """Network."""
    dataset: Literal["bccd", "random"] = "bccd"
    """random: generated cells, for testing."""
    width: int = 8
    """unet: channels of the first level."""
    hidden: int = 64
    """Graph networks: channels of the hidden layers."""
    segments: int = 600
    """Graph networks: approximate number of superpixels per photo."""
    batch: int = 4
    """Number of photos per step."""
    steps: int = 300
    """Number of training steps."""
    lr: float = 0.005
    """Peak learning rate."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("width", "hidden", "segments", "batch", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive and finite, not {self.lr}")


def expand(config: Config, seeds: int) -> list[Config]:
    """One configuration per run."""
    models: Any = MODELS if config.model == "all" else (config.model,)
    return [replace(config, model=model, seed=config.seed + s) for s in range(seeds) for model in models]


# -- photos and masks ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def photos(dataset: str, root: Path | None = None) -> BoxSet:
    """The photos, loaded once per process. Raises: DataUnavailable, DataCorrupt."""
    if dataset == "bccd":
        return load_bccd(root, shrink=SHRINK)
    generator = np.random.default_rng(0)
    images = generator.integers(200, 230, (9, 3, 24, 32)).astype(np.uint8)
    boxes, kinds = [], []
    for image in images:
        kind = generator.integers(0, 3, 2)
        corners = np.stack([np.array([1, 17]), 2 + generator.integers(0, 9, 2)], 1).astype(np.float32)
        for c, (left, top) in zip(kind, corners.astype(int), strict=True):
            image[c, top : top + 12, left : left + 12] //= 2
        boxes.append(torch.from_numpy(np.concatenate([corners, corners + 12], 1)))
        kinds.append(torch.from_numpy(kind))
    parts = {"train": range(6), "val": range(6, 7), "test": range(7, 9)}
    return BoxSet(label="random cells", classes=CLASSES, content_hash="generated", source="generated",
                  names=tuple("abcdefghi"), images=torch.from_numpy(images), boxes=tuple(boxes), kinds=tuple(kinds),
                  parts=parts)  # fmt: skip


def mask(boxes: Tensor, kinds: Tensor, h: int, w: int) -> Tensor:
    """The class of each pixel (h, w): the ellipses in boxes (k, 4), by class, later classes over earlier ones.

    >>> mask(torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([1]), 4, 5).tolist()
    [[0, 2, 2, 0, 0], [2, 2, 2, 2, 0], [2, 2, 2, 2, 0], [0, 2, 2, 0, 0]]
    """
    out = torch.zeros(h, w, dtype=torch.int64)
    y, x = torch.arange(h)[:, None] + 0.5, torch.arange(w) + 0.5
    for row in kinds.argsort(stable=True):
        left, top, right, bottom = boxes[row]
        inside = ((2 * x - left - right) / (right - left)) ** 2 + ((2 * y - top - bottom) / (bottom - top)) ** 2 <= 1
        out[inside] = kinds[row] + 1
    return out


def masks(data: BoxSet) -> Tensor:
    """`mask` of each photo: (b, h, w)."""
    pairs = zip(data.boxes, data.kinds, strict=True)
    return torch.stack([mask(boxes, kinds, *data.images.shape[-2:]) for boxes, kinds in pairs])


def ready(images: Tensor) -> Tensor:
    """Normalise bytes for the networks."""
    return images.float() / 127.5 - 1


class Step(NamedTuple):
    """A training step: logits are `model(x, graph)`; targets are class proportions, weights are relative areas.

    Shapes: target (b, 4, h, w) or (n, 4); weight (b, 1, h, w) or (n, 1).
    """

    x: Tensor
    graph: Graph | None
    target: Tensor
    weight: Tensor


class OnPixels:
    """Photos as pixels."""

    def __init__(self, data: BoxSet, truth: Tensor, config: Config):
        self.x, self.truth = ready(data.images), truth

    def draw(self, rows: Sequence[int], mirrored: Sequence[bool]) -> list[Step]:
        """A batch of photos, randomly mirrored, as one step."""
        x = torch.stack([self.x[i].flip(-1) if m else self.x[i] for i, m in zip(rows, mirrored, strict=True)])
        y = torch.stack([self.truth[i].flip(-1) if m else self.truth[i] for i, m in zip(rows, mirrored, strict=True)])
        target = F.one_hot(y, len(NAMES)).movedim(-1, 1).float()
        return [Step(x, None, target, torch.full_like(target[:, :1], 1 / y.numel()))]

    def map(self, i: int, values: Tensor) -> Tensor:
        """Classes of photo i's pixels."""
        return values[0].argmax(0)


class OnSuperpixels:
    """Each photo as a graph, which is invariant to mirroring."""

    def __init__(self, data: BoxSet, truth: Tensor, config: Config):
        from skimage.segmentation import slic

        self.parts, self.steps = [], []
        for image, classes in zip(data.images, truth, strict=True):
            pixels = image.permute(1, 2, 0).numpy()
            parts = slic(pixels, config.segments, compactness=10, start_label=0)
            self.parts.append(torch.from_numpy(parts))
            self.steps.append(superpixels(pixels / 255, classes.numpy(), parts))
        x = torch.cat([self.steps[i].x for i in data.parts["train"]])
        mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
        self.steps = [step._replace(x=(step.x - mean) / std) for step in self.steps]

    def draw(self, rows: Sequence[int], mirrored: Sequence[bool]) -> list[Step]:
        """Photos, one step each."""
        return [self.steps[i]._replace(weight=self.steps[i].weight / len(rows)) for i in rows]

    def map(self, i: int, values: Tensor) -> Tensor:
        """Classes of photo i's pixels."""
        return values.argmax(1)[self.parts[i]]


def superpixels(image: np.ndarray, classes: np.ndarray, parts: np.ndarray) -> Step:
    """The superpixel graph of a label map (h, w) of an image (h, w, 3).

    >>> step = superpixels(np.ones((1, 4, 3)), np.array([[0, 2, 2, 2]]), np.array([[0, 0, 1, 1]]))
    >>> step.target.tolist(), step.weight[:, 0].tolist()
    ([[0.5, 0.0, 0.5, 0.0], [0.0, 0.0, 1.0, 0.0]], [0.5, 0.5])
    """
    flat, n = parts.ravel(), int(parts.max()) + 1
    area = np.bincount(flat, minlength=n)
    colours = image.reshape(-1, 3)
    mean = np.stack([np.bincount(flat, colours[:, c], n) / area for c in range(3)], 1)
    square = np.stack([np.bincount(flat, colours[:, c] ** 2, n) / area for c in range(3)], 1)
    edge = np.zeros(n)
    edge[np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])] = 1
    share = area / flat.size
    x = np.concatenate([mean, np.sqrt(np.maximum(square - mean**2, 0)), share[:, None], edge[:, None]], 1)
    target = np.stack([np.bincount(flat, classes.ravel() == c, n) / area for c in range(len(NAMES))], 1)
    columns, shares, areas = (torch.from_numpy(v).float() for v in (x, target, share[:, None]))
    return Step(columns, touching(parts), shares, areas)


# -- the networks --------------------------------------------------------------------------------------------------


class ColourUNet(UNet):
    """Three levels. Shapes: (b, 3, h, w) -> logits (b, 4, h, w), h and w multiples of 4."""

    def __init__(self, width: int):
        super().__init__(width)
        self.one[0] = GConv(conv2d(3, width, 3, padding=1, bias=False))
        self.last = GConv(pointwise(width, len(NAMES)))


def network(config: Config) -> ColourUNet | GraphNetwork:
    """The network of a configuration."""
    if config.model == "unet":
        return ColourUNet(config.width)
    make: Any = {"gcn": gcn, "sage": sage}[config.model]
    widths = ((FEATURES, config.hidden), (config.hidden, config.hidden), (config.hidden, len(NAMES)))
    return GraphNetwork([make(i, o) for i, o in widths])


# -- one loop ------------------------------------------------------------------------------------------------------


def loss_of(model: nn.Module, step: Step, classes: Tensor) -> Tensor:
    """Cross-entropy, weighted by area and by class."""
    logits = model(step.x) if step.graph is None else model(step.x, step.graph)
    shape = (1, -1, *(1,) * (logits.ndim - 2))
    each = (logits.log_softmax(1) * step.target * classes.reshape(shape)).sum(1, keepdim=True)
    return -(each * step.weight).sum()


def fit(model: nn.Module, task: OnPixels | OnSuperpixels, train: range, classes: Tensor, config: Config) -> Any:
    """Train. Returns: metrics for the row. Raises: ArithmeticError if the loss becomes NaN or infinite."""
    adam = torch.optim.Adam(model.parameters())
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, config.lr, config.steps, pct_start=0.2)
    generator = torch.Generator().manual_seed(config.seed)
    losses, clock = [], time.perf_counter()
    every = max(1, config.steps // 20)
    model.train()
    for number in range(1, config.steps + 1):
        rows = [train[i] for i in torch.randperm(len(train), generator=generator)[: config.batch].tolist()]
        mirrored = (torch.rand(len(rows), generator=generator) < 0.5).tolist()
        adam.zero_grad(set_to_none=True)
        loss = torch.stack([loss_of(model, step, classes) for step in task.draw(rows, mirrored)]).sum()
        loss.backward()
        adam.step()
        cycle.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise ArithmeticError(f"the training loss became {losses[-1]} in step {number}: lower the learning rate")
        if number % every == 0:
            progress(number / config.steps, f"step {number}, loss {losses[-1]:.3f}", number == config.steps)
    last = losses[-every:]
    return {"train_loss": sum(last) / len(last), "seconds_training": round(time.perf_counter() - clock, 1)}


@torch.no_grad()
def found(model: nn.Module, task: OnPixels | OnSuperpixels, i: int) -> Tensor:
    """The class of each pixel of photo i, (h, w)."""
    model.eval()
    (step,) = task.draw([i], [False])
    return task.map(i, model(step.x) if step.graph is None else model(step.x, step.graph))


# -- scores --------------------------------------------------------------------------------------------------------


def ious(guesses: Sequence[Tensor], truths: Tensor) -> dict[str, float]:
    """Intersection over union of each class over all pixels, and their mean; 1 for absent classes.

    >>> ious([torch.tensor([0, 0, 1, 1])], torch.tensor([[0, 1, 1, 1]]))["iou_RBC"]
    0.6666666666666666
    """
    guess, scores = torch.stack(list(guesses)), {}
    for c, name in enumerate(NAMES):
        union = int(((guess == c) | (truths == c)).sum())
        scores[f"iou_{name}"] = int(((guess == c) & (truths == c)).sum()) / union if union else 1.0
    return {"mean_iou": sum(scores.values()) / len(scores), **scores}


def overlay(photo: Tensor, classes: Tensor, strength: float = 0.45) -> Tensor:
    """A uint8 photo (3, h, w) with pixels coloured by class (h, w), except the background."""
    tint = torch.tensor(COLOURS)[classes].movedim(-1, 0).float()
    mixed = torch.where(classes > 0, (1 - strength) * photo + strength * tint, photo.float())
    return mixed.round().to(torch.uint8)


# -- runs ----------------------------------------------------------------------------------------------------------


def run(config: Config, place: Place) -> common.Outcome:
    """Run one network with one seed."""
    data = photos(config.dataset, place.root)
    truth, parts = masks(data), data.parts
    common.seed_everything(config.seed)
    model = network(config)
    task = OnPixels(data, truth, config) if config.model == "unet" else OnSuperpixels(data, truth, config)
    share = F.one_hot(truth[list(parts["train"])], len(NAMES)).float().mean((0, 1, 2))
    weights = share.clamp(min=1e-4).rsqrt()
    metrics = fit(model, task, parts["train"], weights / (weights * share).sum(), config)
    model.load_state_dict(copy.deepcopy(model).half().state_dict())  # rounded as in the saved file
    val, test = ([found(model, task, i) for i in parts[part]] for part in ("val", "test"))
    metrics |= {f"val_{k}": v for k, v in ious(val, truth[list(parts["val"])]).items()}
    metrics |= ious(test, truth[list(parts["test"])])
    best = [task.map(i, task.draw([i], [False])[0].target) for i in parts["test"]]
    metrics["best_possible_mean_iou"] = ious(best, truth[list(parts["test"])])["mean_iou"]
    first = parts["test"][0]
    metrics["parameters"] = sum(p.numel() for p in model.parameters())
    metrics["pictures"] = [picture(data.images[first], truth[first]), picture(data.images[first], test[0])]
    if place.checkpoint and config.model == "unet":
        place.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        save(copy.deepcopy(model).half(), place.checkpoint.with_suffix(".safetensors"))
    return common.Outcome(metrics, [repr(layer.spec) for layer in model.modules() if isinstance(layer, GConv)])


def picture(photo: Tensor, classes: Tensor) -> str:
    """An overlay as a small JPEG file in base64."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(overlay(photo, classes).permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()


def seen(config: Config, root: Path | None) -> common.Data:
    """The data of a run."""
    data = photos(config.dataset, root)
    return common.Data(f"{data.label}, masks drawn from boxes", data.content_hash)


SCORES = {"mean IoU": "mean_iou"} | {name: f"iou_{name}" for name in NAMES}


def report(rows: list[common.Row]) -> None:
    """Print one line per network."""
    for model in dict.fromkeys(row["config"]["model"] for row in rows):
        all_ = [row["metrics"] for row in rows if row["config"]["model"] == model]
        shown = ", ".join(f"{title} {mean_std(100)([m[name] for m in all_])}" for title, name in SCORES.items())
        print(f"{model:5s} {shown}; {all_[0]['parameters']:,} parameters, {all_[0]['seconds_training']:.0f} s")


EXPERIMENT = Experiment(
    name="cells",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=run,
    data=seen,
    smoke={"dataset": "random", "steps": 3, "width": 4, "hidden": 8, "segments": 40, "batch": 2},
    report=report,
    measured=("seconds_training",),
    tolerance={"train_loss": 0.05} | {prefix + name: 0.03 for name in SCORES.values() for prefix in ("", "val_")},
    defaults={"seeds": 1},
)

TABLE = Table(
    name="cells",
    experiment="cells",
    label="config.model",
    labels=MODELS,
    cells=several(
        **{title: f"metrics.{name}" for title, name in SCORES.items()},
        **{"best possible mean IoU": "metrics.best_possible_mean_iou"},
    ),
    format=mean_std(100),
    words=(("parameters", "metrics.parameters"), ("seconds of training", "metrics.seconds_training")),
    caption=(
        "Intersection over union in % on BCCD's 72 test photos at 160 x 120 pixels, the masks drawn from boxes "
        "(ellipses): a U-Net on pixels, graph networks on about 600 superpixels a photo, 300 steps of 4 photos, "
        "nothing selected. No published number for masks drawn from BCCD's boxes was found."
    ),
    command="python -m experiments.sweep cells --official",
)


def draw(axes: Any, rows: Sequence[common.Row]) -> None:
    """Draw the first test photo: the mask drawn from boxes, and the prediction of each network."""
    from PIL import Image

    first = {row["config"]["model"]: row["metrics"]["pictures"] for row in reversed(rows)}
    names = [m for m in MODELS if m in first]
    texts = [first[names[0]][0], *(first[name][1] for name in names)]
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")) for text in texts]
    wide = [np.pad(p, ((0, 0), (0, 4), (0, 0)), constant_values=255) for p in pictures]
    axes.imshow(np.concatenate(wide, 1), interpolation="nearest")
    side = wide[0].shape[1]
    axes.set_xticks([side * (i + 0.5) for i in range(len(wide))], ["drawn from boxes", *names])
    axes.set_yticks([])
    axes.set_xlabel("red: red cells, blue: white cells, green: platelets")


FIGURE = Figure(name="cells", experiment="cells", draw=draw, title="First test photo")

main = EXPERIMENT.main

if __name__ == "__main__":
    main()
