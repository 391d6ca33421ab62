"""CIFAR-10 on pixel graphs: a graph network with labelled edges equals the CNN; GCN and Chebyshev networks.

Protocol: the network of `cifar10_cnn` with every convolution replaced by a graph convolution on the 8-neighbour pixel
graphs of 32x32, 16x16 and 8x8 sites; pooling, fully connected layers, recipe, seeds and loop unchanged.

    twin    one matrix for each of the nine offsets. A CNN is trained for `twin_epochs`, and its weights are copied to
            the graph network: logits and predictions of both are compared in float32 and float64
    gcn     one matrix for all neighbours (isotropic), trained from scratch
    cheb    one matrix for each Chebyshev term (isotropic, with a radius of k - 1 hops), trained from scratch

    python -m experiments.images.cifar10_graph                    all three models
    python -m experiments.images.cifar10_graph --model twin       only the comparison with the CNN, some minutes
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datasets import ImageSet
from experiments.harness import common
from experiments.harness.training import Batches, Recipe, accuracy, cifar10, cifar10_or_exit, train
from experiments.images.cifar10_cnn import WIDTHS, gconv_network, head
from gconv import GConv, OperatorSpec, grid_graph
from gconv.operators import cheb, gcn, max_pool2d, selection

Model = Literal["twin", "gcn", "cheb"]


@dataclass(frozen=True)
class Config(Recipe):
    """Model and training options."""

    model: Model | Literal["all"] = "all"
    """Network."""
    k: int = 3
    """Number of Chebyshev terms."""
    neighbours: Literal[4, 8] = 8
    """Number of neighbours of each pixel."""
    twin_epochs: int = 1
    """Training epochs of the CNN whose weights are copied to the twin."""
    twin_images: int = 1000
    """Number of test images on which the logits of CNN and twin are compared."""
    limit: int | None = None
    """Use only the first images of each split; recorded in the row."""
    seed: int = 0
    """Random seed."""


class OnPixels(nn.Module):
    """A graph convolution on images: all images of a batch share one pixel graph, in one call.

    Shapes: x (b, i, h, w) -> (b, o, h, w).
    """

    def __init__(self, spec: OperatorSpec, side: int, neighbours: int):
        super().__init__()
        self.conv = GConv(spec)
        self.graph = grid_graph((side, side), neighbours, loops=spec.name == "selection")

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolution on the pixel graph."""
        y: Tensor = self.conv(x.flatten(2).mT, self.graph)
        return y.mT.unflatten(-1, x.shape[-2:])


def graph_network(config: Config, model: Model) -> nn.Sequential:
    """The network of `cifar10_cnn` with graph convolutions."""
    layers: list[nn.Module] = []
    for level, (i, o) in enumerate(pairwise(WIDTHS)):
        spec = {"twin": selection(i, o, 9), "gcn": gcn(i, o), "cheb": cheb(i, o, config.k)}[model]
        layers += [OnPixels(spec, 32 >> level, config.neighbours), nn.ReLU(), GConv(max_pool2d(2))]
    return nn.Sequential(*layers, *head())


def move_weights(cnn: nn.Sequential, twin: nn.Sequential) -> None:
    """Copy the weights of the CNN to the twin; they have the same shapes."""
    for mine, theirs in zip(cnn, twin, strict=True):
        (theirs.conv if isinstance(theirs, OnPixels) else theirs).load_state_dict(mine.state_dict())


def lowerings(network: nn.Sequential, batch: int) -> list[str]:
    """The lowering of each graph convolution."""
    chosen, x = [], torch.zeros(batch, 3, 32, 32)
    for layer in network:
        if isinstance(layer, OnPixels):
            chosen.append(layer.conv.plan(x.flatten(2).mT, layer.graph).chosen.name)
        x = layer(x)
    return chosen


@torch.no_grad()
def compare(cnn: nn.Sequential, twin: nn.Sequential, images: Tensor) -> dict[str, float]:
    """Largest difference of the logits of both networks, and the fraction of equal predictions."""
    gaps: dict[str, float] = {}
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        a, b = (torch.cat([net.to(dtype)(part.to(dtype)) for part in images.split(50)]) for net in (cnn, twin))
        gaps[f"logit_gap_{name}"] = float((a - b).abs().max())
        gaps[f"logit_scale_{name}"] = float(a.abs().max())
        gaps[f"same_prediction_{name}"] = float((a.argmax(1) == b.argmax(1)).double().mean())
        cnn.float(), twin.float()
    return gaps


def run_twin(config: Config, images: ImageSet, path: Path | None) -> common.Outcome:
    """Train the CNN, copy its weights to the twin, and compare the two."""
    cnn = gconv_network()
    recipe = replace(config, epochs=config.twin_epochs)
    metrics = train(cnn, images, recipe, config.seed, path, "cifar10_graph twin (as CNN)")
    twin = graph_network(config, "twin")
    cnn = cnn.cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    move_weights(cnn, twin)
    batches = list(Batches(images, replace(config, device="cpu"), config.seed).test())
    some = torch.cat([x for x, _ in batches])[: config.twin_images]
    labels = torch.cat([y for _, y in batches])[: config.twin_images]
    gaps = compare(cnn, twin, some)
    gaps["twin_accuracy"] = accuracy(twin, zip(some.split(50), labels.split(50), strict=True))
    gaps["cnn_accuracy"] = accuracy(cnn, zip(some.split(50), labels.split(50), strict=True))
    return common.Outcome(metrics | gaps, lowerings(twin, config.batch))


def run(config: Config, path: Path | None = None, *, root: Path | None = None) -> common.Outcome:
    """Run one model with one seed."""
    images = cifar10(root, config.limit)
    common.seed_everything(config.seed)
    if config.model == "twin":
        return run_twin(config, images, path)
    assert config.model != "all"
    network = graph_network(config, config.model)
    chosen = lowerings(network, config.batch)
    return common.Outcome(train(network, images, config, config.seed, path, f"cifar10_graph {config.model}"), chosen)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    config, options = common.cli(Config, __doc__, argv, seeds=1)
    images = cifar10_or_exit(options.data_root, config.limit)
    data = common.Data(images.label, images.content_hash)
    seeds = [config.seed + s for s in range(options.seeds)]
    models = ("twin", "gcn", "cheb") if config.model == "all" else (config.model,)
    for model in models:
        experiment = "cifar10_twin" if model == "twin" else "cifar10_graph"  # separate rows
        rows = common.sweep(
            common.grid(config, seed=seeds, model=[model]),
            partial(run, root=options.data_root),
            options.open(experiment),
            experiment=experiment,
            data=data,
            jobs=options.jobs,
            resumable=True,
        )
        for row in rows:
            print(f"seed {row['seed']} {model}: {_said(row['metrics'], row['config'])}; {row['data']['label']}")


def _said(metrics: dict[str, Any], config: dict[str, Any]) -> str:
    if config["model"] != "twin":
        return f"{100 * metrics['test_accuracy'][-1]:.2f} % after {config['epochs']} epochs"
    gaps = f"float32 {metrics['logit_gap_float32']:.1e}, float64 {metrics['logit_gap_float64']:.1e}"
    return f"logits differ from the CNN's by {gaps}, on {config['twin_images']} test images"


if __name__ == "__main__":
    main()
