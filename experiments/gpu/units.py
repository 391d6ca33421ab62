"""What a part of `make gpu` is made of."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

PARTS = ("tests", "speed", "ladder")
SECONDS = 225.0  # of a part, imports left out


@dataclass(frozen=True)
class Options:
    """What to run, where, and for how long."""

    part: str
    out: Path
    device: torch.device
    seconds: float = SECONDS
    data: Path | None = None
    """A file of `experiments.gpu.pack`; without one, CIFAR-10 is looked for where the data sets are."""
    tiny: bool = False
    """A few units at toy sizes: shows that everything works, and measures nothing."""


class Unit(NamedTuple):
    """One row: its name, what makes its numbers, and the seconds below which it is not begun."""

    name: str
    run: Callable[[], dict[str, Any]]
    needs: float = 1.0


class Mismatch(Exception):
    """Two results that should be equal are not."""
