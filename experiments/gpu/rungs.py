"""Trains networks of `experiments.images.ladder` on the device, with its protocol, in the available time."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import DataError
from experiments.gpu import pack
from experiments.gpu.units import Options, Unit
from experiments.harness.code import code
from experiments.harness.experiment import Place
from experiments.images import ladder

SECONDS = 40.0  # estimated time of the first network


def units(options: Options) -> Iterator[Unit]:
    """One seed of each network; a further one is started only if the time of the previous one is available."""
    tiny = ladder.Config(dataset="random", limit=32, epochs=1, batch=16, width=8)
    config = tiny if options.tiny else ladder.Config()
    chosen = [replace(config, rung=rung) for rung in ladder.RUNGS]  # type: ignore[arg-type]
    took = {"longest": 0.0 if options.tiny else SECONDS}
    with tempfile.TemporaryDirectory() as scratch:
        root = pack.unpack(options.data, Path(scratch)) if options.data and not options.tiny else None
        for config in chosen[: 2 if options.tiny else None]:
            yield Unit(ladder.name(asdict(config)), partial(rung, config, root, options, took), took["longest"])


def rung(config: ladder.Config, root: Path | None, options: Options, took: dict[str, float]) -> dict[str, Any]:
    """Train and test a network."""
    start = time.monotonic()
    try:
        data = ladder.seen(config, root)
    except DataError as error:
        raise RuntimeError(f"{error} Or give --data a file of experiments.gpu.pack.") from None
    found = ladder.run(config, Place(root, str(options.device)))
    took["longest"] = max(0.0 if took["longest"] == SECONDS else took["longest"], time.monotonic() - start)
    ran = {"lowering": found.lowering, "config": asdict(config), "data": data._asdict(), "code": code(ladder.run)}
    return found.metrics | ran
