"""The report of `convert`, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gconv.spec import OperatorSpec


@dataclass(frozen=True)
class Entry:
    """One layer of a model.

    Args:
        path: its qualified name in the model; "" for the model itself.
        layer: its class.
        spec: the operator it was converted to; None if it was left unchanged.
        notes: conventions of the original layer that are kept; if it was left unchanged, the reason.

    >>> print(Entry("1", "ReLU", None, ("an activation, not linear",)))
    1: ReLU left alone
        an activation, not linear
    """

    path: str
    layer: str
    spec: OperatorSpec | None
    notes: tuple[str, ...] = ()

    @property
    def converted(self) -> bool:
        return self.spec is not None

    def __str__(self) -> str:
        head = f"{self.path or '(the model)'}: {self.layer}"
        lines = [f"{head} -> {self.spec!r}" if self.converted else f"{head} left alone"]
        return "\n    ".join([*lines, *self.notes])


@dataclass(frozen=True)
class Report:
    """The entries of all layers, in the order of the model.

    `report[path]` is the entry of one layer, `len(report)` the number of entries, `str(report)` a readable table.
    Calling a report returns it, so that `model.report` and `model.report()` are equivalent.

    >>> from torch import nn
    >>> from gconv.interop import convert
    >>> report = convert(nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU())).report()
    >>> isinstance(report, Report), report["0"].spec, report["1"].notes
    (True, conv1d(2, 3, 3), ('an activation, not linear',))
    """

    entries: tuple[Entry, ...]

    @property
    def converted(self) -> tuple[Entry, ...]:
        """The layers that run through gconv."""
        return tuple(entry for entry in self.entries if entry.converted)

    @property
    def left_alone(self) -> tuple[Entry, ...]:
        """The layers that were left unchanged."""
        return tuple(entry for entry in self.entries if not entry.converted)

    def __call__(self) -> Report:
        return self

    def __getitem__(self, path: str) -> Entry:
        for entry in self.entries:
            if entry.path == path:
                return entry
        raise KeyError(f"The model has no layer at {path!r}; there are {[e.path for e in self.entries]}.")

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __str__(self) -> str:
        head = f"{len(self.converted)} of {len(self)} layers run through gconv."
        return "\n".join([head, *map(str, self.entries)])
