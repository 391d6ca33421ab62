"""Renders rows as tables and figures: assigns rows to cells, formats cells, and inserts tables into pages.

A cell shows mean +- sample standard deviation (number of rows). Its rows must have the same data and configurations
that differ only in the seed; anything else is an error.
"""

import hashlib
import json
import os
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.harness.code_changes import CHANGES, representatives
from experiments.harness.common import Results, ResultsError, Row

Cells = Callable[[Row], Mapping[str, float]]
Format = Callable[[Sequence[float]], str]


def get(row: Row, path: str) -> Any:
    """The value at a dotted path, None if there is none.

    >>> get({"config": {"model": "gcn"}}, "config.model")
    'gcn'
    """
    for part in path.split("."):
        row = row.get(part) if isinstance(row, dict) else None  # type: ignore[assignment]
    return row


def one(column: str, metric: str) -> Cells:
    """Cells of a row: `metric`, in the column named by a path in the row, or by a fixed name.

    >>> one("config.dataset", "metrics.acc")({"config": {"dataset": "Cora"}, "metrics": {"acc": 0.8}})
    {'Cora': 0.8}
    """
    return lambda row: {str(get(row, column) or column): get(row, metric)}


def several(**metrics: str) -> Cells:
    """Cells of a row: one column per metric, `several(test="metrics.test_accuracy", s="seconds")`."""
    return lambda row: {name: get(row, metric) for name, metric in metrics.items()}


def curve(metric: str) -> Cells:
    """Cells of a row: the list `metric`, one column per epoch, counted from 1."""
    return lambda row: {str(epoch): value for epoch, value in enumerate(get(row, metric), 1)}


def last(metric: str, column: str = "last epoch") -> Cells:
    """Cells of a row: the last number of the list `metric`.

    >>> last("metrics.acc")({"metrics": {"acc": [0.1, 0.7]}})
    {'last epoch': 0.7}
    """
    return lambda row: {column: get(row, metric)[-1]}


def mean_std(scale: float = 1.0, digits: int = 1) -> Format:
    """Mean +- sample standard deviation (n).

    >>> mean_std(100)([0.81, 0.82]), mean_std(100)([0.81])
    ('81.5 +- 0.7 (2)', '81.0 (1)')
    """

    def text(values: Sequence[float]) -> str:
        spread = f" +- {statistics.stdev(values) * scale:.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values) * scale:.{digits}f}{spread} ({len(values)})"

    return text


def worst(values: Sequence[float]) -> str:
    """The largest value, with two digits.

    >>> worst([1e-9, 2e-12])
    '1.0e-09'
    """
    return f"{max(values):.1e}"


def plain(values: Sequence[float]) -> str:
    """The mean with three decimals, or none from 100 on.

    >>> plain([0.1234]), plain([1000, 2000])
    ('0.123', '1500')
    """
    mean = statistics.fmean(values)
    return f"{mean:.{0 if mean >= 100 else 3}f}"


def rounded(values: Sequence[float]) -> str:
    """The mean with one decimal.

    >>> rounded([44.96])
    '45.0'
    """
    return f"{statistics.fmean(values):.1f}"


def share(values: Sequence[float]) -> str:
    """The percentage of rows with value 1, for values 0 and 1.

    >>> share([1.0, 1.0, 0.0])
    '67 % of 3'
    """
    return f"{100 * statistics.fmean(values):.0f} % of {len(values)}"


class Published(NamedTuple):
    """A published number: `value` +- `std` for this row and column of a table.

    `comparable` is False if it is another quantity than that of the column; no difference is printed then.
    """

    row: str
    column: str
    value: float
    std: float | None
    source: str
    how: str
    protocol: str = "Planetoid public split"
    comparable: bool = True


