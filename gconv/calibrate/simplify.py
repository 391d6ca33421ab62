"""Reduction of measured throughputs and overheads to the fewest numbers within a tolerance.

`experiments.planner.plans` measures how much slower the chosen plans become.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from gconv.rates import Curve, Rates, at, words

RATE, OVERHEAD = 0.3, 0.25
"""The tolerated relative error of a throughput, and of an overhead."""


def simplified(found: Rates) -> Rates:
    """Throughputs with the fewest points and overheads."""
    curves = {kind: thinned(curve) for kind, curve in found.curves.items()}
    return Rates(curves, essential(found.overheads), found.source)


def thinned(curve: Curve) -> Curve:
    """The fewest points of a curve whose interpolation is within `RATE` of all points; a single mean if that suffices.

    >>> thinned(((1.0, 10.0), (2.0, 11.0), (4.0, 12.0)))
    ((1.0, 10.95...),)
    >>> thinned(((1.0, 10.0), (2.0, 21.0), (4.0, 40.0)))
    ((1.0, 10.0), (4.0, 40.0))
    """
    rates = [rate for _, rate in curve]
    if max(rates) <= min(rates) * (1 + RATE) ** 2:
        return ((curve[0][0], math.sqrt(max(rates) * min(rates))),)
    best: list[Curve] = [curve[:1]]
    for last in range(1, len(curve)):
        reached = [best[first] for first in range(last) if _straight(curve[first : last + 1])]
        best.append((*min(reached, key=len), curve[last]))
    return best[-1]


def _straight(points: Curve) -> bool:
    ends = points[0], points[-1]
    return all(_near(at(ends, size), rate, RATE) for size, rate in points[1:-1])


def _near(got: float, want: float, tolerance: float) -> bool:
    return abs(math.log(got / want)) <= math.log1p(tolerance)


def essential(overheads: Mapping[str, float]) -> dict[str, float]:
    """The fewest overheads from which `Rates.overhead` returns each measured one within `OVERHEAD`.

    >>> essential({"dense": 1e-5, "dense many": 1.1e-5, "dense parts": 3e-5, "dense parts many": 3e-5})
    {'dense': 1e-05, 'dense parts': 3e-05}
    """
    kept = dict(overheads)
    for name in sorted(overheads, key=lambda name: -len(name.split())):
        fewer = Rates({}, {other: seconds for other, seconds in kept.items() if other != name})
        related = (other for other in overheads if other.startswith(words(name)[0]) and other not in fewer.overheads)
        if all(_near(fewer.overhead(*words(other)) or 1.0, overheads[other], OVERHEAD) for other in related):
            kept = dict(fewer.overheads)
    return kept
