"""The citation networks on random splits: does the order of the networks depend on the 140 papers of the public split?

Protocol: that of `citation`, with the hyperparameters of the papers, on 20 random splits: 20 papers per class for
training, 500 others for validation and 1000 others for testing, drawn from the papers that have text; the seed draws
the split as well as the initial weights. Networks are compared by the difference from GCN on the same split
(Wilcoxon's signed-rank test, see `experiments.citation.compare`).

    python -m experiments.sweep citation_splits
    python -m experiments.citation.splits --model gat --dataset Cora
    python -m experiments.citation.splits --spec "mine:factory(k=3)"
"""

from dataclasses import replace

import torch

from experiments.citation import networks
from experiments.citation.networks import Config, Task, load
from experiments.harness import common
from experiments.harness.experiment import Place

PER_CLASS, VALIDATION, TEST = 20, 500, 1000


def split(task: Task, seed: int, per_class: int = PER_CLASS, validation: int = VALIDATION, test: int = TEST) -> Task:
    """The task with a random split.

    Args:
        task: any split of the data.
        seed: determines the split.
        per_class: number of training papers of each class.
        validation: number of papers for validation.
        test: number of papers for testing.

    Raises: ValueError if there are too few papers.
    """
    generator = torch.Generator().manual_seed(seed)
    features = task.x.to_sparse_csr() if task.x.layout == torch.strided else task.x
    usable = (features.crow_indices().diff() > 0).nonzero()[:, 0]  # CiteSeer has papers without text, and without topic
    order = usable[torch.randperm(len(usable), generator=generator)]
    train = torch.cat([order[task.y[order] == c][:per_class] for c in range(task.classes)])
    rest = order[~torch.isin(order, train)]
    if len(train) < per_class * task.classes or len(rest) < validation + test:
        raise ValueError(
            f"a split needs {per_class} papers of each of {task.classes} classes and {validation} + {test} others; "
            f"there are {len(usable)} papers with text"
        )
    return task._replace(train=train, val=rest[:validation], test=rest[validation : validation + test])


def run(config: Config, place: Place) -> common.Outcome:
    """Train one model on one split."""
    task = load(config.dataset, place.root)[0]
    sizes = {"validation": 60, "test": 100} if config.dataset == "embedded" else {}
    return networks.train(split(task, config.seed, **sizes).to(common.device(place.device)), config)


EXPERIMENT = replace(
    networks.EXPERIMENT,
    name="citation_splits",
    about=__doc__ or "",
    run=run,
    smoke={"epochs": 2, "dataset": "embedded", "model": "gcn"},
)

main = EXPERIMENT.main

if __name__ == "__main__":
    main()
