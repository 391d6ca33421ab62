"""A CNN on digits and its graph counterpart have equal logits (to 1e-10); isotropic graph networks are less accurate.

Data: embedded, nothing is downloaded. All networks have the same seeds and budget; the last epoch is used.

    images   1,797 digits, 8x8, 80:20 split. Two layers (width, 2 width), each with ReLU and 2x2 max pooling on the
             grid, then one linear layer; Adam. cnn: 3x3 convolutions on the grid. The others work on the pixel graph
             with 8 neighbours: selection (a matrix for each of the nine offsets), gcn, cheb. selection starts with the
             weights of a cnn that is trained as well; the largest difference of their logits is recorded before and
             after training. In float64, so that rounding does not matter.
    nodes    a citation-like network (contextual block model), Zachary's karate club and a k-NN graph of the digits. Two
             layers of equal width, dropout, Adam with weight decay: gcn, cheb, gat, and an mlp without edges.

    python -m experiments.images.digits_pair                    everything, three seeds; resumable
    python -m experiments.images.digits_pair --task nodes       one task; further limited by --dataset and --model
    make demo                                                   everything into runs/, with a figure
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets import GraphSet, ImageSet, load
from experiments.harness import common, render
from experiments.harness.machine import ROOT
from experiments.harness.training import accuracy, step
from experiments.images.cifar10_graph import OnPixels, move_weights
from gconv import GConv, Graph
from gconv.operators import cheb, conv2d, gat, gcn, max_pool2d, selection

MODELS = {"images": ("cnn", "selection", "gcn", "cheb"), "nodes": ("mlp", "gcn", "cheb", "gat")}
DATASETS = {"images": ("digits",), "nodes": ("citation-like", "digits-knn", "karate")}
RECIPES: dict[str, dict[str, Any]] = {
    "images": {"epochs": 10, "width": 16, "lr": 0.01, "batch": 50},
    "nodes": {"epochs": 100, "width": 16, "lr": 0.01, "batch": 0},  # 0: the whole graph in each step
}

FIGURE = render.Figure(
    name="digits_pair",
    experiment="digits_pair",
    draw=render.bars("config.model", "config.dataset", "metrics.test_accuracy"),
    title="Embedded data: test accuracy in %",
)


@dataclass(frozen=True)
class Config:
    """Networks and training options; options that are not given take all values, or those of the task's recipe."""

    task: Literal["all", "images", "nodes"] = "all"
    """Classification of images or of nodes."""
    dataset: Literal["all", "digits", "citation-like", "digits-knn", "karate"] = "all"
    """Data set."""
    model: Literal["all", "cnn", "selection", "gcn", "cheb", "gat", "mlp"] = "all"
    """Network."""
    epochs: int | None = None
    """Number of epochs (default: 10 for images, 100 for nodes)."""
    width: int | None = None
    """Channels of the first layer (default: 16)."""
    lr: float | None = None
    """Learning rate of Adam (default: 0.01)."""
    batch: int | None = None
    """Images per step (default: 50); node tasks always use the whole graph."""
    k: int = 3
    """Number of terms of the Chebyshev filter."""
    dropout: float = 0.5
    """Dropout probability in node tasks."""
    weight_decay: float = 5e-4
    """Weight decay in node tasks."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Check the options."""
        if min(v for v in (self.epochs, self.width, self.k, 1) if v is not None) < 1 or (self.batch or 1) < 1:
            raise ValueError("epochs, width, batch and k must be at least 1")
        if (self.width or 4) % 4:
            raise ValueError(f"width must be a multiple of 4, the heads of gat, not {self.width}")
        if not (0 <= self.dropout < 1 and (self.lr is None or self.lr > 0) and self.weight_decay >= 0):
            raise ValueError("lr must be positive, dropout in [0, 1) and weight_decay at least 0")


def runs(config: Config, seeds: int) -> list[Config]:
    """All runs selected by a configuration. Raises: SystemExit if there are none."""
    found = []
    for task, recipe in RECIPES.items():
        own = {key: value if getattr(config, key) is None else getattr(config, key) for key, value in recipe.items()}
        for dataset, model, s in itertools.product(DATASETS[task], MODELS[task], range(seeds)):
            if config.task in ("all", task) and config.dataset in ("all", dataset) and config.model in ("all", model):
                which: dict[str, Any] = {"task": task, "dataset": dataset, "model": model, "seed": config.seed + s}
                found.append(replace(config, **which, **own))
    if not found:
        options = "; ".join(f"{t}: {', '.join(DATASETS[t])} by {', '.join(MODELS[t])}" for t in MODELS)
        asked = f"task {config.task}, dataset {config.dataset}, model {config.model}"
        raise SystemExit(f"error: there is no run of {asked}. {options}")
    return found


