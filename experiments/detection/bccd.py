"""Blood cell detection: boxes around red cells, white cells and platelets, with two detection heads.

    grid    the detector of `experiments.detection.detector`, with a 3x3 convolution in its head
    gcn     the same detector, with a graph convolution (GCN) on the positions of the heat map instead

Protocol: BCCD, 205 training photos and 72 test photos at half resolution (320 x 240), without pretraining. The two
boxes without area are removed. AdamW with a one-cycle learning rate; augmentation by mirroring, zooming, shifting and
colour changes. The moving average of the weights after the last epoch is tested, in half precision, without model
selection; the 87 validation photos are scored as well. Scores are COCO's average precision by pycocotools, at IoU 0.5
and as the mean over 0.5 to 0.95. `twin_gap` in the row of `grid`: the largest difference of an output, relative to the
largest output, if the 3x3 convolution is replaced by a graph convolution (`selection`) with the same weights.

    python -m experiments.sweep detection                    run missing runs, one process per run
    python -m experiments.detection.bccd --model gcn
    python -m experiments.detection.predict PHOTO --out boxes.png
"""

import base64
import contextlib
import copy
import io
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from datasets.bccd import CLASSES, BoxSet, load_bccd
from experiments.detection.boxes import COLOURS, outline
from experiments.detection.detector import COARSEST, STRIDE, Detector, Found, loss_of, target
from experiments.harness import common
from experiments.harness.experiment import Experiment, Place
from experiments.harness.progress import report as progress
from experiments.harness.render import Figure, Table, mean_std, several
from experiments.harness.store import Checkpoint
from gconv import GConv, save

MODELS = ("grid", "gcn")
SHRINK = 2
MEAN, STD = (200.0, 185.0, 185.0), 30.0  # approximately those of BCCD's red, green and blue channels
SHOWN = 0.3  # minimum score of a box that is drawn


