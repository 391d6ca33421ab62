"""Edge lists (tables of pairs of node names) as the arguments of a `Graph`."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gconv.arguments import plural, shown
from gconv.domains.foreign import Arguments, columns_of, instance, real_number

Duplicates = Literal["error", "sum", "first", "keep"]
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", " ": "spaces"}


def read_edge_list(
    edges: Any, source: Any, target: Any, weight: Any, nodes: Any, undirected: bool, duplicates: Duplicates
) -> tuple[Arguments, list[Any]]:
    """The arguments of a Graph, and the name of each node; see `Graph.from_edge_list`."""
    if duplicates not in ("error", "sum", "first", "keep"):
        raise ValueError(f"duplicates must be 'error', 'sum', 'first' or 'keep', but it is {shown(duplicates)}.")
    sources, targets, weights = _columns(edges, source, target, weight)
    for name in (*sources, *targets):
        _check_name(name)
    ids = _order(sources, targets) if nodes is None else _listed(nodes)
    number = {name: i for i, name in enumerate(ids)}
    unknown = next((name for name in (*sources, *targets) if name not in number), None)
    if unknown is not None:
        first = isinstance(edges, str | os.PathLike) and unknown in (sources[0], targets[0])
        header = " If the first line of the file is a header, give source and target as names." if first else ""
        raise ValueError(
            f"An edge names the node {shown(unknown)}, which is not in nodes; nodes must list all names.{header}"
        )
    pairs = [(number[u], number[v]) for u, v in zip(sources, targets, strict=True)]
    values = [1.0] * len(pairs) if weights is None else [_weight(w, k) for k, w in enumerate(weights)]
    if duplicates != "keep":
        pairs, values = _merged(pairs, values, ids, undirected, duplicates)
    if undirected:
        back = [k for k, (u, v) in enumerate(pairs) if u != v]
        pairs, values = pairs + [pairs[k][::-1] for k in back], values + [values[k] for k in back]
    index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t()
    found: Arguments = {"edge_index": index, "size": len(ids)}
    if weights is not None or any(value != 1.0 for value in values):
        found["edge_weight"] = torch.tensor(values, dtype=torch.float64)
    return found, ids


def _merged(
    pairs: list[tuple[int, int]], values: list[float], ids: Sequence[Any], undirected: bool, duplicates: Duplicates
) -> tuple[list[tuple[int, int]], list[float]]:
    """The pairs without duplicates; with `undirected` a pair and its reverse are the same."""
    merged: dict[tuple[int, int], list[Any]] = {}
    for (u, v), value in zip(pairs, values, strict=True):
        key = (min(u, v), max(u, v)) if undirected else (u, v)
        if key not in merged:
            merged[key] = [(u, v), value]
        elif duplicates == "error":
            how = " (in either direction)" if undirected else ""
            raise ValueError(
                f"The edge from {shown(ids[u])} to {shown(ids[v])} is listed more than once{how}; choose how to treat "
                'them: duplicates="sum", "first" or "keep".'
            )
        elif duplicates == "sum":
            merged[key][1] += value
    return [pair for pair, _ in merged.values()], [value for _, value in merged.values()]


def _check_name(name: Any) -> None:
    if name is None or (isinstance(name, float) and math.isnan(name)) or type(name).__name__ in ("NaTType", "NAType"):
        raise ValueError("A source or target is missing (None or NaN); every edge needs two names.")
    if not isinstance(name, Hashable):
        raise TypeError(f"Node names must be hashable, such as numbers or strings, but one is {shown(name)}.")


def _order(sources: Sequence[Any], targets: Sequence[Any]) -> list[Any]:
    """The distinct names: whole numbers as integers in ascending order, others in order of appearance.

    Tables that also hold weights, or once held NaN, have names such as 3.0.
    """
    found = list(dict.fromkeys(name for pair in zip(sources, targets, strict=True) for name in pair))
    whole = all(isinstance(name, int) or (isinstance(name, float) and name.is_integer()) for name in found)
    return sorted(int(name) if isinstance(name, float) else name for name in found) if whole else found


def _listed(nodes: Any) -> list[Any]:
    if isinstance(nodes, int) and (nodes < 0 or isinstance(nodes, bool)):
        raise ValueError(f"nodes must be the list of all names or their number, but it is {shown(nodes)}.")
    if isinstance(nodes, int):
        nodes = range(nodes)
    if isinstance(nodes, str | bytes) or not (isinstance(nodes, Iterable) or hasattr(nodes, "tolist")):
        raise TypeError(f"nodes must be the list of all names or their number, but it is {shown(nodes)}.")
    nodes = nodes.tolist() if hasattr(nodes, "tolist") else nodes
    ids = list(range(nodes)) if isinstance(nodes, int) else list(nodes) if isinstance(nodes, Iterable) else [nodes]
    for name in ids:
        _check_name(name)
    if len(set(ids)) < len(ids):
        twice = next(name for k, name in enumerate(ids) if name in ids[:k])
        raise ValueError(f"nodes lists {shown(twice)} more than once.")
    return ids


def _weight(value: Any, row: int) -> float:
    try:
        return real_number(float(value) if isinstance(value, str) else value)
    except (TypeError, ValueError):
        raise ValueError(
            f"The weight of edge {row} (counted from 0) must be a finite number, but it is {shown(value)}."
        ) from None


# -- tables --------------------------------------------------------------------------------------------------------


def _columns(edges: Any, source: Any, target: Any, weight: Any) -> tuple[list[Any], list[Any], list[Any] | None]:
    wanted = {"source": source, "target": target} | ({} if weight is None else {"weight": weight})
    if type(source) is type(target) and source == target:
        raise ValueError(f"source and target must be different columns, but both are {shown(source)}.")
    if isinstance(edges, str | os.PathLike):
        found = _from_file(Path(edges), wanted)
    elif hasattr(edges, "columns") and hasattr(edges, "__getitem__"):
        found = _from_frame(edges, list(edges.columns), wanted)
    elif isinstance(edges, Tensor) or instance(edges, "numpy", "ndarray"):
        found = _from_array(edges, wanted)
    elif isinstance(edges, Mapping):
        found = _from_frame(edges, list(edges), wanted)
    else:
        found = _from_rows(edges, wanted)
    return found[0], found[1], found[2] if weight is not None else None


def _from_frame(frame: Any, names: list[Any], wanted: dict[str, Any]) -> list[list[Any]]:
    """The wanted columns of a pandas or polars DataFrame, or of a dict of columns."""
    found = []
    for role, column in wanted.items():
        name = names[columns_of(names, column, role)]
        if names.count(name) > 1:
            raise ValueError(
                f"Several columns are named {shown(name)}, so {role}={shown(column)} is ambiguous: rename them."
            )
        values = frame[name]
        if isinstance(values, str | bytes) or not (isinstance(values, Iterable) or hasattr(values, "tolist")):
            raise TypeError(f"Column {shown(name)} must be a list or an array, but it is {shown(values)}.")
        values = values.tolist() if hasattr(values, "tolist") else values
        found.append([_python(value) for value in (values if isinstance(values, Iterable) else [values])])
    return _of_equal_length(found)


def _of_equal_length(columns: list[list[Any]]) -> list[list[Any]]:
    if len({len(column) for column in columns}) > 1:
        raise ValueError(
            f"The columns of an edge list must have equal lengths, but they have {[len(c) for c in columns]}."
        )
    return columns


def _from_array(array: Any, wanted: dict[str, Any]) -> list[list[Any]]:
    """The wanted columns of an array or tensor (e, 2) or wider, or fields of a structured array."""
    fields = getattr(array.dtype, "names", None)
    if fields:
        return _from_frame(array, list(fields), wanted)
    if array.ndim != 2 or array.shape[1] < 2:
        raise ValueError(
            f"An array of edges must have one row per edge, (e, 2) or wider, but its shape is {tuple(array.shape)}."
        )
    if array.shape[0] == 2 and array.shape[1] > 3 and set(wanted.values()) <= {0, 1, 2}:
        raise ValueError(
            f"An array of edges must have one row per edge, but its shape is {tuple(array.shape)}: for an edge_index "
            "(2, e) use Graph(edge_index), or transpose it."
        )
    names = range(array.shape[1])
    return [array[:, columns_of(names, column, role)].tolist() for role, column in wanted.items()]


def _from_rows(rows: Any, wanted: dict[str, Any]) -> list[list[Any]]:
    """The wanted columns of an iterable of pairs, longer rows, or dicts."""
    if isinstance(rows, bytes) or not isinstance(rows, Iterable):
        raise TypeError(
            f"edges must be pairs, an array, a DataFrame or the path of a CSV file, but it is {shown(rows)}."
        )
    found: list[list[Any]] = [[] for _ in wanted]
    for k, row in enumerate(rows):
        if isinstance(row, Mapping):
            for (role, key), column in zip(wanted.items(), found, strict=True):
                if key not in row:
                    raise ValueError(f"Edge {k} (counted from 0) has no key {shown(key)}, given as {role}.")
                column.append(_python(row[key]))
            continue
        if isinstance(row, str | bytes) or (not isinstance(row, Sequence | Tensor) and not hasattr(row, "tolist")):
            raise TypeError(f"Edge {k} (counted from 0) must be a pair of names, but it is {shown(row)}.")
        names = range(len(row))
        for (role, column), values in zip(wanted.items(), found, strict=True):
            try:
                at = columns_of(names, column, role)
            except ValueError:
                raise ValueError(
                    f"Edge {k} (counted from 0) has {plural(len(row), 'entry', 'entries')}, so there is no column "
                    f"{role}={shown(column)}."
                ) from None
            values.append(_python(row[at]))
    return found


def _python(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") and hasattr(value, "ndim") else value


HEADER_WORDS = {"source", "target", "src", "dst", "from", "to", "head", "tail", "start", "end", "u", "v"}
HEADER_WORDS |= {f"{word}_id" for word in HEADER_WORDS} | {"node1", "node2", "source_node", "target_node"}


def _from_file(path: Path, wanted: dict[str, Any]) -> list[list[Any]]:
    """The wanted columns of a delimited text file; lines starting with # or % are comments.

    If a column is given by name, the first line is read as a header.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = [line for line in file if line.strip() and not line.startswith("#")]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from None
    if lines and lines[0].startswith("%%MatrixMarket"):
        raise ValueError(
            f"{path} is a Matrix Market file, not an edge list: read it with Graph.from_scipy(scipy.io.mmread(path))."
        )
    lines = [line for line in lines if not line.startswith("%")]
    if not lines:
        return [[] for _ in wanted]
    delimiter = _delimiter(path, lines)
    try:
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)  # a quoted name may follow a space
        rows = [[cell.strip() for cell in row] for row in reader]
        rows = [[cell for cell in row if cell] if delimiter == " " else row for row in rows]
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as a table: {error}.") from None
    if any(isinstance(column, str) for column in wanted.values()):
        header, rows = rows[0], rows[1:]
    else:
        header = [str(k) for k in range(len(rows[0]))]
        ends = [wanted["source"], wanted["target"]]
        first, others = ([row[k] for k in ends if k < len(row)] for row in (rows[0], rows[1] if rows[1:] else rows[0]))
        names_columns = first and {cell.lower() for cell in first} <= HEADER_WORDS  # also if all names are strings
        numbered = any(_is_integer(b) and not _is_integer(a) for a, b in zip(first, others, strict=False))
        if names_columns or numbered or _names_numbers(rows):
            raise ValueError(
                f"The first line of {path} looks like a header, {rows[0]}: give source and target (and weight) as "
                f"names, such as source={next(filter(None, rows[0]), '')!r}."
            )
    found: list[list[Any]] = []
    for role, column in wanted.items():
        at = columns_of(header, column, role)
        short = next((k for k, row in enumerate(rows) if len(row) <= at), None)
        if short is not None:
            raise ValueError(
                f"{path}: row {short} (counted from 0) has {plural(len(rows[short]), 'column')}, but {role} is column "
                f"{at}."
            )
        found.append([row[at] for row in rows])
    wide = next((k for k, row in enumerate(rows) if any(row[len(header) :])), None)
    if wide is not None:
        raise ValueError(
            f"{path}: row {wide} (counted from 0) has {plural(len(rows[wide]), 'column')}, but the first line has "
            f"{len(header)}; names that contain {DELIMITERS[delimiter]} must be in quotation marks."
        )
    for role, values in zip(wanted, found, strict=True):
        odd = next((k for k, value in enumerate(values) if not value or "\n" in value), None)
        if odd is not None:
            what = f"a line break in its {role}: is a quotation mark not closed?" if values[odd] else f"no {role}."
            raise ValueError(f"{path}: row {odd} (counted from 0) has {what}")
    if all(_is_integer(name) for name in (*found[0], *found[1])):
        found[:2] = [[int(name) for name in end] for end in found[:2]]
    return found


