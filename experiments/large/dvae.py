"""A small discrete autoencoder (the first half of DALL-E): images as 64 codes, with gconv or torch.nn convolutions.

Encoder: two strided 4x4 convolutions, a 3x3 convolution with a skip connection, and a 1x1 convolution to the logits of
`codes` codes at 8 x 8 positions. A code is sampled at each position by the Gumbel softmax. Decoder: a 1x1 convolution
(the code book), a 3x3 convolution with a skip connection and two transposed 4x4 convolutions. Loss: squared error plus
`beta` times the divergence of the distribution of codes from the uniform one. Both engines start from the same weights
and use the same batches and noise.

Protocol: CIFAR-10, the first `images` training images, pixels in [0, 1]; Adam; the temperature decreases from 1 to 1/2;
the last epoch is used, without model selection. Evaluated once on the 10,000 test images, with the most likely codes:
mean squared error, perplexity of the code frequencies (effective number of codes, at most `codes`), and for comparison
the error of the mean training image. `engine_gap`: largest difference, in float64, of the code probabilities and of the
reconstructions from the same codes if the other engine uses the same trained weights.

    python -m experiments.sweep dvae
    python -m experiments.large.dvae --engine torch --codes 64

Source: Ramesh et al., Zero-Shot Text-to-Image Generation, ICML 2021; Jang, Gu and Poole, Categorical Reparameterization
with Gumbel-Softmax, ICLR 2017.
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

import gconv
from datasets.cifar10 import load_cifar10
from experiments.harness import common
from experiments.harness.experiment import Experiment, Place
from experiments.harness.progress import report as progress
from experiments.harness.render import Figure, Table, mean_std, several
from gconv import GConv
from gconv.operators import conv2d, conv_transpose2d

ENGINES = ("gconv", "torch")
SHOWN = 8


@dataclass(frozen=True)
class Config:
    """Network and training options."""

    engine: Literal["gconv", "torch", "all"] = "all"
    """Layers of gconv, or of torch.nn."""
    dataset: Literal["cifar10", "random"] = "cifar10"
    """random: generated images, for testing."""
    images: int = 5000
    """Number of training images."""
    width: int = 32
    """Number of channels."""
    codes: int = 128
    """Number of codes."""
    epochs: int = 2
    """Number of epochs."""
    batch: int = 50
    """Batch size."""
    lr: float = 0.002
    """Learning rate."""
    beta: float = 0.0005
    """Weight of the divergence of the codes in the loss."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Check the options."""
        for name, least in (("images", 1), ("width", 1), ("codes", 2), ("epochs", 1), ("batch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not 0 < self.lr < math.inf or not 0 <= self.beta < math.inf:
            raise ValueError(f"lr must be positive and beta not negative, not {self.lr} and {self.beta}")


def expand(config: Config, seeds: int) -> list[Config]:
    """One configuration per run."""
    engines: Any = ENGINES if config.engine == "all" else (config.engine,)
    return [replace(config, engine=e, seed=config.seed + s) for s in range(seeds) for e in engines]


class Images(NamedTuple):
    """Pixels in [0, 1], with label and hash."""

    train: Tensor
    test: Tensor
    label: str
    hash: str


@lru_cache(maxsize=1)
def pixels(dataset: str, images: int, root: Path | None = None) -> Images:
    """The images of a run. Raises: DataUnavailable, DataCorrupt, ValueError if there are fewer."""
    if dataset == "random":
        x = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        x = F.interpolate(x, size=32, mode="bilinear")
        return Images(x[:40][:images], x[40:], "random images", "generated")
    data = load_cifar10(root)
    if len(data.train_images) < images:
        raise ValueError(f"there are {len(data.train_images)} training images, not {images}")
    return Images(data.train_images[:images] / 255, data.test_images / 255, data.label, data.content_hash)


class DiscreteAutoencoder(nn.Module):
    """Images (b, 3, h, w) to codes (h / 4, w / 4) and back."""

    def __init__(self, width: int, codes: int):
        super().__init__()
        w = width
        self.down = nn.ModuleList(GConv(conv2d(i, o, 4, stride=2, padding=1)) for i, o in ((3, w), (w, 2 * w)))
        self.around = nn.ModuleList(GConv(conv2d(2 * w, 2 * w, 3, padding=1)) for _ in range(2))
        self.to_codes, self.book = GConv(conv2d(2 * w, codes, 1)), GConv(conv2d(codes, 2 * w, 1, bias=False))
        self.up = nn.ModuleList(GConv(conv_transpose2d(i, o, 4, stride=2, padding=1)) for i, o in ((2 * w, w), (w, 3)))

    def encode(self, x: Tensor) -> Tensor:
        """(b, 3, h, w) -> logits (b, codes, h / 4, w / 4)."""
        for layer in self.down:
            x = F.relu(layer(x))
        logits: Tensor = self.to_codes(x + F.relu(self.around[0](x)))
        return logits

    def decode(self, z: Tensor) -> Tensor:
        """Weights of the codes (b, codes, h / 4, w / 4) -> images."""
        x = self.book(z)
        x = self.up[0](x + F.relu(self.around[1](x)))
        return torch.sigmoid(self.up[1](F.relu(x)))

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction by the most likely codes."""
        logits = self.encode(x)
        z = F.one_hot(logits.argmax(1), logits.shape[1]).movedim(-1, 1).to(x.dtype)
        return self.decode(z)


def in_torch(model: DiscreteAutoencoder) -> DiscreteAutoencoder:
    """The same network of torch.nn layers, with the same weights."""
    other = copy.deepcopy(model)
    for path, layer in list(model.named_modules()):
        if isinstance(layer, GConv):
            other.set_submodule(path, gconv.export(layer, "torch"))
    return other


def fit(model: DiscreteAutoencoder, train: Tensor, config: Config) -> list[float]:
    """The mean loss of each epoch.

    Raises: ArithmeticError if the loss becomes NaN or infinite.
    """
    adam = torch.optim.Adam(model.parameters(), config.lr)
    generator, losses = torch.Generator().manual_seed(config.seed), []
    steps, step = config.epochs * math.ceil(len(train) / config.batch), 0
    for epoch in range(1, config.epochs + 1):
        total = 0.0
        for rows in torch.randperm(len(train), generator=generator).split(config.batch):
            x = train[rows]
            logits = model.encode(x)
            noise = -torch.log(torch.empty_like(logits).exponential_(generator=generator))
            z = ((logits + noise) / (1 - 0.5 * step / steps)).softmax(1)
            error = (model.decode(z) - x).square().mean()
            log_p = logits.log_softmax(1)
            divergence = (log_p.exp() * (log_p + math.log(config.codes))).sum(1).mean()
            loss = error + config.beta * divergence
            adam.zero_grad(set_to_none=True)
            loss.backward()
            adam.step()
            total, step = total + loss.item() * len(rows), step + 1
        losses.append(total / len(train))
        if not math.isfinite(losses[-1]):
            raise ArithmeticError(f"the loss became {losses[-1]} in epoch {epoch}: lower the learning rate")
        progress(epoch / config.epochs, f"epoch {epoch}, loss {losses[-1]:.4f}")
    return losses


def perplexity(counts: Tensor) -> float:
    """The perplexity of frequencies, exp of the entropy: the effective number of codes in use.

    >>> round(perplexity(torch.tensor([5, 5, 0, 0])), 6)
    2.0
    """
    p = counts[counts > 0] / counts.sum()
    return math.exp(-(p * p.log()).sum().item())


@torch.no_grad()
def score(model: DiscreteAutoencoder, test: Tensor, codes: int) -> dict[str, float]:
    """Reconstruction error and perplexity on images, with the most likely codes."""
    error, counts = 0.0, torch.zeros(codes, dtype=torch.int64)
    for x in test.split(250):
        chosen = model.encode(x).argmax(1)
        counts += chosen.flatten().bincount(minlength=codes)
        error += (model(x) - x).square().sum().item()
    return {"error": error / test.numel(), "perplexity": perplexity(counts), "used": int((counts > 0).sum())}


@torch.no_grad()
def engine_gap(model: DiscreteAutoencoder, images: Tensor) -> float:
    """Largest difference of the code probabilities and of reconstructions from the same codes (both in [0, 1])."""
    one = copy.deepcopy(model).double()
    other = in_torch(one)
    x = images.double()
    z = one.encode(x).softmax(1)
    gap = (other.encode(x).softmax(1) - z).abs().max() + (one.decode(z) - other.decode(z)).abs().max()
    return gap.item()


def hexed(images: Tensor) -> str:
    """Images (n, 3, h, w) in [0, 1] in a row, as hex digits, three bytes per pixel."""
    wide = torch.cat([*images], -1).movedim(0, -1)
    return (wide * 255).round().byte().numpy().tobytes().hex()


def run(config: Config, place: Place) -> common.Outcome:
    """Run one network with one seed."""
    data = pixels(config.dataset, config.images, place.root)
    common.seed_everything(config.seed)
    native = DiscreteAutoencoder(config.width, config.codes)
    model = native if config.engine == "gconv" else in_torch(native)
    clock = time.perf_counter()
    metrics: dict[str, Any] = {"train_loss": fit(model, data.train, config)}
    metrics["seconds_training"] = round(time.perf_counter() - clock, 1)
    metrics |= score(model, data.test, config.codes)
    metrics["error_of_mean"] = (data.test - data.train.mean(0)).square().mean().item()
    if config.engine == "gconv":
        metrics["engine_gap"] = engine_gap(model, data.test[:4])
        with torch.no_grad():
            metrics["picture"] = hexed(torch.cat([data.test[:SHOWN], model(data.test[:SHOWN])]))
    metrics["parameters"] = sum(p.numel() for p in model.parameters())
    specs = [repr(layer.spec) for layer in native.modules() if isinstance(layer, GConv)]
    metrics["multiply_adds"] = round(gconv.summary(native, data.test[:1]).totals["multiply_adds"] / 1e6, 2)
    return common.Outcome(metrics, specs)


def seen(config: Config, root: Path | None) -> common.Data:
    """The data of a run."""
    data = pixels(config.dataset, config.images, root)
    return common.Data(data.label, data.hash)


def report(rows: list[common.Row]) -> None:
    """Print one line per run."""
    for row in rows:
        m = row["metrics"]
        print(
            f"{row['config']['engine']:6s} error {m['error']:.5f} (mean image {m['error_of_mean']:.5f}), "
            f"perplexity {m['perplexity']:.1f}, {m['used']} codes in use, {m['parameters']:,} parameters"
        )


EXPERIMENT = Experiment(
    name="dvae",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=run,
    data=seen,
    smoke={"dataset": "random", "images": 20, "width": 4, "codes": 8, "epochs": 2, "batch": 10},
    report=report,
    measured=("seconds_training",),
    tolerance={"error": 0.002, "perplexity": 15.0, "used": 15.0, "train_loss": 0.005},
    defaults={"seeds": 3},
)


def remarks(rows: Sequence[common.Row]) -> list[str]:
    """Sentences on the use of codes and the difference of the engines."""
    said = []
    for row in rows:
        c, m = row["config"], row["metrics"]
        used = f"{m['used']} of {c['codes']} codes in use, perplexity {m['perplexity']:.1f}"
        gap = (
            f"; with these weights torch.nn's reconstructions differ by {m['engine_gap']:.0e}" if "picture" in m else ""
        )
        said.append(f"{c['engine']}, seed {c['seed']}: {used}{gap}.")
    return said


TABLE = Table(
    name="dvae",
    experiment="dvae",
    label="config.engine",
    labels=ENGINES,
    n=3,
    unfinished=("*",),
    cells=several(
        **{"error x 1000": "metrics.error", "of the mean image": "metrics.error_of_mean"},
    ),
    format=mean_std(1000, 2),
    words=(("parameters", "metrics.parameters"), ("multiply-adds, M", "metrics.multiply_adds")),
    caption=(
        "Mean squared error (times 1000, pixels in [0, 1]) of CIFAR-10's test images through 64 codes of 128, a 7-bit "
        "word for each 4 x 4 pixels: a discrete autoencoder of gconv's convolutions and of torch.nn's, same weights at "
        "the start, batches and noise; 5,000 training images, 2 epochs."
    ),
    command="python -m experiments.sweep dvae --official",
    remarks=remarks,
)


def draw(axes: Any, rows: Sequence[common.Row]) -> None:
    """Draw test images and their reconstructions."""
    found = next((r["metrics"]["picture"] for r in rows if "picture" in r["metrics"]), None)
    if found is None:
        return
    wide = np.frombuffer(bytes.fromhex(found), np.uint8).reshape(32, -1, 3)
    both = np.concatenate(np.split(wide, 2, 1))
    axes.imshow(both, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([16, 48], ["image", "64 codes"])


FIGURE = Figure(name="dvae", experiment="dvae", draw=draw, title="Test images and what 64 codes keep of them")

main = EXPERIMENT.main

if __name__ == "__main__":
    main()