@dataclass(frozen=True)
class Config:
    """Network and training options."""

    model: Literal["grid", "gcn", "all"] = "all"
    """Detection head."""
    dataset: Literal["BCCD", "random"] = "BCCD"
    """Data set; random: generated discs, for testing."""
    width: int = 12
    """Number of channels of the first layer."""
    batch: int = 8
    """Batch size."""
    epochs: int = 60
    """Number of epochs."""
    lr: float = 0.004
    """Learning rate."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("width", "batch", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive and finite, not {self.lr}")


def expand(config: Config, seeds: int) -> list[Config]:
    """One configuration per run."""
    models: Any = MODELS if config.model == "all" else (config.model,)
    return [replace(config, model=model, seed=config.seed + s) for s in range(seeds) for model in models]


# -- the photos ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def photos(dataset: str, root: Path | None = None) -> BoxSet:
    """The photos, loaded once per process. Raises: DataUnavailable, DataCorrupt."""
    if dataset == "BCCD":
        return load_bccd(root, SHRINK)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :96]
    images, boxes, kinds = [], [], []
    for _ in range(14):  # two or three disjoint discs; each class has its colour and size
        image, places = rng.normal(200, 8, (64, 96, 3)), rng.permutation(6)[: rng.integers(2, 4)]
        box, kind = [], rng.integers(0, 3, len(places))
        for place, c in zip(places, kind, strict=True):
            r, cx, cy = (8, 12, 5)[c], 16 + 32 * (place % 3), 16 + 32 * (place // 3)
            image[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = list(COLOURS.values())[c]
            box.append([cx - r, cy - r, cx + r, cy + r])
        images.append(torch.from_numpy(image.clip(0, 255).astype(np.uint8)).permute(2, 0, 1))
        boxes.append(torch.tensor(box, dtype=torch.float32))
        kinds.append(torch.from_numpy(kind))
    return BoxSet(label="random discs", classes=CLASSES, content_hash="generated", source="generated",
                  names=tuple(map(str, range(14))), images=torch.stack(images), boxes=tuple(boxes), kinds=tuple(kinds),
                  parts={"train": range(8), "val": range(8, 10), "test": range(10, 14)})  # fmt: skip


def ready(images: Tensor) -> Tensor:
    """Normalise pixels (b, 3, h, w) from 0 to 255, and pad to multiples of 16 with the mean colour."""
    x = (images.float() - torch.tensor(MEAN).reshape(3, 1, 1)) / STD
    h, w = x.shape[-2:]
    return F.pad(x, (0, -w % COARSEST, 0, -h % COARSEST))


def changed(
    x: Tensor, boxes: Sequence[Tensor], kinds: Sequence[Tensor], generator: torch.Generator
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Mirror, zoom (0.8 to 1.25), shift and recolour photos and boxes; boxes mostly outside are dropped."""
    (b, _, h, w), size = x.shape, torch.tensor([x.shape[3], x.shape[2]])

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    zoom = (1.25 * (0.64 ** draw(b, 1))) * (2.0 * (draw(b, 2) < 0.5) - 1)  # negative: mirrored
    shift = (draw(b, 2) - 0.5) * 0.3
    theta = torch.cat([torch.diag_embed(1 / zoom), (-shift / zoom)[:, :, None]], 2)
    x = F.grid_sample(x, F.affine_grid(theta, [b, 3, h, w], align_corners=False), align_corners=False)
    x = x * (0.8 + 0.4 * draw(b, 1, 1, 1)) + (draw(b, 3, 1, 1) - 0.5) * 0.6
    out_boxes, out_kinds = [], []
    for i, (box, kind) in enumerate(zip(boxes, kinds, strict=True)):
        ends = ((box.reshape(-1, 2, 2) / size * 2 - 1) * zoom[i] + shift[i] + 1) / 2 * size
        whole = torch.cat([ends.amin(1), ends.amax(1)], 1)
        seen = torch.minimum(whole.clamp(min=0), size.repeat(2))
        areas = [(v[:, 2:] - v[:, :2]).clamp(min=0).prod(1) for v in (seen, whole)]
        keep = areas[0] > 0.4 * areas[1]
        out_boxes.append(seen[keep])
        out_kinds.append(kind[keep])
    return x, out_boxes, out_kinds


# -- training ------------------------------------------------------------------------------------------------------


