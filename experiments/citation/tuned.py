"""The citation networks with the hyperparameters that `experiments.citation.search` chose by validation.

Protocol: that of `citation`, with the setting of each model and data set that had the best validation accuracy in the
search, and seeds that the search did not use (from 100). gcn2 has its published setting only, so its numbers are those
of `citation`; `--model gcn2` runs it with these seeds. `--model best` is one network for each data set, the one with
the highest validation accuracy of all; with 100 seeds it answers how far a convolution of this library gets.

    python -m experiments.sweep citation_tuned
    python -m experiments.sweep citation_tuned --model best --seeds 100
"""

from dataclasses import fields, replace
from typing import Any

from experiments.citation import networks, search
from experiments.citation.networks import DATASETS, Config, load
from experiments.citation.recipes import MODELS, RECIPES, Recipe
from experiments.harness.experiment import Experiment
from experiments.harness.options import Options, fields_of
from experiments.harness.store import Row

FIRST = 100
"""The first seed."""


def chosen() -> dict[tuple[str, str], tuple[Recipe, float]]:
    """The result of the search, from the committed rows and the user's; GCN on the embedded graph has its recipe."""
    sources = Options().open(search.EXPERIMENT.name).sources()
    found = search.best({row["key"]: row for _, rows in sources for row in rows}.values())
    return {("gcn", "embedded"): (RECIPES["gcn"], 0.0), **found}


def expand(config: Config, seeds: int) -> list[Config]:
    """One configuration per run: models whose search is complete, "all" without those that have one setting.

    Raises: ValueError for an unknown model, for one whose search is not complete, and for hyperparameters.
    """
    if config.model not in ("all", "best", *MODELS):
        raise ValueError(f"there is no model {config.model!r}; there are best, {', '.join(MODELS)}")
    given = {f.name for f in fields(Recipe) if getattr(config, f.name) is not None} - {"epochs"}
    if given or config.spec:
        raise ValueError(f"the search chose {', '.join(sorted(given)) or 'the operators'}; only --epochs can be given")
    found, settings = [], chosen()
    for dataset in DATASETS if config.dataset == "all" else (config.dataset,):
        names = [model for model in MODELS if (model, dataset) in settings]
        searched = [model for model in names if model not in search.FIXED]
        wanted = {"all": searched, "best": list(MODELS)}.get(config.model, [config.model])
        if missing := [model for model in wanted if model not in names]:
            told = ", ".join(missing) if len(missing) < 4 else f"{len(missing)} models"
            raise ValueError(
                f"the search on {dataset} is not complete for {told}: run `python -m experiments.sweep "
                f"citation_search --dataset {dataset}` first"
            )
        if config.model == "best":
            wanted = [max(names, key=lambda model: settings[model, dataset][1])]
        for model in wanted:
            recipe = settings[model, dataset][0]
            values: dict[str, Any] = fields_of(recipe) | ({"epochs": config.epochs} if config.epochs else {})
            one: Any = replace(config, model=model, dataset=dataset, **values)  # type: ignore[arg-type]
            found += [replace(one, seed=FIRST + config.seed + s) for s in range(seeds)]
    return found


def report(rows: list[Row]) -> None:
    """Print one line per model and data set."""
    if not rows:
        print("nothing to run: first `python -m experiments.sweep citation_search`")
    networks.report(rows)


EXPERIMENT = Experiment(
    name="citation_tuned",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=networks.run,
    data=lambda config, root: load(config.dataset, root)[1],
    smoke={"epochs": 2, "dataset": "embedded", "model": "gcn"},
    report=report,
    measured=networks.EXPERIMENT.measured,
    tolerance=networks.EXPERIMENT.tolerance,
    defaults={"seeds": 20},
)

main = EXPERIMENT.main

if __name__ == "__main__":
    main()
