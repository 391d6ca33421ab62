"""The rows of a summary, and how they are printed."""

from __future__ import annotations

import html
import math
from dataclasses import asdict, dataclass
from typing import Any

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Row:
    """One call of one layer.

    Args:
        path: the layer's path in the model; "(other)" for everything outside of layers.
        layer: its class.
        operator: its spec in gconv, if there is one.
        inputs, outputs: shapes of its input and output tensors.
        parameters: number of parameters that are not counted in a row above.
        multiply_adds: of products with weights and structures.
        bytes: of new memory for the outputs; 0 for views and in-place results.
        lowering: the lowering in gconv; "torch", "PyG" or "Keras" if it is not run by gconv.
        predicted, measured: seconds; None if not known.
        share: of the measured seconds of all rows, or of all multiply-adds if nothing was measured.

    >>> import torch, gconv
    >>> (row,) = gconv.summary(torch.nn.Linear(3, 4), torch.zeros(2, 3)).rows
    >>> isinstance(row, Row), row.layer, row.parameters, row.multiply_adds
    (True, 'Linear', 16, 24)
    """

    path: str
    layer: str
    operator: str | None
    inputs: Shapes
    outputs: Shapes
    parameters: int
    multiply_adds: int
    bytes: int
    lowering: str
    predicted: float | None = None
    measured: float | None = None
    share: float = 0.0


@dataclass(frozen=True, repr=False)
class Summary:
    """The result of `gconv.summary`; it prints as a table, and is displayed as one in notebooks.

    Args:
        rows: one for each call of a layer, in order.
        seconds: of one call of the model, if measured.

    >>> import torch, gconv
    >>> found = gconv.summary(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU()), torch.zeros(2, 3))
    >>> isinstance(found, Summary), found.totals["multiply_adds"]
    (True, 24)
    """

    rows: tuple[Row, ...]
    seconds: float | None = None

    @property
    def totals(self) -> dict[str, Any]:
        """Sums over the rows of parameters, multiply_adds, bytes and predicted seconds, and the measured seconds."""
        predicted = [row.predicted for row in self.rows if row.predicted is not None]
        return {
            "parameters": sum(row.parameters for row in self.rows),
            "multiply_adds": sum(row.multiply_adds for row in self.rows),
            "bytes": sum(row.bytes for row in self.rows),
            "predicted": math.fsum(predicted) if predicted else None,
            "measured": self.seconds,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON can hold: {"rows": [...], "totals": {...}}."""
        return {"rows": [asdict(row) for row in self.rows], "totals": self.totals}

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Headings and cells, the totals last; columns of times only if there are any."""
        total = self.totals
        heads = ["layer", "operator", "output", "parameters", "multiply-adds", "bytes", "lowering"]
        lines = [
            [row.path or "(the model)", row.operator or row.layer, " ".join(map(_shape, row.outputs)),
             f"{row.parameters:,}", f"{row.multiply_adds:,}", f"{row.bytes:,}", row.lowering]
            for row in self.rows
        ]  # fmt: skip
        last = ["total", "", "", *(f"{total[key]:,}" for key in ("parameters", "multiply_adds", "bytes")), ""]
        for key in ("predicted", "measured"):
            if total[key] is not None:
                heads.append(f"{key} ms")
                for line, row in zip(lines, self.rows, strict=True):
                    line.append(_milliseconds(getattr(row, key)))
                last.append(_milliseconds(total[key]))
        heads.append("share")
        for line, row in zip(lines, self.rows, strict=True):
            line.append(f"{100 * row.share:.1f} %")
        return heads, [*lines, [*last, ""]]

    def __str__(self) -> str:
        heads, lines = self._table()
        width = [max(len(line[c]) for line in (heads, *lines)) for c in range(len(heads))]
        left = {"layer", "operator", "output", "lowering"}
        texts = [
            "  ".join(t.ljust(w) if h in left else t.rjust(w) for t, w, h in zip(line, width, heads, strict=True))
            for line in (heads, *lines)
        ]
        rule = "-" * max(map(len, texts))
        return "\n".join(text.rstrip() for text in (texts[0], rule, *texts[1:-1], rule, texts[-1]))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        heads, lines = self._table()
        rows = [f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>" for line in lines]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "()"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3g}"
