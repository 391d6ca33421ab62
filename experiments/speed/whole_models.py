"""Whole models before and after `gconv.convert`: losses, seconds per epoch and peak memory.

Protocol: the networks of PyG's examples for GCN, GAT, Chebyshev, SAGE and APPNP, on Cora if its files are available and
on a random power-law graph; and a ConvNeXt-like network of torch.nn layers with 31 x 31 depthwise kernels on random
images. `gconv.convert` is the only change. Both models are also compiled by torch.compile, in the faster of its default
mode and max-autotune-no-cudagraphs. First, the losses of five steps of Adam from the same weights, without dropout,
must agree. Then epochs are timed in alternation, in alternating order, with all threads and wall time; an epoch is one
step of Adam on the whole graph or on the batch of images. The dropout of the input features, with which the graph
networks begin, is timed alone as well: no converted layer changes it, but a compiler does. Peak memory is the resident
memory of a separate process for each, from before its first epoch to the end of the second.

    python -m experiments.speed.whole_models                everything: some minutes on two cores
    python -m experiments.speed.whole_models --only 'GAT'   models whose name matches this regular expression
    python -m experiments.speed.whole_models --quick        tiny sizes, for testing; rows are written to runs/
"""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gconv
from datasets import DataUnavailable, load_planetoid
from experiments.harness import common, measure
from experiments.speed.cases import MODES
from experiments.speed.layers import place
from experiments.speed.sides import under
from gconv.kernels import backend

GRAPHS = ("GCN", "GAT", "Cheb", "SAGE", "APPNP")
TOL = 1e-3  # for losses after several steps of Adam, which divides small gradients by small numbers
STEPS = 5
Side = Literal["before", "after"]


@dataclass(frozen=True)
class Config:
    """Options."""

    only: str = ""
    """Run only models whose name matches this regular expression."""
    quick: bool = False
    """Run tiny sizes, for testing."""
    threads: int = 0
    """Number of threads; 0 for all."""
    seed: int = 0
    """Random seed."""


@dataclass(frozen=True)
class Case:
    """A model and a data set."""

    case: str
    model: str
    data: Literal["Cora", "random graph", "random images"]
    nodes: int = 0
    edges: int = 0
    channels: tuple[int, int, int] = (0, 0, 0)
    """Number of inputs, hidden channels and classes."""
    images: tuple[int, int] = (0, 0)
    """Number of images, pixels per side."""
    budget: float = 15.0
    """Time limit of the rounds in seconds; at least three rounds are run."""
    rounds: int = 30
    threads: int = 0
    seed: int = 0


class Task(NamedTuple):
    """The training data of a model."""

    inputs: tuple[Tensor, ...]
    label: Tensor
    rows: Tensor | None
    """The nodes with labels used in the loss."""
    seen: common.Data


def cases(config: Config, root: Path | None = None) -> list[Case]:
    """The models selected by the options; those on Cora only if it is available."""
    quick, how = config.quick, {"threads": config.threads, "seed": config.seed}
    budget = {"budget": 0.1, "rounds": 3} if quick else {}
    found = []
    try:
        load_cora(root)
        found += [Case(f"{m} on Cora", m, "Cora", channels=(1433, _hidden(m), 7), **how, **budget) for m in GRAPHS]  # type: ignore[arg-type]
    except DataUnavailable as error:
        print(f"without Cora: {error}", file=sys.stderr)
    nodes, edges = (300, 2400) if quick else (170_000, 2_330_000)
    for m in GRAPHS:
        name = f"{m}, random graph, {nodes} nodes, {edges} edges"
        size = {"nodes": nodes, "edges": edges, "channels": (128, 64, 40)}
        found.append(Case(name, m, "random graph", **size, **how, **budget))  # type: ignore[arg-type]
    images = (2, 32) if quick else (4, 128)
    name = f"ConvNeXt-like, 31x31 depthwise, {images[0]} images of {images[1]}x{images[1]}"
    channels = (3, 8, 10) if quick else (3, 64, 10)
    found.append(Case(name, "ConvNeXt", "random images", channels=channels, images=images, **how, **budget))  # type: ignore[arg-type]
    chosen = [case for case in found if re.search(config.only, case.case)]
    if not chosen:
        raise SystemExit(f"error: no model's name contains {config.only!r}")
    return chosen


def _hidden(model: str) -> int:
    return 64 if model in ("GAT", "APPNP") else 16


# -- models as written by users of PyG and torch -----------------------------------------------------------------------


def build(case: Case) -> nn.Module:
    """The model of torch.nn and PyG layers."""
    torch.manual_seed(case.seed)
    if case.model == "ConvNeXt":
        return ConvNeXt(*case.channels)
    i, h, o = case.channels
    return network(case.model, i, h, o)


