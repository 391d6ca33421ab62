"""The units of which the parts of `make gpu` consist."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

PARTS = ("tests", "speed", "ladder")
SECONDS = 225.0  # time limit of a part, without imports


@dataclass(frozen=True)
class Options:
    """Part, device and time limit."""

    part: str
    """Part to run."""
    out: Path
    """Folder for the rows."""
    device: torch.device
    """Device."""
    seconds: float = SECONDS
    """Time limit in seconds."""
    data: Path | None = None
    """A file written by `experiments.gpu.pack`; without it, CIFAR-10 is read from the data root."""
    tiny: bool = False
    """Run a few units of tiny size, to test that everything works."""


class Unit(NamedTuple):
    """A unit, which makes one row: its name, its function, and the minimum remaining time for starting it."""

    name: str
    run: Callable[[], dict[str, Any]]
    needs: float = 1.0


class Mismatch(Exception):
    """Raised if two results that should be equal are not."""
