"""Changes of code after which repeated runs gave the same numbers: rows from before need not be run again.

`experiments.verify --accept` repeats rows recorded with other code. If all have exactly the same numbers, it appends a
line to the file `CHANGES` next to the rows, with both codes and the keys of the repeated rows. Codes are compared by
their hash, so a line also holds for other tables of the same modules.
"""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.harness.machine import commit, hardware
from experiments.harness.store import Results, ResultsError

CHANGES = "code_changes.jsonl"
Code = Mapping[str, Any]


def accept(folder: Path, experiment: str, before: Code, after: Code, repeated: list[str]) -> None:
    """Record that code `after` gives the numbers of rows recorded with `before`. Raises: ResultsError."""
    line: dict[str, Any] = {"experiment": experiment, "key": f"{experiment} {_text(before)} {_text(after)}"}
    line |= {"before": before, "after": after, "repeated": repeated, "commit": commit(), "hardware": hardware()}
    line["time"] = datetime.now(UTC).isoformat(timespec="seconds")
    Results(folder / CHANGES).append(line, replace=True)


def representatives(folder: Path) -> Callable[[Code | None], Code | None]:
    """A function that maps codes to codes, and codes that give the same numbers to the same one.

    Raises: ResultsError for a damaged file.
    """
    first: dict[str, Code] = {}  # of the codes with the same numbers
    for line in Results(folder / CHANGES).rows():
        before, after = line.get("before"), line.get("after")
        if not isinstance(before, dict) or not isinstance(after, dict):
            raise ResultsError(f"{folder / CHANGES}: the line {line['key']!r} has no codes; delete it")
        one, other = first.setdefault(_text(before), before), first.setdefault(_text(after), after)
        for text, code in first.items():
            if code == other:
                first[text] = one
    return lambda code: None if code is None else first.get(_text(code), code)


def _text(code: Code) -> str:
    return json.dumps(code, sort_keys=True)
