"""Learned frequency responses of the filters on Cora and CiteSeer: which frequencies does each network let through?

For every network of the table whose graph layer is a polynomial (or rational function) of one matrix, the network is
trained with the protocol of `citation`, and the gain of its first graph layer is evaluated at 41 eigenvalues of the
normalised Laplacian, from 0 (signals that are constant along edges) to 2: the Frobenius norm of the matrix
G(lambda) = sum_k g_k(lambda) W_k, divided by its largest value. appnp, ppr, sgc and ssg learn nothing in S: their
response is prescribed by the operator. Where an operator adds self-loops, the Laplacian is that of the graph with them.

    python -m experiments.sweep citation_responses
    python -m experiments.citation.responses --model gpr --dataset Cora
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from experiments.citation import networks
from experiments.citation.networks import Config, Network, Selection, Task, accuracy, load, mixes, optimiser
from experiments.harness import common
from experiments.harness.experiment import Experiment, Place
from experiments.harness.render import Figure
from gconv import GConv
from gconv.analysis import frequency_response

FILTERS = ("sgc", "ssg", "appnp", "ppr", "cheb", "tag", "arma", "gpr", "bernstein", "chebnetii", "jacobi")
POINTS = 41


def fitted(task: Task, config: Config) -> Network:
    """A network trained with the protocol of `citation`, at the epoch with the lowest validation loss."""
    common.seed_everything(config.seed)
    network = Network(config, task.x.shape[1], task.classes).to(task.x.device)
    adam, rule, kept = optimiser(network, config), Selection(), network.state_dict()
    while rule.seen < (config.epochs or 0):
        network.train()
        adam.zero_grad(set_to_none=True)
        F.cross_entropy(network(task.x, task.graph)[task.train], task.y[task.train]).backward()
        adam.step()
        network.eval()
        with torch.no_grad():
            scores = network(task.x, task.graph)
            loss = F.cross_entropy(scores[task.val], task.y[task.val]).item()
        if rule.better(loss, accuracy(scores[task.val], task.y[task.val])):
            kept = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(kept)
    return network


def response(layer: GConv, task: Task) -> tuple[list[float], list[float]]:
    """Eigenvalues of the normalised Laplacian, from 0 to 2, and the gain there, with 1 as its largest value."""
    arguments = torch.linspace(-1, 1, POINTS, dtype=torch.float64)
    found = frequency_response(layer, task.graph, arguments)
    # The argument of the polynomial is the Laplacian minus the identity, or the adjacency, its negative.
    laplacian = 1 + found.frequency if found.low == "first" else 1 - found.frequency
    gain = torch.linalg.matrix_norm(found.gain.to(torch.complex128)).real
    order = laplacian.argsort()
    return laplacian[order].tolist(), (gain / gain.max())[order].tolist()


def expand(config: Config, seeds: int) -> list[Config]:
    """One configuration per run. Raises: ValueError as for `citation`, and for a network without such a filter."""
    if config.spec or config.model not in ("all", *FILTERS):
        raise ValueError(f"there is no response of {config.spec or config.model}; there are {', '.join(FILTERS)}")
    runs = networks.expand(config, seeds)
    return sorted((run for run in runs if run.model in FILTERS), key=lambda run: run.seed)


def run(config: Config, place: Place) -> common.Outcome:
    """Train one network and evaluate its response."""
    task = load(config.dataset, place.root)[0].to(common.device(place.device))
    network = fitted(task, config)
    layers: Any = network.layers
    filters = [layer for layer in layers if not mixes(layer)]
    graph_layer = filters[0] if filters else layers[0]
    with torch.no_grad():
        frequency, gain = response(graph_layer, task)
    return common.Outcome({"frequency": frequency, "gain": gain})


def report(rows: list[common.Row]) -> None:
    """Print the gain at five eigenvalues for each run."""
    for row in rows:
        gain = row["metrics"]["gain"]
        shown = "  ".join(f"{gain[round(at * (len(gain) - 1))]:.2f}" for at in (0, 0.25, 0.5, 0.75, 1))
        print(f"{row['config']['model']:11s} {row['config']['dataset']:9s} gain at 0, 0.5, 1, 1.5, 2: {shown}")


def draw(axes: Any, rows: Sequence[common.Row]) -> None:
    """One line per model, the mean over seeds; dashed if the operator prescribes the response."""
    for model in FILTERS:
        found = [row["metrics"] for row in rows if row["config"]["model"] == model]
        if found:
            gain = torch.tensor([metrics["gain"] for metrics in found]).mean(0)
            axes.plot(found[0]["frequency"], gain, "--" if model in FILTERS[:4] else "-", label=model)
    axes.set(xlabel="eigenvalue of the normalised Laplacian", ylabel="gain, relative to the largest", ylim=(0, 1.05))
    if axes.lines:
        axes.legend(ncols=2, fontsize="small")


FIGURE = Figure(
    name="citation_responses",
    experiment="citation_responses",
    draw=draw,
    title="Frequency responses on Cora (dashed: fixed by the operator)",
    where=(("config.dataset", "Cora"),),
)

EXPERIMENT = Experiment(
    name="citation_responses",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=run,
    data=lambda config, root: load(config.dataset, root)[1],
    smoke={"epochs": 2, "dataset": "embedded", "model": "gpr"},
    report=report,
    tolerance={"gain": 0.2},
    defaults={"seeds": 3},
)

main = EXPERIMENT.main

if __name__ == "__main__":
    main()