@dataclass(frozen=True)
class Table:
    """A table: its rows, the assignment of rows to cells, the format of cells, and published numbers.

    Args:
        name: name in the markers.
        experiment: the rows are read from results/EXPERIMENT.jsonl.
        label: dotted path of the label of a table row.
        cells: `one`, `several`, `curve`, or any function that maps a row to its numbers by column.
        format: function that formats the numbers of a cell.
        caption: claim and protocol, printed above the table.
        command: the command that makes the rows; `--official` is added.
        where: (dotted path, value) pairs that rows must have.
        labels: table rows in order, including those without results; if empty, the labels found in the rows.
        vary: fields of the configuration in which the rows of a cell may differ.
        same: further dotted paths in which they must agree.
        n: number of rows per cell required by the protocol; fewer are an error, except in table rows in `unfinished`.
        unfinished: table rows that still lack runs, which is stated below the table; "*" for all.
        published: numbers printed next to the cells, with the difference; their sources are listed below the table.
        reruns: numbers of independent reruns, listed below the table.
        scale: factor from the numbers of rows to the unit of published ones.
        words: text columns after the numbers, (heading, dotted path); the rows of a table row must agree, but for
            seconds, of which the median is shown.
        remarks: function that returns sentences about all rows, printed below the table.
    """

    name: str
    experiment: str
    label: str
    cells: Cells
    format: Format
    caption: str
    command: str
    where: tuple[tuple[str, Any], ...] = ()
    labels: tuple[str, ...] = ()
    vary: tuple[str, ...] = ("seed",)
    same: tuple[str, ...] = ("data.hash", "code.hash", "code.numerics")
    n: int = 0
    unfinished: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()
    reruns: tuple[Published, ...] = ()
    scale: float = 100.0
    words: tuple[tuple[str, str], ...] = ()
    remarks: Callable[[Sequence[Row]], list[str]] = lambda rows: []


class TableError(ValueError):
    """Raised if a table cannot be made from rows or markers; the message states why."""


def load(folder: Path, experiment: str) -> list[Row]:
    """The rows of an experiment. Raises: TableError if a key occurs twice or the file is damaged.

    Codes that give the same numbers are replaced by one of them; what a row had is then `recorded_with`.
    """
    try:
        rows = [r for r in Results(folder / f"{experiment}.jsonl").rows() if r.get("experiment") == experiment]
        same = representatives(folder)
    except ResultsError as error:
        raise TableError(str(error)) from None
    seen: set[str] = set()
    for row in rows:
        if row["key"] in seen:
            raise TableError(f"{experiment}.jsonl: the key {row['key']} occurs twice")
        seen.add(row["key"])
        if (code := same(row.get("code"))) != row.get("code"):
            row |= {"code": code, "recorded_with": row["code"]}
    return rows


def select(rows: Iterable[Row], where: Iterable[tuple[str, Any]]) -> list[Row]:
    """The rows with the given values at dotted paths."""
    return [r for r in rows if all(get(r, path) == value for path, value in where)]


def collect(table: Table, rows: Sequence[Row]) -> dict[tuple[str, str], list[float]]:
    """The numbers of every cell (label, column). Raises: TableError if a cell would mix configurations or data."""
    cells: dict[tuple[str, str], list[float]] = {}
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        label = str(get(row, table.label))
        for column, value in table.cells(row).items():
            if not isinstance(value, int | float):
                raise TableError(f"table {table.name}: the row {row['key']} has no number for {label}, {column}")
            other = first.setdefault((label, column), row)
            a, b = ({**r["config"], **{p: get(r, p) for p in table.same}} for r in (row, other))
            if mixed := sorted(k for k in a.keys() | b.keys() if k not in table.vary and a.get(k) != b.get(k)):
                what = ", ".join(f"{k} ({b.get(k)} and {a.get(k)})" for k in mixed)
                raise TableError(f"table {table.name}, {label}, {column}: rows differ in {what}; narrow `where`")
            cells.setdefault((label, column), []).append(float(value))
    return cells


def _listed(name: str, sources: list[str]) -> str:
    """Sources as a sentence, or, if there are many, as a list that is opened by a click.

    >>> _listed("Published", ["gcn 81.5", "cheb 81.2"])
    'Published: gcn 81.5; cheb 81.2.'
    """
    if len(sources) < 6:
        return f"{name}: {'; '.join(sources)}."
    lines = "\n".join(f"- {source}" for source in sources)
    return f"<details><summary>{name}: {len(sources)} sources</summary>\n\n{lines}\n\n</details>"


