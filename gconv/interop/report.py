"""The report of `convert`, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

from gconv.reports import LayerReport
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
class Report(LayerReport[Entry]):
    """The layers of a converted model, in order; see `LayerReport`.

    >>> from torch import nn
    >>> from gconv.interop import convert
    >>> report = convert(nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU())).report()
    >>> isinstance(report, Report), report["0"].spec, report["1"].notes
    (True, conv1d(2, 3, 3), ('an activation, not linear',))
    """

    @property
    def converted(self) -> tuple[Entry, ...]:
        """The layers that run through gconv."""
        return tuple(entry for entry in self.entries if entry.converted)

    @property
    def left_alone(self) -> tuple[Entry, ...]:
        """The layers that were left unchanged."""
        return tuple(entry for entry in self.entries if not entry.converted)

    @property
    def summary(self) -> str:
        return f"{len(self.converted)} of {len(self)} layers run through gconv."
