"""What operators with learned or adaptive structure share: a pattern repeated for every tap."""

from __future__ import annotations

import torch

from gconv.basis import Pattern
from gconv.domains import Graph
from gconv.laplacian import Loops, pattern


def repeated(graph: Graph, taps: int, loops: Loops) -> tuple[Pattern, Pattern]:
    """The edges as one tap, and the same entries once for every tap, tap after tap: values (taps, e) flattened."""

    def make() -> tuple[Pattern, Pattern]:
        one, _ = pattern(graph, loops)
        tap = torch.arange(taps, device=graph.device).repeat_interleave(len(one))
        many = Pattern((taps, *one.shape[1:]), tap, one.row.repeat(taps), one.col.repeat(taps))
        return one, many

    return graph.memo(("repeated", taps, loops), make)
