"""Render the tables and figures of README.md and docs/ from the rows in experiments/results.

    python -m experiments.tables            write them to the pages and to experiments/figures
    python -m experiments.tables --check    exit with status 1 and a diff if a page or figure disagrees with the rows

A table is placed between a line `<!-- table:NAME -->` and a line `<!-- /table:NAME -->` of README.md or of a page under
docs/. To add one, add an entry to `experiments.report.results` or `experiments.report.speed` (the fields are described
in `experiments.harness.render.Table`) and the two lines to a page. Other markers: `operators` and `outside` for the
tables of operators (`experiments.report.operators`), `features` for the comparison with other libraries
(`experiments.report.features`), and `front` for the short table of README.md (`experiments.report.front`).
"""

import difflib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.harness import render
from experiments.harness.common import RESULTS, ROOT
from experiments.harness.options import command_name
from experiments.harness.render import Figure, Table, TableError
from experiments.report import features, front, operators, results, speed

TABLES: tuple[Table, ...] = (*results.TABLES, *speed.TABLES)
FIGURES: tuple[Figure, ...] = (*results.FIGURES, *speed.FIGURES)


@dataclass(frozen=True)
class Config:
    """What to render, and where."""

    check: bool = False
    """Change nothing; exit with status 1 if a page or figure disagrees with the rows."""
    root: Path = ROOT
    """Folder with README.md and docs/, the pages with the markers."""
    results: Path = RESULTS
    """Folder with the rows."""
    figures: Path = ROOT / "experiments" / "figures"
    """Folder for the figures."""


def pages(root: Path) -> list[Path]:
    """README.md and all pages under docs/."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def check_folders(config: Config) -> None:
    """Check the folders of a call: without rows, all tables would be emptied. Raises: ValueError."""
    if not (config.root / "README.md").is_file():
        raise ValueError(f"--root {config.root} must be a folder with README.md and docs/, and it has no README.md")
    if not config.results.is_dir():
        raise ValueError(f"--results {config.results} must be the folder with the rows, and there is no such folder")
    if config.figures.exists() and not config.figures.is_dir():
        raise ValueError(f"--figures {config.figures} must be a folder, and it is a file")


def _fill(text: str, results: Path) -> str:
    return front.fill(features.fill(operators.fill(render.fill(text, results, TABLES))), results)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: `python -m experiments.tables --help`. Raises: SystemExit if a check or the rendering fails."""
    import tyro

    config = tyro.cli(Config, prog=command_name(), description=__doc__, args=argv)
    try:
        check_folders(config)
        old = {page: page.read_text(encoding="utf-8") for page in pages(config.root)}
        new = {page: _fill(text, config.results) for page, text in old.items()}
        rows = {f: render.select(render.load(config.results, f.experiment), f.where) for f in FIGURES}
        paths = {f: config.figures / f"{f.name}.png" for f in FIGURES}
        stale = [f for f in FIGURES if rows[f] and render.drawn_from(paths[f]) != render.fingerprint(rows[f])]
        changed = {str(page.relative_to(config.root)): page for page in old if old[page] != new[page]}
        if config.check:
            for name, page in changed.items():
                lines = old[page].splitlines(True), new[page].splitlines(True)
                sys.stdout.writelines(difflib.unified_diff(*lines, name, f"{name}, from the rows"))
            wrong = [*changed, *(paths[f].name for f in stale)]
            if wrong:
                sys.exit(f"error: these disagree with the rows: {', '.join(wrong)}; run `make tables` to render them")
            return
        for figure in stale:
            render.paint(figure, rows[figure], paths[figure])
            print(f"drew {paths[figure]}")
        for page in changed.values():
            trial = page.with_suffix(".tmp")
            trial.write_text(new[page], encoding="utf-8")
            os.replace(trial, page)
            print(f"wrote {page}")
    except (TableError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