def render(table: Table, rows: Iterable[Row]) -> str:
    """The table as markdown: caption, cells, published numbers with differences, sources. Raises: TableError."""
    from tabulate import tabulate

    if "--official" not in table.command:
        table = replace(table, command=f"{table.command} --official")
    rows = select(rows, table.where)
    if not rows:
        return f"{table.caption}\n\n*no rows yet: `{table.command}`*\n"
    cells = collect(table, rows)
    columns = list(dict.fromkeys(column for _, column in cells))
    labels = table.labels or tuple(dict.fromkeys(label for label, _ in cells))
    known = {(p.row, p.column): p for p in table.published}
    beside = {column for column in columns for label in labels if (label, column) in known}
    head = [table.label.split(".")[-1]]
    for column in columns:
        head += [column, "published", "gap"] if column in beside else [column]
    body = []
    for label in labels:
        line = [label]
        for column in columns:
            values, paper = cells.get((label, column)), known.get((label, column))
            line.append(table.format(values) if values else "no rows yet")
            if column in beside:
                line.append(_number(paper) if paper else "-")
                gap = "-"
                if values and paper and paper.comparable:
                    difference = round(statistics.fmean(values) * table.scale - paper.value, 1)
                    gap = f"{difference + 0.0:+.1f}"  # +0.0, not -0.0
                line.append(gap)
        body.append(line + [_text(table, rows, label, path) for _, path in table.words])
    head += [heading for heading, _ in table.words]
    grid = tabulate(body, head, tablefmt="pipe", disable_numparse=True)
    data = sorted(
        {f"{get(r, 'data.label')} ({get(r, 'data.hash')})" for r in rows if get(r, "data.hash") not in (None, "none")}
    )
    notes = [f"Rows: `experiments/results/{table.experiment}.jsonl`, by `{table.command}`."]
    if len({json.dumps(r.get("recorded_with"), sort_keys=True) for r in rows}) > 1:
        notes += [f"Recorded with several versions of the code, whose numbers agree (`experiments/results/{CHANGES}`)."]
    notes += [f"Data: {'; '.join(data)}."] if data else []
    notes += [_listed("Published", _sources(table.published, labels))] if beside else []
    notes += [_listed("Independent reruns", _sources(table.reruns, labels))] if table.reruns else []
    return "\n\n".join([table.caption, grid, *table.remarks(rows), *_unfinished(table, labels, cells), *notes]) + "\n"


def comparison(rows: Sequence[Row]) -> str:
    """Rows of models and of operators given by --spec as one table: test accuracy in %, one column per data set.

    Raises: TableError if a cell would mix configurations or data.
    """
    from tabulate import tabulate

    def label(config: Mapping[str, Any]) -> str:
        file, colon, call = str(config.get("spec") or "").partition(":")
        return f"{Path(file).name}:{call}" if colon else str(config.get("rung") or config["model"])

    table = Table(
        name="comparison",
        experiment="",
        label="operator",
        cells=one("data.label", "metrics.test_accuracy"),
        format=mean_std(100),
        caption="Test accuracy in %: mean +- standard deviation (number of seeds).",
        command="",
        same=("data.hash",),
    )
    cells = collect(table, [{**row, "operator": label(row["config"])} for row in rows])
    labels, columns = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    body = [[one, *(table.format(cells[one, c]) if (one, c) in cells else "-" for c in columns)] for one in labels]
    return f"{table.caption}\n\n{tabulate(body, ['operator', *columns], tablefmt='pipe', disable_numparse=True)}"


def _unfinished(table: Table, labels: Sequence[str], cells: Mapping[tuple[str, str], Sequence[float]]) -> list[str]:
    """A sentence that lists missing runs. Raises: TableError for a cell with too few rows that is not listed."""
    counts = {label: min([len(v) for (name, _), v in cells.items() if name == label], default=0) for label in labels}
    short = {label: count for label, count in counts.items() if count < table.n}
    for label, count in short.items():
        if count and not {label, "*"} & set(table.unfinished):
            raise TableError(
                f"table {table.name}, {label}: {count} rows, and the protocol has {table.n}: `{table.command}`"
            )
    if not short:
        return []
    listed = ", ".join(f"{label} ({count})" for label, count in short.items())
    return [f"Unfinished, with the number of rows so far (of {table.n}): {listed}; `{table.command}` runs the rest."]


def _text(table: Table, rows: Iterable[Row], label: str, path: str) -> str:
    """The common value of the rows of a table row at a dotted path, or -; of seconds, which differ, the median.

    Raises: TableError if other values differ.
    """
    found = [get(row, path) for row in rows if str(get(row, table.label)) == label]
    if found and path.rpartition(".")[2].startswith("seconds"):
        found = [statistics.median(found)]
    said = sorted({"-" if value is None else str(value) for value in found})
    if len(said) > 1:
        raise TableError(f"table {table.name}, {label}: rows differ in {path} ({' and '.join(said)})")
    if found and isinstance(found[0], float) and abs(found[0]) < 1000:
        return f"{found[0]:.4g}"
    return said[0].replace("|", "\\|") if said else "no rows yet"


def _number(paper: Published) -> str:
    return f"{paper.value:.1f}" + (f" +- {paper.std:.1f}" if paper.std is not None else "")


def _sources(numbers: Iterable[Published], labels: Sequence[str]) -> list[str]:
    """One entry per row and source: numbers, protocol, and how they were obtained."""
    grouped: dict[tuple[str, str, str, str], list[str]] = {}
    for p in numbers:
        if p.row in labels:
            grouped.setdefault((p.row, p.source, p.protocol, p.how), []).append(f"{p.column} {_number(p)}")
    return [
        f"{row} {', '.join(v)} ({source}; {protocol}; {how})" for (row, source, protocol, how), v in grouped.items()
    ]


