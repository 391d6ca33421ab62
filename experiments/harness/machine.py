"""Machine-related functions: seeds and random state, device, time, memory, and the description stored in rows."""

import functools
import importlib.metadata
import os
import platform
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]


def seed_everything(seed: int, deterministic: bool = True) -> None:
    """Seed python, numpy and torch, and use deterministic algorithms (with a warning if torch has none)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # A debugging feature of that mode, which slows down torch.empty.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def rng_state() -> dict[str, Any]:
    """The state of the global random generators of python, numpy and torch, as plain data."""
    name, keys, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    state = {"python": random.getstate(), "torch": torch.get_rng_state(), "cuda": cuda}
    return state | {"numpy": [name, np.asarray(keys).tolist(), *rest]}


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore the state returned by `rng_state`."""
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def device(name: str = "auto") -> torch.device:
    """The device of a name; 'auto' is the first GPU, else the CPU. Raises: ValueError if it does not exist.

    >>> device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"torch {torch.__version__} cannot use device {name!r}: {reason}") from None
    return torch.device(name)


class Clock:
    """The wall time of a block timed by `timer`, available when it has ended."""

    seconds: float = float("nan")


@contextmanager
def timer() -> Iterator[Clock]:
    """Time a block, including the queue of the GPU.

    >>> with timer() as clock: _ = sum(range(1000))
    >>> clock.seconds > 0
    True
    """
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else (lambda: None)
    wait()
    clock, start = Clock(), time.perf_counter()
    yield clock
    wait()
    clock.seconds = time.perf_counter() - start


def reset_peak_memory() -> None:
    """Reset the peak memory of this process (Linux only; on other systems the peak is that since its start)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_mb() -> float:
    """Peak resident memory of this process since `reset_peak_memory` in MiB, including python and torch."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1024 ** (2 if sys.platform == "darwin" else 1)


def versions() -> dict[str, str | None]:
    """Versions of the packages that affect results, read without importing them."""

    def version(name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    names = {"torch": "torch", "torch_geometric": "torch-geometric", "numpy": "numpy", "gconv": "gconv"}
    return {"python": platform.python_version(), **{key: version(name) for key, name in names.items()}}


def hardware() -> dict[str, Any]:
    """The CPU's name, family and vector instructions, the usable cores, torch's threads, and the GPU if one was used.

    The name alone does not identify a processor: virtual machines report one name for several generations. `family` is
    "family-model-stepping", None if unknown.
    """
    try:
        lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines())
        told = {name.strip(): value.strip() for name, _, value in lines}
    except OSError:
        told = {}
    numbers = [told.get(name) for name in ("cpu family", "model", "stepping")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_initialized() else None
    return {
        "cpu": told.get("model name") or platform.processor() or platform.machine(),
        "family": None if None in numbers else "-".join(map(str, numbers)),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


@functools.cache
def commit() -> str | None:
    """Short hash of the checked-out commit, with '+dirty' if code (not rendered files or rows) differs from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # a hook sets GIT_DIR
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20, env=env).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return None
        rendered = (":!experiments/results", ":!experiments/figures", ":!README.md", ":!docs")
        dirty = git("status", "--porcelain", "--untracked-files=normal", "--", ".", *rendered)
        return git("rev-parse", "--short", "HEAD") + ("+dirty" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return None
