"""Command line and identity of a run: configuration, options, data seen, outcome, key.

An experiment is a frozen dataclass (its configuration and its command line) and a function `run(config) -> Outcome`.
"""

import hashlib
import itertools
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from experiments.harness.machine import ROOT, device
from experiments.harness.store import Results

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RESULTS = ROOT / "experiments" / "results"  # committed; changed only with --official
RUNS = ROOT / "runs"  # rows of the user
MAX_SEEDS = 10_000
MAX_THREADS = 4096
FLOAT32 = 3.4e38  # the largest number
C = TypeVar("C", bound="DataclassInstance")


class Data(NamedTuple):
    """The data of a run: a label for tables, and a hash of the content."""

    label: str
    hash: str


class Outcome(NamedTuple):
    """The result of a run: metrics (finite numbers, or lists of them), and the chosen lowerings."""

    metrics: dict[str, Any]
    lowering: Any = None


class Launch(NamedTuple):
    """How runs are launched; the fields are described in `Options`."""

    jobs: int = 1
    threads: int = 0
    budget: float | None = None
    launcher: str = "local"
    isolate: bool = False
    """Use one process per run even with a single job."""


@dataclass(frozen=True)
class Options:
    """Options that affect how runs are executed, but not their results; they are not part of a row's key."""

    seeds: int = 1
    """Number of seeds, counted from 0."""
    jobs: int = 1
    """Number of parallel runs; the threads are divided among them."""
    rerun: bool = False
    """Repeat runs that were recorded with other code, and replace their rows."""
    results: Path | None = None
    """JSONL file to append to (default: runs/NAME.jsonl; runs with committed rows are not repeated)."""
    data_root: Path | None = None
    """Folder of the data sets (default: $GCONV_DATA, else the user's cache folder)."""
    official: bool = False
    """Append to the committed rows, experiments/results/NAME.jsonl, and draw the committed figures."""

    def __post_init__(self) -> None:
        """Check the options."""
        if not (1 <= self.seeds <= MAX_SEEDS and 1 <= self.jobs <= MAX_SEEDS):
            raise ValueError(f"--seeds and --jobs must be from 1 to {MAX_SEEDS:,}, not {self.seeds} and {self.jobs}")
        if self.official and self.results is not None:
            raise ValueError("--official names the file of the rows, so it goes without --results")

    def launch(self, isolate: bool = False) -> Launch:
        """How runs are launched."""
        return Launch(self.jobs, isolate=isolate)

    def open(self, experiment: str) -> "Results":
        """The results file of this invocation."""
        if self.results is not None:
            return Results(self.results, rerun=self.rerun)
        name = f"{experiment}.jsonl"
        if self.official:
            return Results(RESULTS / name, rerun=self.rerun)
        return Results(RUNS / name, known=RESULTS / name, rerun=self.rerun)


@dataclass(frozen=True)
class SweepOptions(Options):
    """How to run an `Experiment`."""

    threads: int = 0
    """Threads per run; each run then has its own process (default: torch's threads divided by --jobs)."""
    budget: float | None = None
    """Time limit in minutes; the same command continues later."""
    launcher: Literal["local", "submitit"] = "local"
    """Where runs are launched: on this machine, or as jobs of a cluster."""
    smoke: bool = False
    """Run tiny sizes (seconds per run), for testing; rows are written to runs/smoke/NAME.jsonl."""
    device: str = "auto"
    """Device for training: auto (the first GPU, else the CPU), cpu, cuda:1 ..."""
    compare: tuple[str, ...] = ()
    """With --spec: models to train with the same options and seeds, and to print in one table with your operator."""

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if not 0 <= self.threads <= MAX_THREADS:
            raise ValueError(f"--threads must be from 0 to {MAX_THREADS:,}, not {self.threads}")
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"--budget must be positive, not {self.budget}")
        if self.official and self.smoke:
            raise ValueError("--smoke makes no official rows")

    def launch(self, isolate: bool = False) -> Launch:
        """How runs are launched."""
        return Launch(self.jobs, self.threads, self.budget, self.launcher, isolate or self.threads > 0)


def cli(
    config: type[C], description: str | None = None, argv: Sequence[str] | None = None, **defaults: Any
) -> tuple[C, Options]:
    """Parse the command line into `(config, options)`.

    The fields of the dataclass `config` are the options; their docstrings are the help texts.
    `defaults` override defaults of `Options` for this experiment: `cli(Config, __doc__, seeds=10)`.

    Raises: SystemExit(2) for an unknown option, with a message that names the nearest one.

    >>> @dataclass(frozen=True)
    ... class Config:
    ...     hidden: int = 16
    >>> config, options = cli(Config, argv=["--hidden", "32", "--jobs", "2"], seeds=10)
    >>> config.hidden, options.jobs, options.seeds
    (32, 2, 10)
    """
    return parse(config, Options, description, argv, defaults)