def network(model: str, i: int, h: int, o: int) -> nn.Module:
    """The network of PyG's example of this name."""
    from torch_geometric import nn as pyg

    class TwoLayers(nn.Module):
        def __init__(self, first: nn.Module, second: nn.Module, dropout: float, activation: Callable[[Tensor], Tensor]):
            super().__init__()
            self.conv1, self.conv2, self.dropout, self.activation = first, second, dropout, activation

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            x = F.dropout(x, p=self.dropout, training=self.training)
            x = self.activation(self.conv1(x, edge_index))
            x = F.dropout(x, p=self.dropout, training=self.training)
            return self.conv2(x, edge_index)

    class Propagated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin1, self.lin2, self.prop1 = nn.Linear(i, h), nn.Linear(h, o), pyg.APPNP(10, 0.1)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            x = F.dropout(x, training=self.training)
            x = F.relu(self.lin1(x))
            x = F.dropout(x, training=self.training)
            return self.prop1(self.lin2(x), edge_index)

    match model:
        case "GCN":
            return TwoLayers(pyg.GCNConv(i, h, cached=True), pyg.GCNConv(h, o, cached=True), 0.5, F.relu)
        case "GAT":
            first = pyg.GATConv(i, h // 8, 8, dropout=0.6)
            return TwoLayers(first, pyg.GATConv(h, o, heads=1, concat=False, dropout=0.6), 0.6, F.elu)
        case "Cheb":
            return TwoLayers(pyg.ChebConv(i, h, K=3), pyg.ChebConv(h, o, K=3), 0.5, F.relu)
        case "SAGE":
            return TwoLayers(pyg.SAGEConv(i, h), pyg.SAGEConv(h, o), 0.5, F.relu)
        case "APPNP":
            return Propagated()
    raise ValueError(f"there is no model {model!r}; there are {', '.join(GRAPHS)}")


class Block(nn.Module):
    """A 31 x 31 depthwise convolution and an MLP at every pixel, with a skip connection."""

    def __init__(self, channels: int):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 31, padding=15, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.wide, self.narrow = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.narrow(F.gelu(self.wide(y))).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Patches of 4 x 4 pixels, two stages of two blocks, global average pooling, a linear classifier."""

    def __init__(self, i: int, h: int, o: int):
        super().__init__()
        self.stem = nn.Conv2d(i, h, 4, stride=4)
        self.one = nn.Sequential(Block(h), Block(h))
        self.down = nn.Conv2d(h, 2 * h, 2, stride=2)
        self.two = nn.Sequential(Block(2 * h), Block(2 * h))
        self.head = nn.Linear(2 * h, o)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.two(self.down(self.one(self.stem(images)))).mean((2, 3)))


# -- data ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def load_cora(root: Path | None) -> Task:
    """Cora with row-normalised features; the loss is that of the training papers. Raises: DataUnavailable."""
    found = load_planetoid("Cora", root)
    x = found.data.x / found.data.x.sum(1, keepdim=True).clamp(min=1e-12)
    rows = found.data.train_mask.nonzero()[:, 0]
    return Task((x, found.data.edge_index), found.data.y, rows, common.Data(found.label, found.content_hash))


def task(case: Case, root: Path | None = None) -> Task:
    """The data of a case."""
    if case.data == "Cora":
        return load_cora(root)
    generator = torch.Generator().manual_seed(case.seed)
    i, _, o = case.channels
    if case.data == "random images":
        many, side = case.images
        images = torch.randn(many, i, side, side, generator=generator)
        label = torch.randint(o, (many,), generator=generator)
        return Task((images,), label, None, common.Data("random images", "generated"))
    x = torch.randn(case.nodes, i, generator=generator)
    label = torch.randint(o, (case.nodes,), generator=generator)
    index = measure.power_law(case.nodes, case.edges, case.seed)
    return Task((x, index), label, None, common.Data("random power-law graph", "generated"))


# -- comparing -----------------------------------------------------------------------------------------------------


class Training:
    """A model with its training data and epochs."""

    def __init__(self, model: nn.Module, task: Task):
        self.model, self.task = model, task
        self.optimizer = torch.optim.Adam(model.parameters(), lr=0.005, weight_decay=5e-4)

    def epoch(self) -> Tensor:
        self.optimizer.zero_grad()
        rows = slice(None) if self.task.rows is None else self.task.rows
        loss = F.cross_entropy(self.model(*self.task.inputs)[rows], self.task.label[rows])
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def losses(self, epochs: int) -> Tensor:
        """Disable dropout, whose random numbers would differ."""
        self.model.eval()
        found = torch.stack([self.epoch() for _ in range(epochs)])
        self.model.train()
        return found


def sides(case: Case, root: Path | None = None) -> dict[Side, Training]:
    """The model before and after conversion."""
    seen, model = task(case, root), build(case)
    twin = gconv.convert(model)
    return {"before": Training(model, seen), "after": Training(twin, seen)}


def agreed(case: Case, before: Training, after: Training) -> tuple[Tensor, float]:
    """The losses, and the largest relative difference of any loss or first gradient.

    Raises: ValueError if it exceeds rounding.
    """
    gap = 0.0
    first = before.losses(1), after.losses(1)
    for (name, p), q in zip(before.model.named_parameters(), after.model.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        gap = max(gap, measure.gap(case.case, f"the gradient in {name}", q.grad, p.grad, TOL))
    want, got = (torch.cat([one, side.losses(STEPS - 1)]) for one, side in zip(first, (before, after), strict=True))
    return got, max(gap, measure.gap(case.case, "the loss", got, want, TOL))


def run(case: Case, *, root: Path | None = None) -> common.Outcome:
    """Check the losses, then time epochs in alternation, then measure memory."""
    common.seed_everything(case.seed, deterministic=False)
    with measure.threads(case.threads):
        made = sides(case, root)
        report = made["after"].model.report()  # type: ignore[operator]
        losses, gap = agreed(case, made["before"], made["after"])
        metrics: dict[str, Any] = {
            "threads": torch.get_num_threads(),
            "kernels": backend(),
            "gap": gap,
            "losses": losses.tolist(),
            "converted": len(report.converted),
        }
        steps: dict[str, measure.Step] = {side: training.epoch for side, training in made.items()}
        for mode in MODES:
            steps[f"compiled {mode}"] = Training(under(mode, build(case)), made["before"].task).epoch
            steps[f"converted, compiled {mode}"] = Training(
                under(mode, gconv.convert(build(case))), made["before"].task
            ).epoch
        if case.model in GRAPHS:
            features = made["before"].task.inputs[0]
            steps["dropout"] = lambda: F.dropout(features, training=True)
        times = measure.take_turns(steps, case.rounds, budget=case.budget)
    del made, steps
    median = {name: float(np.median(seconds)) for name, seconds in times.items()}
    metrics |= {f"{side}_s": median[side] for side in ("before", "after")}
    metrics |= measure.quartiles("faster", times["before"] / times["after"])
    best, best_converted = (
        min((name for name in times if name.startswith(f"{start}compiled")), key=median.__getitem__)
        for start in ("", "converted, ")
    )
    metrics |= {"compiled": best, "compiled_s": median[best]}
    metrics |= {"converted_compiled": best_converted, "converted_compiled_s": median[best_converted]}
    metrics["faster_than_compiled"] = float(np.median(times[best] / times["after"]))
    metrics["faster_both_compiled"] = float(np.median(times[best] / times[best_converted]))
    if "dropout" in median:
        metrics["dropout_share"] = median["dropout"] / median["before"]
    place = [str(root)] if root else []
    for side in ("before", "after"):
        found = measure.peak_of_a_process("experiments.speed.whole_models", side, json.dumps(asdict(case)), *place)
        metrics[f"{side}_mb"] = found["peak_mb"]
    return common.Outcome(metrics)


def peak(side: Side, case: Case, root: Path | None) -> dict[str, float]:
    """Peak memory of one model in this process."""
    with measure.threads(case.threads):
        seen, model = task(case, root), build(case)
        return measure.peak_of_steps(
            lambda: Training(gconv.convert(model) if side == "after" else model, seen).epoch, 2
        )


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--peak-of"]:  # used when this script starts itself in a new process
        given = json.loads(argv[2])
        case = Case(**given | {key: tuple(given[key]) for key in ("channels", "images")})
        print(json.dumps(peak(argv[1], case, Path(argv[3]) if argv[3:] else None)))  # type: ignore[arg-type]
        return
    config, options = common.cli(Config, __doc__, argv)
    if options.jobs != 1:
        raise SystemExit("error: two timings at a time would disturb each other; leave --jobs at 1")
    root = options.data_root

    def one(case: Case) -> common.Outcome:
        print(f"{case.case}: starts", file=sys.stderr)
        return run(case, root=root)

    results = place(config.quick, options, "whole_models")
    todo = cases(config, root)
    rows = common.sweep(todo, one, results, experiment="whole_models", data=lambda c: seen_by(c, root))
    for row in rows:
        m = row["metrics"]
        spread = f"{m['faster']:.2f} [{m['faster_low']:.2f}, {m['faster_high']:.2f}] times faster"
        print(f"{row['config']['case']}\n    {m['before_s']:.4f} s an epoch, converted {m['after_s']:.4f}: {spread}")
        if "compiled_s" in m:
            print(f"    {m['faster_than_compiled']:.2f} times faster than {m['compiled']}, {m['compiled_s']:.4f} s")
        if "converted_compiled_s" in m:
            print(f"    {m['faster_both_compiled']:.2f} times faster if both are compiled")
        print(
            f"    peak memory {m['before_mb']:.0f} MiB, converted {m['after_mb']:.0f}; losses differ by {m['gap']:.1e}"
        )


def seen_by(case: Case, root: Path | None) -> common.Data:
    """The label and hash of the data of a case."""
    return load_cora(root).seen if case.data == "Cora" else common.Data(case.data, "generated")


if __name__ == "__main__":
    main()
