"""Reports on the layers of a model that was converted, adapted or transferred."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar


class _OfLayer(Protocol):
    @property
    def path(self) -> str: ...


E = TypeVar("E", bound=_OfLayer)


@dataclass(frozen=True)
class LayerReport(Generic[E]):
    """One entry for each layer, in order.

    `report[path]` is the entry of one layer, `len(report)` the number of entries, `str(report)` a readable table.
    Calling a report returns it, so that `model.report` and `model.report()` are equivalent.
    """

    entries: tuple[E, ...]

    @property
    def summary(self) -> str:
        """The first line of the table."""
        raise NotImplementedError

    def __call__(self) -> Any:
        return self

    def __getitem__(self, path: str) -> E:
        for entry in self.entries:
            if entry.path == path:
                return entry
        raise KeyError(f"The model has no layer at {path!r}; there are {[e.path for e in self.entries]}.")

    def __iter__(self) -> Iterator[E]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __str__(self) -> str:
        return "\n".join([self.summary, *map(str, self.entries)])