@lru_cache
def data(name: str) -> ImageSet | GraphSet:
    """An embedded data set, created once per process."""
    return load(name)


# -- images --------------------------------------------------------------------------------------------------------


def image_network(model: str, width: int, k: int) -> nn.Sequential:
    """The network: only its two convolutions depend on `model`."""
    layers: list[nn.Module] = []
    for side, i, o in ((8, 1, width), (4, width, 2 * width)):
        if model == "cnn":
            layer: nn.Module = GConv(conv2d(i, o, 3, padding=1))
        else:
            spec = {"selection": selection(i, o, taps=9), "gcn": gcn(i, o), "cheb": cheb(i, o, k=k)}[model]
            layer = OnPixels(spec, side, neighbours=8)
        layers += [layer, nn.ReLU(), GConv(max_pool2d(2))]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 2 * width, 10)).double()


def batches(images: Tensor, labels: Tensor, size: int, generator: torch.Generator | None = None) -> Any:
    """(images, labels), shuffled if a generator is given."""
    count = len(labels)
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    return ((images[part], labels[part]) for part in order.split(size))


def train_images(model: nn.Module, digits: ImageSet, config: Config) -> float:
    """Train. Returns: the accuracy on the test images after the last epoch."""
    assert config.lr and config.epochs and config.batch
    optimiser = torch.optim.Adam(model.parameters(), config.lr)
    order = torch.Generator().manual_seed(config.seed)
    for _ in range(config.epochs):
        for x, y in batches(digits.train_images.double(), digits.train_labels, config.batch, order):
            step(model, optimiser, x, y)
    return accuracy(model, batches(digits.test_images.double(), digits.test_labels, 500))


def run_images(config: Config) -> common.Outcome:
    """Train one network on the digits; for the twin also a cnn with the same weights, and compare the two."""
    assert config.width
    digits = data(config.dataset)
    assert isinstance(digits, ImageSet)
    common.seed_everything(config.seed)
    cnn = image_network("cnn", config.width, config.k)
    common.seed_everything(config.seed)
    model = image_network(config.model, config.width, config.k)
    test = digits.test_images.double()
    metrics: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    if config.model == "selection":
        move_weights(cnn, model)
        metrics["logits_gap_start"] = gap(model, cnn, test)
        if metrics["logits_gap_start"] > 1e-10:
            raise ArithmeticError(f"the twin is not the cnn: their logits differ by {metrics['logits_gap_start']:.1e}")
        metrics["test_accuracy"] = train_images(model, digits, config)
        metrics["cnn_accuracy"] = train_images(cnn, digits, config)
        metrics["logits_gap"] = gap(model, cnn, test)
    else:
        metrics["test_accuracy"] = train_images(model, digits, config)
    return common.Outcome(metrics, lowerings(model, test[: config.batch]))