def fit(data: BoxSet, config: Config, place: Place) -> tuple[Detector, dict[str, Any]]:
    """Train on the training photos. Returns: a network with the moving average of the weights.

    Raises: ArithmeticError if the loss becomes NaN or infinite.
    """
    model = Detector(len(data.classes), config.width, config.model)
    mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.995), use_buffers=True)
    adam = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    train, generator = torch.tensor(data.parts["train"]), torch.Generator().manual_seed(config.seed)
    steps = config.epochs * math.ceil(len(train) / config.batch)
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, config.lr, steps, pct_start=0.15)
    saved = None
    if place.checkpoint:
        saved = Checkpoint(place.checkpoint, model=model, mean=mean, adam=adam, cycle=cycle, order=generator)
    done, (losses, seconds) = saved.restore(([], 0.0)) if saved else (0, ([], 0.0))
    for epoch in range(done + 1, config.epochs + 1):
        clock, total = time.perf_counter(), 0.0
        model.train()
        for index in train[torch.randperm(len(train), generator=generator)].split(config.batch):
            chosen = index.tolist()
            x, boxes, kinds = changed(
                ready(data.images[index]), [data.boxes[i] for i in chosen], [data.kinds[i] for i in chosen], generator
            )
            goal = target(boxes, kinds, len(data.classes), x.shape[2] // STRIDE, x.shape[3] // STRIDE)
            adam.zero_grad(set_to_none=True)
            logits, shape = model(x)
            loss = loss_of(logits, shape, goal)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            adam.step()
            cycle.step()
            mean.update_parameters(model)
            total += loss.item() * len(index)
        losses.append(total / len(train))
        seconds += time.perf_counter() - clock
        if not math.isfinite(losses[-1]):
            raise ArithmeticError(f"the training loss became {losses[-1]} in epoch {epoch}: lower the learning rate")
        progress(epoch / config.epochs, f"epoch {epoch}, loss {losses[-1]:.3f}")
        if saved:
            saved.save(epoch, (losses, seconds))
    model.load_state_dict(mean.module.half().state_dict())  # rounded as in the saved file
    return model.eval(), {"train_loss": losses, "seconds_training": round(seconds, 1)}


def search(model: Detector, images: Tensor, least: float = 0.01) -> list[Found]:
    """Detect the objects in uint8 photos (b, 3, h, w)."""
    model.eval()
    return [found for part in images.split(8) for found in model.find(ready(part), least)]


# -- scores --------------------------------------------------------------------------------------------------------


def precision(found: Sequence[Found], boxes: Sequence[Tensor], kinds: Sequence[Tensor]) -> dict[str, float]:
    """COCO's average precision of each class and their mean, at IoU 0.5 and over 0.5, 0.55, ..., 0.95.

    A class without a box is left out of the mean; without any box all is 0.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def entries(i: int, box: Tensor, kind: Tensor) -> list[dict[str, Any]]:
        wide = torch.cat([box[:, :2], box[:, 2:] - box[:, :2]], 1)
        return [{"image_id": i, "category_id": int(c), "bbox": v.tolist(), "area": v[2:].prod().item(), "iscrowd": 0}
                for v, c in zip(wide, kind, strict=True)]  # fmt: skip

    truth = [one for i, (box, kind) in enumerate(zip(boxes, kinds, strict=True)) for one in entries(i, box, kind)]
    guess = [one | {"score": s.item()} for i, f in enumerate(found)
             for one, s in zip(entries(i, f.boxes, f.kinds), f.scores, strict=True)]  # fmt: skip
    names = {f"ap{t}{c}": 0.0 for c in ("", *(f"_{name}" for name in CLASSES)) for t in ("50", "")}
    if not truth or not guess:
        return names
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in range(len(boxes))],
            "categories": [{"id": c} for c in range(len(CLASSES))],
            "annotations": [one | {"id": i} for i, one in enumerate(truth, 1)],
        }
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(guess), "bbox")
        judge.evaluate()
        judge.accumulate()
    table = judge.eval["precision"][:, :, :, 0, 2]  # (IoU, recall, class), all sizes, 100 objects a photo
    for c, name in [(slice(None), ""), *((c, f"_{name}") for c, name in enumerate(CLASSES))]:
        for t, key in ((table[0][..., c], "ap50"), (table[..., c], "ap")):
            names[key + name] = float(t[t > -1].mean()) if (t > -1).any() else 0.0
    return names


@torch.no_grad()
def twin_gap(model: Detector, x: Tensor) -> float:
    """Largest relative difference of the outputs if the grid head is replaced by a graph convolution."""
    twin = Detector(model.classes, model.width, "selection")
    twin.load_state_dict({name.replace("head.1.", "head.1.conv.") if name.startswith("head.1.") else name: value
                          for name, value in model.state_dict().items()})  # fmt: skip
    here, there = (torch.cat(one.double().eval()(x.double()), 1) for one in (copy.deepcopy(model), twin))
    return ((here - there).abs().max() / here.abs().max()).item()


# -- runs ----------------------------------------------------------------------------------------------------------


def run(config: Config, place: Place) -> common.Outcome:
    """Run one network with one seed."""
    data = photos(config.dataset, place.root)
    common.seed_everything(config.seed)
    model, metrics = fit(data, config, place)
    for part, prefix in (("val", "val_"), ("test", "")):
        index = list(data.parts[part])
        found = search(model, data.images[index])
        scores = precision(found, [data.boxes[i] for i in index], [data.kinds[i] for i in index])
        metrics |= {prefix + name: value for name, value in scores.items()}
    picks = range(min(2, len(found)))
    metrics["boxes"] = [[[*map(round, box.tolist()), int(c), round(s.item(), 2)]
                         for box, s, c in zip(*found[i], strict=True) if s >= SHOWN] for i in picks]  # fmt: skip
    metrics["photos"] = [thumbnail(data.images[index[i]]) for i in picks]
    metrics["parameters"] = sum(p.numel() for p in model.parameters())
    if config.model == "grid":
        metrics["twin_gap"] = twin_gap(model, ready(data.images[index[:1]]))
    if place.checkpoint:
        place.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        save(copy.deepcopy(model).half(), place.checkpoint.with_suffix(".safetensors"))
    return common.Outcome(metrics, [repr(layer.spec) for layer in model.modules() if isinstance(layer, GConv)])


def thumbnail(image: Tensor) -> str:
    """A photo (3, h, w) as a small JPEG file in base64."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=60)
    return base64.b64encode(buffer.getvalue()).decode()


def seen(config: Config, root: Path | None) -> common.Data:
    """The data of a run."""
    data = photos(config.dataset, root)
    return common.Data(data.label, data.content_hash)


SCORES = {"AP50": "ap50", "AP50:95": "ap"} | {
    f"{name} {title}": f"{key}_{name}" for name in CLASSES for title, key in (("AP50", "ap50"), ("AP50:95", "ap"))
}


def report(rows: list[common.Row]) -> None:
    """Print one line per network."""
    for model in dict.fromkeys(row["config"]["model"] for row in rows):
        found = [row["metrics"] for row in rows if row["config"]["model"] == model]
        shown = ", ".join(f"{title} {mean_std(100)([m[name] for m in found])}" for title, name in SCORES.items())
        print(f"{model:5s} {shown}; {found[0]['parameters']:,} parameters, {found[0]['seconds_training']:.0f} s")


EXPERIMENT = Experiment(
    name="detection",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=run,
    data=seen,
    smoke={"dataset": "random", "epochs": 2, "width": 4},
    report=report,
    measured=("seconds_training",),
    tolerance={name: 0.03 for name in SCORES.values()},
    defaults={"seeds": 1},
)

TABLE = Table(
    name="detection",
    experiment="detection",
    label="config.model",
    labels=MODELS,
    cells=several(**{title: f"metrics.{name}" for title, name in SCORES.items()}),
    format=mean_std(100),
    words=(("parameters", "metrics.parameters"),),
    caption=(
        "COCO average precision in % on the 72 test photos, mean of the three classes and each, nothing pretrained. "
        "Not comparable, for its pretrained weights, larger photos and another split: YOLOv7 with AP50 90.6 (red cells "
        "85.9, white cells 98.3, platelets 87.6) and AP50:95 61.0. No published number of a detector trained from "
        "scratch on this split was found."
    ),
    command="python -m experiments.sweep detection --official",
)


def draw(axes: Any, rows: Sequence[common.Row]) -> None:
    """Draw the boxes detected in the first test photos, one row of pictures per network."""
    from PIL import Image

    first = {row["config"]["model"]: row["metrics"] for row in reversed(rows)}
    names = [m for m in MODELS if m in first]
    lines = []
    for name in names:
        pictures = []
        for text, boxes in zip(first[name]["photos"], first[name]["boxes"], strict=True):
            picture = Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")
            drawn = outline(picture, [(box[:4], CLASSES[box[4]], box[5]) for box in boxes])
            pictures.append(np.pad(np.asarray(drawn), ((0, 4), (0, 4), (0, 0)), constant_values=255))
        lines.append(np.concatenate(pictures, 1))
    axes.imshow(np.concatenate(lines), interpolation="nearest")
    axes.set_yticks([lines[0].shape[0] * (i + 0.5) for i in range(len(names))], names)
    axes.set_xticks([])
    axes.set_xlabel("red: red cells, blue: white cells, green: platelets; from a score of 0.3")


FIGURE = Figure(name="detection", experiment="detection", draw=draw, title="Boxes found in test photos")

main = EXPERIMENT.main

if __name__ == "__main__":
    main()
