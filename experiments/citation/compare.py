"""Comparisons of networks over the same seeds or splits: Wilcoxon's signed-rank test with Holm's correction."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from experiments.harness.store import Row

LEVEL = 0.05


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """p values corrected for the number of comparisons (Holm 1979).

    >>> {name: round(p, 3) for name, p in holm({"a": 0.01, "b": 0.04, "c": 0.03}).items()}
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    found, largest = {}, 0.0
    for number, name in enumerate(sorted(values, key=lambda name: values[name])):
        largest = max(largest, min(1.0, values[name] * (len(values) - number)))
        found[name] = largest
    return found


def differences(rows: Sequence[Row], dataset: str, reference: str) -> dict[str, tuple[float, float, int]]:
    """Mean difference from a reference network in points, corrected p value, and number of pairs, for each network.

    Args:
        rows: rows with a model, a data set, a seed and a test accuracy; pairs have the same seed.
        dataset: name of the data set.
        reference: name of the model to compare with.
    """
    from scipy.stats import wilcoxon

    accuracy: dict[str, dict[int, float]] = {}
    for row in rows:
        config = row["config"]
        if config["dataset"] == dataset:
            accuracy.setdefault(config["model"], {})[config["seed"]] = row["metrics"]["test_accuracy"]
    base = accuracy.pop(reference, {})
    means, p, pairs = {}, {}, {}
    for model, by_seed in accuracy.items():
        # Rounded to the accuracy of one paper in ten thousand, so that equal differences are ties for the ranks.
        gaps = [round(100 * (by_seed[seed] - base[seed]), 2) for seed in sorted(by_seed.keys() & base.keys())]
        if len(gaps) < 6:  # no result of fewer pairs can be below 0.05 before, let alone after correction
            continue
        means[model], pairs[model] = fmean(gaps), len(gaps)  # rounded once, so it is the same on every Python
        p[model] = float(wilcoxon(gaps).pvalue) if any(gaps) else 1.0
    return {model: (means[model], value, pairs[model]) for model, value in holm(p).items()}


def sentences(rows: Sequence[Row], reference: str = "gcn", datasets: Sequence[str] = ("Cora", "CiteSeer")) -> list[str]:
    """For each data set, which networks differ from the reference, for below a table."""
    found = []
    for dataset in datasets:
        compared = differences(rows, dataset, reference)
        if not compared:
            continue
        groups: dict[str, list[str]] = {"better": [], "worse": [], "no difference found": []}
        for model, (gap, p, _) in sorted(compared.items(), key=lambda item: -item[1][0]):
            group = "no difference found" if p > LEVEL else "better" if gap > 0 else "worse"
            groups[group].append(f"{model} {gap:+.1f}")
        told = "; ".join(f"{group}: {', '.join(names)}" for group, names in groups.items() if names)
        least = min(pairs for _, _, pairs in compared.values())
        found.append(
            f"Against {reference} on {dataset}, mean difference in points over the same seeds (at least {least}; "
            f"Wilcoxon's signed-rank test, Holm's correction, level {LEVEL:g}): {told}."
        )
    return found
