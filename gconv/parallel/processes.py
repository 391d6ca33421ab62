"""Collectives of a group of processes, with errors that name the failed process."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gconv.arguments import shown
from gconv.errors import Differentiable, first_line

GRACE = 5.0  # seconds to wait for the reports of the remaining processes after a failure


class ProcessError(RuntimeError):
    """Raised if another process of the group ended, did not answer in time, or made a different call.

    >>> issubclass(ProcessError, RuntimeError)
    True
    """


class Processes:
    """A process group of torch.distributed.

    Args:
        group: of torch.distributed; None for all processes.

    Raises:
        RuntimeError: if torch.distributed is not initialised.
        TypeError: if the group is of another type.
        ValueError: if this process is not a member of the group.
    """

    def __init__(self, group: Any = None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "gconv.parallel needs a process group: start the processes with torchrun and call "
                "torch.distributed.init_process_group() before gconv.parallel.shard()."
            )
        known = group is None or isinstance(group, dist.ProcessGroup) or group is dist.GroupMember.NON_GROUP_MEMBER
        if not known:
            raise TypeError(f"group must be a process group of torch.distributed or None, but it is {shown(group)}.")
        self.group, self.rank, self.size = group, dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("This process is not a member of the given group.")
        self.bytes_sent = 0  # total size of the halo rows sent so far
        self._places: list[Any] = []
        self._places = self.gathered((socket.gethostname(), os.getpid()))

    def __deepcopy__(self, memo: dict[int, Any]) -> Processes:
        return self  # copies of a model run in the same group

    def _guarded(self, collective: Callable[[], Any]) -> Any:
        try:
            return collective()
        except RuntimeError as error:
            raise ProcessError(f"{self._who()} The process group says: {first_line(error)}.") from error

    def gathered(self, value: Any) -> list[Any]:
        """The values of all processes, small picklable objects, by rank."""
        found = [None] * self.size
        self._guarded(lambda: dist.all_gather_object(found, value, group=self.group))
        return found

    def agree(self, **values: Any) -> None:
        """Check that all processes have the same values.

        Raises:
            ProcessError: in every process, naming the first value that differs.
        """
        found = self.gathered(values)
        for name in values:
            for rank, theirs in enumerate(found):
                if theirs.get(name) != found[0].get(name):
                    raise ProcessError(
                        f"The processes disagree on {name.replace('_', ' ')}: rank 0 has {found[0].get(name)}, "
                        f"rank {rank} has {theirs.get(name)}. It must be the same in every process."
                    )

    def exchange(self, x: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """Send rows of x, send[r] to each rank r in turn, and return the rows received, receive[r] from rank r."""
        out = x.new_empty(sum(receive), *x.shape[1:])
        if self.size > 1:
            work = lambda: dist.all_to_all_single(out, x.contiguous(), receive, send, group=self.group)  # noqa: E731
            self._guarded(work)
        return out

    def total(self, x: Tensor, largest: bool = False) -> Tensor:
        """The sum, or the maximum, over the processes; x is not modified."""
        x = x.clone(memory_format=torch.contiguous_format)
        op = dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM
        self._guarded(lambda: dist.all_reduce(x, op, group=self.group))
        return x

    def from_first(self, x: Tensor) -> None:
        """Overwrite x with its value in the first process."""
        root = 0 if self.group is None else dist.get_global_rank(self.group, 0)
        self._guarded(lambda: dist.broadcast(x, root, group=self.group))

    def _who(self) -> str:
        """A sentence that names the failed processes: those that ended, or that do not report within GRACE seconds."""
        group: Any = self.group if self.group is not None else dist.group.WORLD
        silent = [r for r in range(self.size) if r != self.rank]
        ended: list[int] = []
        try:  # every remaining process writes a key to the group's store; it may end then, too
            store = group.get_group_store()
            key = "gconv/failed/{}"
            store.set(key.format(self.rank), "1")
            until = time.monotonic() + GRACE
            while silent and not ended and time.monotonic() < until:
                time.sleep(0.05)
                ended = [r for r in silent if self._ended(r)]
                silent = [r for r in silent if not store.check([key.format(r)])]
                ended = [r for r in ended if r in silent]  # without having written its key before
        except (AttributeError, RuntimeError):  # no store in this backend, or it ended with the first process
            silent = [0] if self.rank else []
            ended = [r for r in range(self.size) if self._ended(r)]
        names = ", ".join(f"rank {r}" for r in ended or silent)
        if not names:
            return "An exchange between the processes failed in all of them."
        return f"{names} {'has ended' if ended else f'does not answer (for {GRACE:g} s)'}, so the exchange failed."

    def _ended(self, rank: int) -> bool:
        """Whether a process of this machine is known to have ended."""
        if rank >= len(self._places) or self._places[rank][0] != socket.gethostname():
            return False
        pid = self._places[rank][1]
        try:
            os.kill(pid, 0)  # signal 0 only checks for existence
        except ProcessLookupError:
            return True
        except OSError:
            return False
        try:
            with open(f"/proc/{pid}/stat") as file:
                return file.read().rpartition(")")[2].split()[0] in ("Z", "X")
        except (OSError, IndexError):
            return False


class Total(Differentiable):
    """The sum over the processes, in each of them; its adjoint is the same sum."""

    what = "a sum over processes"

    @staticmethod
    def forward(ctx: Any, x: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        return processes.total(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return Total.apply(g, ctx.processes), None


class Largest(Differentiable):
    """The maximum over the processes of x, the maxima in each of them, NaN if one of them is.

    Args:
        x: the maxima in this process.
        ties: how many numbers in this process attain each of them. The gradient is divided equally among the numbers
            that attain the maximum in any process.
    """

    what = "a maximum over processes"

    @staticmethod
    def forward(ctx: Any, x: Tensor, ties: Tensor, processes: Processes) -> Tensor:
        unknown = x.isnan()  # backends ignore NaN, or not, depending on the order of the processes
        both = torch.stack([x.masked_fill(unknown, -torch.inf), unknown.to(x.dtype)])
        top, unknown = processes.total(both, largest=True)
        top = top.masked_fill(unknown > 0, torch.nan)
        ctx.processes = processes
        ctx.save_for_backward(torch.where(x == top, ties, 0).to(x.dtype))
        return top

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (ties,) = ctx.saved_tensors
        g, count = Total.apply(torch.stack([g, ties]), ctx.processes)
        return torch.where(ties > 0, g * ties / count.clamp(min=1), 0.0), None, None


class Shared(Differentiable):
    """Replicated parameters: the identity, with gradients summed over the processes in one collective per dtype.

    A parameter that no process used gets no gradient, as in a single process.
    """

    what = "replicated parameters"

    @staticmethod
    def forward(ctx: Any, processes: Processes, *parameters: Tensor) -> Any:
        ctx.processes, ctx.like = processes, [(p.shape, p.dtype, p.device) for p in parameters]
        ctx.set_materialize_grads(False)
        return tuple(p.view_as(p) for p in parameters)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        made: list[Tensor | None] = [None] * len(gradients)
        for dtype in dict.fromkeys(kind for _, kind, _ in ctx.like):
            at = [k for k, (_, kind, _) in enumerate(ctx.like) if kind == dtype]
            parts, used = [], []
            for k in at:
                g, (shape, _, device) = gradients[k], ctx.like[k]
                parts.append(torch.zeros(shape.numel(), dtype=dtype, device=device) if g is None else g.reshape(-1))
                used.append(float(g is not None))
            counts = torch.tensor(used, dtype=dtype, device=parts[0].device)
            flat = Total.apply(torch.cat([*parts, counts]), ctx.processes)
            *parts, counts = flat.split([*map(len, parts), len(at)])
            missing = [False] * len(at) if all(used) else (counts == 0).tolist()
            for k, part, none in zip(at, parts, missing, strict=True):
                made[k] = None if none else part.view(ctx.like[k][0])
        return None, *made
