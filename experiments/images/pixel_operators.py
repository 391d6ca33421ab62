"""Other graph convolutions on the pixels of CIFAR-10: what polynomials, attention and coordinates add to a GCN.

    9, 1, pointwise    the rungs of `experiments.images.ladder`: the CNN, the GCN, no neighbours at all
    sgc                the adjacency squared and one matrix
    cheb               2, 3 and 5 terms: rings of 1, 2 and 4 pixels, each with its matrix
    gat                attention with one head
    monet, spline      matrices that depend on the offset of a neighbour, by Gaussians and by interpolation

Protocol: that of the ladder, with width 16 and the first 10,000 training images, because attention and learned
coordinates cost several times as much as a fixed S. Three seeds.

    python -m experiments.sweep pixel_operators
    python -m experiments.images.ladder --width 16 --limit 10000 --spec "mine:factory(k=3)"    your own operator
"""

from dataclasses import dataclass, fields, replace

from experiments.harness.experiment import Experiment
from experiments.harness.store import Row
from experiments.images import ladder

SPECS = {
    "sgc": "gconv.operators:sgc(k=2)",
    "cheb, 2 terms": "gconv.operators:cheb(k=2)",
    "cheb, 3 terms": "gconv.operators:cheb(k=3)",
    "cheb, 5 terms": "gconv.operators:cheb(k=5)",
    "gat": "gconv.operators:gat(heads=1)",
    "monet": "gconv.operators:monet(dim=2, kernel_size=3)",
    "spline": "gconv.operators:spline(dim=2, kernel_size=3)",
}
NETWORKS = ("9", "1", "pointwise", *SPECS)


@dataclass(frozen=True)
class Config(ladder.Config):
    """Network and training options."""

    network: str = "all"
    """A rung of the ladder or an operator: a key of `NETWORKS`."""
    width: int = 16
    """Number of channels of the first stage."""
    limit: int | None = 10_000
    """Use only the first images of each split; recorded in the row."""


def expand(config: Config, seeds: int) -> list[Config]:
    """All networks, seed by seed. Raises: ValueError for an unknown one, and for a rung or spec."""
    if config.network not in ("all", *NETWORKS):
        raise ValueError(f"there is no network {config.network!r}; there are {', '.join(NETWORKS)}")
    if config.spec or (config.rung, config.where) != ("all", "all"):
        raise ValueError("--network chooses the operator; --spec, --rung and --where are options of the ladder")
    found = []
    for seed in range(config.seed, config.seed + seeds):
        for name in NETWORKS if config.network == "all" else (config.network,):
            chosen = {"spec": SPECS[name]} if name in SPECS else {"rung": name}
            found.append(replace(config, network=name, seed=seed, **chosen))  # type: ignore[arg-type]
    return found


def report(rows: list[Row]) -> None:
    """Print one line per network."""
    plain = {f.name for f in fields(ladder.Config)}
    ladder.report([row | {"config": {k: v for k, v in row["config"].items() if k in plain}} for row in rows])


EXPERIMENT = Experiment(
    name="pixel_operators",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=ladder.run,
    data=ladder.seen,
    smoke={"dataset": "random", "limit": 16, "epochs": 1, "batch": 8, "width": 2, "network": "spline"},
    report=report,
    modules=ladder.modules,
    measured=("seconds_per_epoch",),
    tolerance={"test_accuracy": 0.02, "train_loss": 0.05},
    defaults={"seeds": 3},
)

main = EXPERIMENT.main

if __name__ == "__main__":
    main()