@torch.no_grad()
def gap(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    """The largest difference between the logits of two networks."""
    return float((model(x) - other(x)).abs().max())


@torch.no_grad()
def lowerings(model: nn.Sequential, x: Tensor) -> list[str]:
    """The lowering chosen by the plan of each operator in the network."""
    chosen = []
    for layer in model:
        if isinstance(layer, GConv):
            chosen.append(layer.plan(x).chosen.name)
        elif isinstance(layer, OnPixels):
            chosen.append(layer.conv.plan(x.flatten(2).mT, layer.graph).chosen.name)
        x = layer(x)
    return chosen


# -- nodes ---------------------------------------------------------------------------------------------------------


class NodeNetwork(nn.Module):
    """Two graph layers, with dropout before each and a nonlinearity between them."""

    def __init__(self, model: str, i: int, width: int, classes: int, k: int, dropout: float):
        super().__init__()
        specs: dict[str, Callable[[], list[nn.Module]]] = {
            "mlp": lambda: [nn.Linear(i, width), nn.Linear(width, classes)],
            "gcn": lambda: [GConv(gcn(i, width)), GConv(gcn(width, classes))],
            "cheb": lambda: [GConv(cheb(i, width, k=k)), GConv(cheb(width, classes, k=k))],
            "gat": lambda: [
                GConv(gat(i, width // 4, heads=4, dropout=dropout)),
                GConv(gat(width, classes, dropout=dropout)),
            ],
        }
        self.first, self.second = specs[model]()
        self.dropout = dropout

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        """(n, i) -> (n, classes)."""
        for layer in (self.first, self.second):
            x = F.dropout(x if layer is self.first else F.elu(x), self.dropout, self.training)
            x = layer(x, graph) if isinstance(layer, GConv) else layer(x)
        return x


def run_nodes(config: Config) -> common.Outcome:
    """Train one network on one graph. Returns: the accuracy on the test nodes after the last epoch."""
    assert config.lr and config.epochs and config.width
    embedded = data(config.dataset)
    assert isinstance(embedded, GraphSet)
    given, classes = embedded.data, len(embedded.classes)
    graph = Graph(given.edge_index, given.num_nodes)
    x = given.x / given.x.sum(1, keepdim=True).clamp(min=1)
    common.seed_everything(config.seed)
    model = NodeNetwork(config.model, x.shape[1], config.width, classes, config.k, config.dropout)
    optimiser = torch.optim.Adam(model.parameters(), config.lr, weight_decay=config.weight_decay)
    for _ in range(config.epochs):
        optimiser.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(x, graph)[given.train_mask], given.y[given.train_mask])
        loss.backward()
        optimiser.step()
    model.eval()
    with torch.no_grad():
        right = model(x, graph).argmax(1) == given.y
        layers = [layer for layer in (model.first, model.second) if isinstance(layer, GConv)]
        inputs = (x, x.new_zeros(len(x), config.width))
        chosen = [layer.plan(z, graph).chosen.name for layer, z in zip(layers, inputs, strict=False)]
    metrics = {
        "test_accuracy": float(right[given.test_mask].double().mean()),
        "train_loss": loss.item(),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    return common.Outcome(metrics, chosen)


# -- command line --------------------------------------------------------------------------------------------------


def run(config: Config) -> common.Outcome:
    """Make one row, with one thread: such small tensors gain nothing from more, and --jobs uses the other cores."""
    torch.set_num_threads(1)
    return run_images(config) if config.task == "images" else run_nodes(config)


def seen(config: Config) -> common.Data:
    """The data of a run."""
    embedded = data(config.dataset)
    return common.Data(f"{embedded.label}, embedded", embedded.content_hash)


def show(rows: Sequence[common.Row]) -> None:
    """Print the rows as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    titles = {"images": "images, and graphs of their pixels", "nodes": "graphs, a label a node"}
    for task, title in titles.items():
        mine = render.select(rows, [("config.task", task)])
        columns = list(dict.fromkeys(row["config"]["dataset"] for row in mine))
        if not columns:
            continue
        n = len({row["seed"] for row in mine})
        table = Table(title=f"Embedded data, {title}: test accuracy in %, n = {n}", title_justify="left")
        for column in ("model", *columns, "parameters", "lowerings"):
            table.add_column(column, justify="left" if column in ("model", "lowerings") else "right")
        for model in dict.fromkeys(row["config"]["model"] for row in mine):
            of_model = render.select(mine, [("config.model", model)])
            cells = []
            for column in columns:
                values = [r["metrics"]["test_accuracy"] for r in of_model if r["config"]["dataset"] == column]
                cells.append(render.mean_std(100)(values).split(" (")[0] if values else "-")
            most = max(r["metrics"]["parameters"] for r in of_model)
            used = dict.fromkeys(name.split(":")[0] for r in of_model for name in r["lowering"])
            table.add_row(model, *cells, f"{most:,}", ", ".join(used) or "-")
        console.print(table)
        for row in render.select(mine, [("config.model", "selection")]):
            m = row["metrics"]
            same = "equal" if m["test_accuracy"] == m["cnn_accuracy"] else "DIFFERENT"
            text = f"seed {row['seed']}: selection and cnn from the same weights: largest gap of logits "
            text += f"{m['logits_gap_start']:.1e} before training, {m['logits_gap']:.1e} after; {same} accuracy"
            console.print(text, highlight=False, soft_wrap=True)


def draw(results: common.Results, default: bool) -> Path:
    """Draw the figure of all rows of the file: in experiments/figures, or next to a user's own file."""
    path = ROOT / "experiments" / "figures" / "digits_pair.png" if default else results.path.with_suffix(".png")
    rows = render.select(
        [row for _, there in results.sources() for row in there], [("experiment", "digits_pair"), *FIGURE.where]
    )
    render.paint(FIGURE, rows, path)
    return path


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    config, options = common.cli(Config, __doc__, argv, seeds=3, jobs=2)
    results = options.open("digits_pair")
    print("digits_pair runs on embedded data: no download, no real benchmark.", flush=True)
    todo = runs(config, options.seeds)
    rows = common.sweep(todo, run, results, experiment="digits_pair", data=seen, jobs=options.jobs)
    show(rows)
    print(f"rows: {results.path}\nfigure: {draw(results, options.official)}")


if __name__ == "__main__":
    main()
