"""The state shared by the layers of a distributed model during a call."""

from __future__ import annotations

import itertools
from typing import Any

from gconv.arguments import plural
from gconv.domains import Graph, Grid
from gconv.parallel.partition import Partition, even


class State:
    """What the layers of a distributed model know of the call.

    sizes: by kind of input, the global number of rows at each layer, counted in the first call.
    whole: whether the signal has been pooled over the whole domain and is the same in every process; None outside of
        the model's forward pass, when torch.utils.checkpoint repeats a part of it.
    """

    whole: bool | None

    def __init__(self, partition: Partition) -> None:
        self.partition, self.processes = partition, partition.processes
        self.sizes: dict[Any, list[int]] = {}
        self.version = self.current  # of the graph, in the last call
        self.start(None)

    @property
    def current(self) -> tuple[int | None, ...]:
        domain = self.partition.domain
        return domain.version if isinstance(domain, Graph) else ()

    def start(self, key: Any) -> None:
        known = self.sizes.get(key)
        self.now: list[int] = [] if known is None else known
        self.counting, self.at, self.whole = known is None, 0, False

    def finish(self, key: Any) -> None:
        if len(self.sizes) >= 64:
            self.sizes.clear()
        self.sizes[key] = self.now
        self.now, self.counting, self.at, self.whole = [], True, 0, None

    def pooled(self) -> None:
        """From here on the signal is the same in every process."""
        if self.whole is not None:
            self.whole = True

    def parted(self, x: Any) -> bool:
        """Whether x has the shape of a part of a signal, as the product of a part and a pooled signal has."""
        part = self.partition
        if isinstance(part.domain, Grid):
            d = part.domain.ndim
            return x.ndim == d + 2 and any(n > 1 for n in x.shape[-d:])
        low, high = part.range
        return x.ndim > 1 and x.shape[-2] == high - low != len(part.domain.ptr) - 1

    def rows(self, here: int, name: str) -> int:
        """The global number of rows at this layer, of which `here` are in this process. Raises: ValueError."""
        if self.counting or self.at >= len(self.now):
            have = self.processes.gathered(here)
            bounds = even(sum(have), self.processes.size)
            if have != [b - a for a, b in itertools.pairwise(bounds)]:  # the same in every process
                raise ValueError(
                    f"{name} got {have} rows in the processes, but {plural(sum(have), 'row')} must be distributed "
                    "evenly: code between the layers must not change the rows."
                )
            self.now.append(sum(have))
        n, self.at = self.now[self.at], self.at + 1
        bounds, r = even(n, self.processes.size), self.processes.rank
        if bounds[r + 1] - bounds[r] != here:
            raise ValueError(
                f"{name} got {plural(here, 'row')} in rank {r}, but {bounds[r + 1] - bounds[r]} in an earlier call."
            )
        return n

    def check_detached(self) -> None:
        """Raises: TypeError if the edges require gradients."""
        domain = self.partition.domain
        if isinstance(domain, Graph) and domain.learned:
            raise TypeError("The edges of a partitioned graph must not need gradients: detach its tensors.")
