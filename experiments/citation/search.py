"""Hyperparameters of the citation networks by validation: the same random search for every network.

Protocol: trial 0 is the published setting (`experiments.citation.recipes`). Each of the nine others multiplies the
learning rate, the weight decay, the width and the number of steps or terms by a random factor from `FACTORS` and draws
the dropout and the teleport probability from `VALUES`; the draws depend on the trial only, so that trial 5 of GCN and
trial 5 of GAT change the same things. Two seeds per trial. A trial's score is its mean validation accuracy at the epoch
with the lowest validation loss, and the lower loss decides between equal scores. gcn2, with up to 64 layers, has its
published setting only. These runs have no test papers: the validation papers stand in their place.

    python -m experiments.sweep citation_search             run the trials of all networks, then
    python -m experiments.sweep citation_tuned              test the best setting of each (experiments.citation.tuned)
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from experiments.citation import networks
from experiments.citation.networks import DATASETS, load
from experiments.citation.recipes import MODELS, RECIPES, Recipe
from experiments.harness import common
from experiments.harness.experiment import Experiment, Place
from experiments.harness.options import LATER, fields_of

TRIALS = 10
FIXED = ("gcn2",)
FACTORS = {
    "lr": (0.5, 1.0, 2.0),
    "weight_decay": (0.1, 0.3, 1.0, 3.0, 10.0),
    "hidden": (1, 2, 4),
    "k": (0.5, 1.0, 2.0),
}
VALUES = {"dropout": (0.2, 0.4, 0.5, 0.6, 0.8), "alpha": (0.05, 0.1, 0.2)}


@dataclass(frozen=True)
class Config(networks.Config):
    """Model, data set, trial and training options."""

    trial: int = field(default=-1, metadata=LATER)
    """Number of the trial; -1: all."""

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if not -1 <= self.trial < TRIALS:
            raise ValueError(f"trial must be in 0..{TRIALS - 1}, or -1 for all, not {self.trial}")
        if self.spec:
            raise ValueError("the search is over the models of the table; --spec is an option of `citation`")


def setting(model: str, dataset: str, trial: int) -> Recipe:
    """The hyperparameters of a trial.

    >>> setting("gcn", "Cora", 0) == RECIPES["gcn"], setting("gcn", "Cora", 3).lr / RECIPES["gcn"].lr in FACTORS["lr"]
    (True, True)
    """
    usual = RECIPES.get((model, dataset), RECIPES[model])
    draw = random.Random(trial)
    # Everything is drawn for every model, so that the draws do not depend on which hyperparameters it has.
    factors = {name: draw.choice(choices) for name, choices in FACTORS.items()}
    found: dict[str, Any] = {name: draw.choice(choices) for name, choices in VALUES.items()}
    for name, factor in factors.items():
        value = getattr(usual, name)
        whole = name in ("hidden", "k")
        found[name] = max(1, round((value or 0) * factor)) if whole else float(f"{(value or 0) * factor:.6g}")
    return replace(
        usual, **{name: value for name, value in found.items() if trial and getattr(usual, name) is not None}
    )


def trials(model: str) -> range:
    """The trials of a model."""
    return range(1 if model in FIXED else TRIALS)


def expand(config: Config, seeds: int) -> list[Config]:
    """One configuration per run, model by model. Raises: ValueError for an unknown model or trial."""
    if config.model not in ("all", *MODELS):
        raise ValueError(f"there is no model {config.model!r}; there are {', '.join(MODELS)}")
    given = {f.name for f in fields(Recipe) if getattr(config, f.name) is not None} - {"epochs"}
    if given:
        raise ValueError(f"the search chooses {', '.join(sorted(given))}; only --epochs can be given")
    found = []
    for model in MODELS if config.model == "all" else (config.model,):
        for dataset in DATASETS if config.dataset == "all" else (config.dataset,):
            for trial in trials(model) if config.trial < 0 else (config.trial,):
                chosen = fields_of(setting(model, dataset, trial))
                chosen |= {"epochs": config.epochs} if config.epochs else {}
                one: Any = replace(config, model=model, dataset=dataset, trial=trial, **chosen)  # type: ignore[arg-type]
                found += [replace(one, seed=config.seed + s) for s in range(seeds)]
    return found


def run(config: Config, place: Place) -> common.Outcome:
    """Train one seed of a trial; nothing that depends on the test papers is computed."""
    task = load(config.dataset, place.root)[0]
    metrics, lowering = networks.train(task._replace(test=task.val).to(common.device(place.device)), config)
    del metrics["test_accuracy"]  # that of the validation papers
    return common.Outcome(metrics, lowering)


def best(rows: Iterable[common.Row], seeds: int = 2) -> dict[tuple[str, str], tuple[Recipe, float]]:
    """The best setting of each (model, data set) whose trials are complete, and its mean validation accuracy.

    Args:
        rows: rows of this experiment.
        seeds: number of seeds of a complete trial.
    """
    scores: dict[tuple[str, str], dict[int, list[tuple[float, float]]]] = {}
    settings: dict[tuple[str, str, int], Recipe] = {}
    for row in rows:
        config = row["config"]
        model, dataset, trial = config["model"], config["dataset"], config["trial"]
        settings[model, dataset, trial] = Recipe(**{f.name: config.get(f.name) for f in fields(Recipe)})
        score = row["metrics"]["val_accuracy"], -row["metrics"]["val_loss"]
        scores.setdefault((model, dataset), {}).setdefault(trial, []).append(score)
    found = {}
    for (model, dataset), by_trial in scores.items():
        if all(len(by_trial.get(trial, ())) >= seeds for trial in trials(model)):
            means = {t: tuple(sum(part) / len(part) for part in zip(*s, strict=True)) for t, s in by_trial.items()}
            winner = max(means, key=lambda trial: (means[trial], -trial))
            found[model, dataset] = settings[model, dataset, winner], means[winner][0]
    return found


def report(rows: list[common.Row]) -> None:
    """Print the best setting of every model whose trials are complete."""
    for (model, dataset), (recipe, accuracy) in best(rows, 1).items():
        usual = RECIPES.get((model, dataset), RECIPES[model])
        changed = {k: v for k, v in fields_of(recipe).items() if v != getattr(usual, k)}
        told = ", ".join(f"{name} {value:g}" for name, value in changed.items()) or "the published setting"
        print(f"{model:11s} {dataset:9s} validation {100 * accuracy:.1f} %: {told}")


EXPERIMENT = Experiment(
    name="citation_search",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=run,
    data=lambda config, root: load(config.dataset, root)[1],
    smoke={"epochs": 2, "dataset": "embedded", "model": "gcn"},
    report=report,
    measured=("seconds_per_epoch", "cpu_seconds_per_epoch"),
    tolerance={"val_accuracy": 0.02, "val_loss": 0.05, "epoch": 200},
    defaults={"seeds": 2},
)

main = EXPERIMENT.main

if __name__ == "__main__":
    main()