MARKER = re.compile(r"^<!-- (/?)table:(\S+) -->$", re.MULTILINE)


def fill(text: str, folder: Path, tables: Sequence[Table]) -> str:
    """`text` with all marked tables rendered again. Raises: TableError for unknown or unpaired markers."""
    known, out, position, opened = {t.name: t for t in tables}, [], 0, ""
    for mark in MARKER.finditer(text):
        closing, name = mark.groups()
        if name not in known:
            raise TableError(f"marker for an unknown table {name!r}; known: {', '.join(known)}")
        if bool(closing) != bool(opened) or (closing and opened != name):
            raise TableError(f"marker {mark.group()} does not pair up with the one before it")
        if closing:
            out.append(f"\n{render(known[name], load(folder, known[name].experiment))}")
        else:
            out.append(text[position : mark.end()] + "\n")
        position, opened = mark.start() if closing else mark.end(), "" if closing else name
    if opened:
        raise TableError(f"marker <!-- table:{opened} --> is never closed")
    return "".join(out) + text[position:]


Draw = Callable[[Any, Sequence[Row]], None]


@dataclass(frozen=True)
class Figure:
    """A figure, NAME.png: `draw(axes, rows)` draws the rows of an experiment into matplotlib axes."""

    name: str
    experiment: str
    draw: Draw
    title: str
    where: tuple[tuple[str, Any], ...] = ()


def lines(label: str, metric: str, scale: float = 100.0) -> Draw:
    """One line per label: the list `metric` by epoch, mean over rows with a band of one standard deviation."""

    def draw(axes: Any, rows: Sequence[Row]) -> None:
        for name in dict.fromkeys(str(get(row, label)) for row in rows):
            curves = [get(row, metric) for row in rows if str(get(row, label)) == name]
            y = np.array([c for c in curves if len(c) == max(map(len, curves))]) * scale
            epochs, mean, std = np.arange(1, y.shape[1] + 1), y.mean(0), y.std(0, ddof=1 if len(y) > 1 else 0)
            axes.plot(epochs, mean, label=f"{name} (n = {len(y)})")
            axes.fill_between(epochs, mean - std, mean + std, alpha=0.2)
        axes.set(xlabel="epoch", ylabel=metric.split(".")[-1].replace("_", " "))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()

    return draw


def bars(label: str, column: str, metric: str, scale: float = 100.0) -> Draw:
    """One group of bars per column, one bar per label: mean of `metric` over rows, with one standard deviation."""

    def draw(axes: Any, rows: Sequence[Row]) -> None:
        labels, columns = (list(dict.fromkeys(str(get(r, path)) for r in rows)) for path in (label, column))
        for i, name in enumerate(labels):
            for j, place in enumerate(columns):
                mine = [r for r in rows if str(get(r, label)) == name and str(get(r, column)) == place]
                y = np.array([get(r, metric) for r in mine]) * scale
                if len(y):
                    x, std = j + (i + 0.5) / (len(labels) + 1), y.std(ddof=1 if len(y) > 1 else 0)
                    axes.bar(x, y.mean(), 0.9 / (len(labels) + 1), yerr=std, color=f"C{i}")
            axes.bar(0.5, 0, 0, color=f"C{i}", label=name)
        axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
        axes.set(ylabel=metric.split(".")[-1].replace("_", " "))
        axes.legend(ncols=6, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.08))

    return draw


def fingerprint(rows: Iterable[Row]) -> str:
    """A hash of the rows of a figure."""
    return hashlib.sha256(json.dumps(list(rows), sort_keys=True).encode()).hexdigest()[:16]


def drawn_from(path: Path) -> str | None:
    """The fingerprint stored in a figure, None if there is no such figure."""
    from PIL import Image

    if not path.exists():
        return None
    with Image.open(path) as image:
        return image.info.get("rows")


def paint(figure: Figure, rows: Sequence[Row], path: Path) -> None:
    """Draw the figure from these rows and write it atomically to `path`."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(7, 4), layout="constrained")
    axes = canvas.subplots()
    figure.draw(axes, rows)
    axes.set_title(figure.title)
    path.parent.mkdir(parents=True, exist_ok=True)
    trial = path.with_suffix(".tmp")
    canvas.savefig(trial, format="png", dpi=120, metadata={"rows": fingerprint(rows)})
    os.replace(trial, path)