def parse(
    config: type[Any], kind: type[Any], description: str | None, argv: Sequence[str] | None, defaults: Mapping[str, Any]
) -> tuple[Any, Any]:
    """`cli` with another class of options. A device that is not available here is refused."""
    import tyro

    bare = tyro.conf.OmitArgPrefixes
    parts = [
        ("config", bare[config], field(default_factory=config)),
        ("options", bare[kind], field(default_factory=lambda: kind(**defaults))),
    ]
    command: Any = tyro.cli(make_dataclass("Command", parts), prog=command_name(), description=description, args=argv)
    try:
        check(command.config, command.options.seeds)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    named = {getattr(part, "device", "auto") for part in (command.config, command.options)} - {"auto"}
    for name in named if getattr(command.options, "launcher", "local") == "local" else ():
        try:
            device(name)
        except ValueError as error:
            raise SystemExit(f"error: --device: {error}") from None
    return command.config, command.options


MAY_BE_ZERO = {"checked", "control_steps", "draw", "held_out", "k", "shift", "warmup"}
"""Whole numbers that may be 0 although their default is not."""
LEAST = {"weight_decay": 0, "dropout": 0}
MOST = {"shift": 31, "heads": 2**16, "layers": 2**12, "threads": MAX_THREADS, "workers": MAX_THREADS}
"""Bounds of options that several experiments have; the images that are shifted have 32 x 32 pixels."""


def check(config: Any, seeds: int) -> None:
    """Check the numbers among the options, so that no run starts with a value that it cannot use.

    All must be finite, in float32. Whole numbers must not be negative, and those with a positive default not 0 (except
    those in `MAY_BE_ZERO`). A negative default (for "all") is possible, too.

    Raises: ValueError.

    >>> @dataclass(frozen=True)
    ... class Config:
    ...     limit: int | None = None
    ...     dropout: float = 0.0
    >>> check(Config(limit=0), 1)
    Traceback (most recent call last):
        ...
    ValueError: --limit must be at least 1, not 0
    """
    defaults = {one.name: one.default for one in fields(config)}
    for name, value in fields_of(config).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        option, default = f"--{name.replace('_', '-')}", defaults[name]
        if not (math.isfinite(value) and (isinstance(value, int) or abs(value) < FLOAT32)):
            raise ValueError(f"{option} must be a finite number, not {value}")
        least: float = LEAST.get(name, -math.inf)
        if isinstance(value, int) and isinstance(default, int | None):
            least = 1 if name == "limit" or (name not in MAY_BE_ZERO and default is not None and default > 0) else 0
            least = least if default is None else min(least, default)
        if value < least:
            raise ValueError(f"{option} must be at least {least}, not {value}")
        if value > MOST.get(name, math.inf):
            raise ValueError(f"{option} must be at most {MOST[name]:,}, not {value}")
        if name in ("lr", "budget") and not value > 0:
            raise ValueError(f"{option} must be positive, not {value}")
        if name == "dropout" and value >= 1:
            raise ValueError(f"{option} must be less than 1, not {value}")
        if name == "seed" and value + seeds > 2**32:
            raise ValueError(f"{option} must be less than 2**32 with all of --seeds, not {value}")


def command_name() -> str | None:
    """The command of this process as it is typed, `python -m experiments.sweep ladder`; None for a script."""
    module = getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", None)
    if module is None or not module.startswith("experiments."):
        return None
    table = sys.argv[1:2] if module == "experiments.sweep" else []
    return " ".join(["python -m", module.removesuffix(".__main__"), *table])


def grid(config: C, **axes: Iterable[Any]) -> list[C]:
    """All combinations of `axes` as copies of `config`; the last axis varies fastest.

    >>> [(options.seeds, options.jobs) for options in grid(Options(), seeds=[1, 2], jobs=[3])]
    [(1, 3), (2, 3)]
    """
    return [replace(config, **dict(zip(axes, v, strict=True))) for v in itertools.product(*axes.values())]


LATER = {"later": True}
"""Metadata for a field added later: it is omitted from rows and keys at its default, so old rows remain valid."""


def fields_of(config: Any) -> dict[str, Any]:
    """A configuration in the form used in rows and keys."""
    found = asdict(config)
    for one in fields(config):
        if one.metadata.get("later") and getattr(config, one.name) == one.default:
            del found[one.name]
    return found


def run_key(config: Any, experiment: str, data: Data | None = None) -> str:
    """The 16 hex digits that identify a run: experiment, configuration (seed included) and content of the data.

    Raises: TypeError if the configuration contains a value that JSON does not support (for example a Path).

    >>> run_key(Options(seeds=3), "citation") == run_key(Options(3), "citation") != run_key(Options(4), "citation")
    True
    """
    what = {"experiment": experiment, "config": fields_of(config), "data": data and data.hash}
    return hashlib.sha256(json.dumps(what, sort_keys=True, allow_nan=False).encode()).hexdigest()[:16]
