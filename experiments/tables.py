"""The README's tables and figures, rendered from the rows in experiments/results and never typed.

    python -m experiments.tables            write them into README.md and experiments/figures
    python -m experiments.tables --check    exit 1, with a diff, where README.md or a figure disagrees with the rows

A table appears between a line `<!-- table:NAME -->` and a line `<!-- /table:NAME -->`. To add one, add an entry to
`tables_of_results` or `tables_of_speed` (what the fields mean: `experiments.render.Table`) and the two lines to the
README. Between the markers `operators` and `outside` stand the tables of operators, from the registry
(`experiments.operator_table`), and between the markers `features` the comparison with other libraries
(`experiments.features`).
"""

import difflib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments import features, operator_table, render, tables_of_results, tables_of_speed
from experiments.common import RESULTS, ROOT
from experiments.render import Figure, Table, TableError

TABLES: tuple[Table, ...] = (*tables_of_results.TABLES, *tables_of_speed.TABLES)
FIGURES: tuple[Figure, ...] = (*tables_of_results.FIGURES, *tables_of_speed.FIGURES)


@dataclass(frozen=True)
class Config:
    """What to render, and where to."""

    check: bool = False
    """Change nothing; exit 1 where something is not what the rows say."""
    readme: Path = ROOT / "README.md"
    """The page with the markers."""
    results: Path = RESULTS
    """Folder of the rows."""
    figures: Path = ROOT / "experiments" / "figures"
    """Folder of the figures."""


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: `python -m experiments.tables --help`. Raises: SystemExit where something is wrong."""
    import tyro

    config = tyro.cli(Config, description=__doc__, args=argv)
    try:
        old = config.readme.read_text(encoding="utf-8")
        new = features.fill(operator_table.fill(render.fill(old, config.results, TABLES)))
        rows = {f: render.select(render.load(config.results, f.experiment), f.where) for f in FIGURES}
        paths = {f: config.figures / f"{f.name}.png" for f in FIGURES}
        stale = [f for f in FIGURES if rows[f] and render.drawn_from(paths[f]) != render.fingerprint(rows[f])]
        if config.check:
            names = config.readme.name, f"{config.readme.name}, by the rows"
            sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), *names))
            wrong = [config.readme.name] * (old != new) + [paths[f].name for f in stale]
            if wrong:
                sys.exit(f"error: not what the rows say: {', '.join(wrong)}; `make tables` renders them")
            return
        for figure in stale:
            render.paint(figure, rows[figure], paths[figure])
            print(f"drew {paths[figure]}")
        if new != old:
            trial = config.readme.with_suffix(".tmp")
            trial.write_text(new, encoding="utf-8")
            os.replace(trial, config.readme)
            print(f"wrote {config.readme}")
    except (TableError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
