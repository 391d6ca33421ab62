"""Names used by all experiments, in one module: `from experiments.harness import common`."""

from experiments.harness.machine import ROOT, device, peak_memory_mb, reset_peak_memory, seed_everything, timer
from experiments.harness.options import RESULTS, RUNS, Data, Options, Outcome, cli, grid, run_key
from experiments.harness.store import Checkpoint, Results, ResultsError, Row
from experiments.harness.sweeps import sweep

__all__ = [
    "RESULTS",
    "ROOT",
    "RUNS",
    "Checkpoint",
    "Data",
    "Options",
    "Outcome",
    "Results",
    "ResultsError",
    "Row",
    "cli",
    "device",
    "grid",
    "peak_memory_mb",
    "reset_peak_memory",
    "run_key",
    "seed_everything",
    "sweep",
    "timer",
]
