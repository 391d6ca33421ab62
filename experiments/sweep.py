"""Run the missing runs of a results table, the most informative first; interrupted sweeps can be resumed.

    python -m experiments.sweep                                    list the tables and their missing runs
    python -m experiments.sweep ladder --budget 120                run for two hours; repeat the command to continue
    python -m experiments.sweep ladder --jobs 2 --threads 1        two runs in parallel, one thread each
    python -m experiments.sweep ladder --smoke                     tiny sizes (seconds), rows in runs/smoke

Each run is a separate process with a fixed number of threads (default 1). Rows are written to runs/TABLE.jsonl, or with
--official to the committed rows. Options after the table are those of its experiment: TABLE --help lists them.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence

from experiments.harness.experiment import Experiment
from experiments.harness.options import SweepOptions
from experiments.harness.store import ResultsError

TABLES = {
    "ladder": "experiments.images.ladder",
    "citation": "experiments.citation.networks",
    "citation_search": "experiments.citation.search",
    "citation_tuned": "experiments.citation.tuned",
    "citation_splits": "experiments.citation.splits",
    "citation_reasons": "experiments.citation.reasons",
    "citation_responses": "experiments.citation.responses",
    "text": "experiments.text.classify",
    "membrane": "experiments.segmentation.membrane",
    "cells": "experiments.segmentation.cells",
    "detection": "experiments.detection.bccd",
    "translation": "experiments.translation.train",
    "interpretability": "experiments.interpretability.cells",
    "multiply_adds": "experiments.images.light",
    "checkerboard": "experiments.images.checkerboard",
    "overfitting": "experiments.images.overfitting",
    "studies": "experiments.images.studies",
    "conversions": "experiments.large.conversions",
    "bert": "experiments.large.bert",
    "language_model": "experiments.large.language_model",
    "long_context": "experiments.large.long_context",
    "dvae": "experiments.large.dvae",
    "finetune": "experiments.large.finetune",
    "pretrained": "experiments.large.pretrained_convolutions",
    "external": "experiments.large_graphs.external",
    "halo_rows": "experiments.large_graphs.halo_rows",
    "int8": "experiments.detection.int8",
    "superpixels": "experiments.images.superpixels",
    "pixel_operators": "experiments.images.pixel_operators",
    "anchor": "experiments.images.anchor",
    "jpeg": "experiments.images.jpeg",
}


def experiment(table: str) -> Experiment:
    """The experiment of a table. Raises: SystemExit for an unknown one, with the nearest name."""
    if table not in TABLES:
        near = difflib.get_close_matches(table, TABLES, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(TABLES)}"
        raise SystemExit(f"error: there is no table {table!r}; {hint}")
    found: Experiment = importlib.import_module(TABLES[table]).EXPERIMENT
    return found


def missing(table: str) -> str:
    """A description of how many runs of a table have rows."""
    found = experiment(table)
    config, options = found.config(), SweepOptions(**found.defaults)
    wanted = found.expand(config, options.seeds)
    try:
        rows = [row for _, rows in options.open(found.name).sources() for row in rows]
    except ResultsError as error:
        return f"error: {error}"
    there = [config for row in rows if (config := row.get("config"))]
    have = sum(found.asdict(config) in there for config in wanted)
    return f"{have} of {len(wanted)} runs have rows"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv:
        for table in TABLES:
            print(f"{table:16s} {missing(table)}")
        return
    if argv[0] in ("-h", "--help"):
        print(f"{__doc__}\ntables: {', '.join(TABLES)}")
        raise SystemExit
    if argv[0].startswith("-"):
        raise SystemExit(f"error: name a table first, one of {', '.join(TABLES)}")
    given = argv[1:]
    if not any(option.split("=")[0] == "--threads" for option in given):
        given += ["--threads", "1"]
    experiment(argv[0]).main(given, isolate=True)


if __name__ == "__main__":
    main()