def _names_numbers(rows: list[list[str]]) -> bool:
    """Whether the first row has a word above a column of numbers, such as a weight."""
    full = [row for row in rows[1:] if len(row) >= len(rows[0])]
    return bool(full) and any(
        cell and not _is_number(cell) and all(_is_number(row[k]) for row in full) for k, cell in enumerate(rows[0])
    )


def _is_number(text: str) -> bool:
    try:
        return bool(float(text) or True)
    except ValueError:
        return False


def _is_integer(text: str) -> bool:
    return len(text) < 19 and text.isascii() and text.removeprefix("-").isdigit() and str(int(text)) == text


def _delimiter(path: Path, lines: list[str]) -> str:
    """The delimiter that occurs in each of the first 20 lines, outside of quotes and of numbers such as 1,5.

    Raises:
        ValueError: if there is none, or more than one.
    """
    if path.suffix == ".tsv":
        return "\t"
    head = [re.sub(r'"[^"]*"', '""', line.strip()) for line in islice(lines, 20)]
    head = [re.sub(r"\s*([,;|])\s*", r"\1", line) for line in head]
    found = [delimiter for delimiter in DELIMITERS if all(delimiter in line for line in head)]
    if not found:
        raise ValueError(f"{path} is not a table: its lines share no delimiter (comma, semicolon, tab, bar or space).")
    for other in found[1:] if found[0] == "," else ():
        rows = [line.split(None if other == " " else other) for line in head]
        with_comma = [cell for row in rows for cell in row if "," in cell]
        if all(re.fullmatch(r"[+-]?\d*,\d+", cell) for cell in with_comma) and min(map(len, rows)) > 1 + (other == " "):
            return other
    if len(found) > 1 and found[1] != " ":
        raise ValueError(
            f"{path}: its lines contain {DELIMITERS[found[0]]} and {DELIMITERS[found[1]]}, and either could separate "
            "columns: put names in quotation marks, or read the file with pandas.read_csv(path, sep=...) and pass the "
            "DataFrame."
        )
    return found[0]
