"""The blood cell detector as an ONNX program, in float32 and quantized to int8: size, latency, average precision.

    eager         the network in PyTorch
    float32       exported to ONNX and run by ONNX Runtime
    int8          statically quantized: int8 weights with a scale per output channel, uint8 activations
    int8 body     the same, with the last layer (box sizes and class heat maps) in float32

Weights use 7 of the 8 bits (`reduce_range`): on processors without VNNI instructions, ONNX Runtime adds pairs of 8-bit
products in 16 bits, which may saturate, so that the precision would depend on the processor.

Protocol: the network of `experiments/checkpoints/detection.safetensors`, exported once with a dynamic batch size.
Activation ranges are calibrated (minimum and maximum) on training photos drawn with the seed; nothing is trained or
selected. Precision is COCO's on the 72 test photos of BCCD, as in the detection table. Latency is the median over
single photos (320 x 240) of the CPU time on one thread; `load` is the machine's load average.

    python -m experiments.sweep int8
    python -m experiments.detection.int8 --model int8
"""

import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from datasets.bccd import CLASSES, BoxSet
from experiments.detection.bccd import photos, precision, ready, search
from experiments.detection.detector import Detector
from experiments.detection.predict import CHECKPOINT, restored
from experiments.harness import common
from experiments.harness.experiment import Experiment, Place
from experiments.harness.render import Table, plain

MODELS = ("eager", "float32", "int8", "int8 body")
WARM = 3  # calls that are not timed


@dataclass(frozen=True)
class Config:
    """Options of a run."""

    model: Literal["eager", "float32", "int8", "int8 body", "all"] = "all"
    dataset: Literal["BCCD", "random"] = "BCCD"
    """random: an untrained network on generated discs, a quick test of the whole pipeline."""
    calibration: int = 48
    """Number of training photos for calibration."""
    calls: int = 30
    """Number of timed calls."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        for name in ("calibration", "calls"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


def expand(config: Config, seeds: int) -> list[Config]:
    """One configuration a run."""
    models: Any = MODELS if config.model == "all" else (config.model,)
    return [replace(config, model=model, seed=config.seed + s) for s in range(seeds) for model in models]


def network(config: Config) -> Detector:
    """The network that is exported."""
    if config.dataset == "BCCD":
        return restored(CHECKPOINT)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Detector(len(CLASSES), 4).eval()


@lru_cache(maxsize=2)
def exported(config: Config, root: Path | None) -> bytes:
    """The network as an ONNX program for any number of photos, without the peak search; made once a process."""
    x = ready(photos(config.dataset, root).images[:2])
    with tempfile.TemporaryDirectory(prefix="gconv-int8-") as name, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own parts
        path = Path(name) / "float32.onnx"
        torch.onnx.export(
            network(config), (x,), str(path), dynamo=True, dynamic_shapes=({0: torch.export.Dim("photos")},),
            external_data=False, verbose=False, output_names=["heat", "shape"],
        )  # fmt: skip
        return path.read_bytes()


def quantize(source: Path, to: Path, x: Tensor, body: bool) -> None:
    """An ONNX program in int8, calibrated on x (b, 3, h, w), with `body` but for its last layer."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Photos(CalibrationDataReader):
        """One photo after another."""

        def __init__(self, name: str) -> None:
            self.given: Iterator[dict[str, Any]] = iter([{name: photo[None].numpy()} for photo in x])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.given, None)

    fused = to.with_suffix(".fused.onnx")
    quant_pre_process(str(source), str(fused), skip_symbolic_shape=True)  # batch norms into convolutions
    graph = onnx.load(str(fused)).graph
    last = [node.name for node in graph.node if node.op_type == "Conv"][-1:]
    quantize_static(
        str(fused), str(to), Photos(graph.input[0].name), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, nodes_to_exclude=last if body else [],
        reduce_range=True,
    )  # fmt: skip
    fused.unlink()


def program(path: Path) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """An ONNX program as a function, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        heat, shape = session.run(None, {name: x.numpy()})
        return torch.from_numpy(heat), torch.from_numpy(shape)

    return call


def form(config: Config, data: BoxSet, root: Path | None, folder: Path) -> tuple[Callable[..., Any], int]:
    """The network in the form of a configuration as a function, and the bytes of its file."""
    if config.model == "eager":
        return network(config), CHECKPOINT.stat().st_size if config.dataset == "BCCD" else 0
    path = folder / "float32.onnx"
    path.write_bytes(exported(Config("all", config.dataset), root))
    if config.model != "float32":
        train = torch.tensor(data.parts["train"])
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed))
        chosen = ready(data.images[train[order[: config.calibration]]])
        path = folder / "int8.onnx"
        quantize(folder / "float32.onnx", path, chosen, config.model == "int8 body")
    return program(path), path.stat().st_size


@torch.no_grad()
def latency(call: Callable[[Tensor], Any], x: Tensor, calls: int) -> float:
    """Median milliseconds of the processor a photo, on one thread."""
    threads, took = torch.get_num_threads(), []
    torch.set_num_threads(1)
    for turn in range(WARM + calls):
        start = time.process_time()
        call(x[turn % len(x)][None])
        if turn >= WARM:
            took.append(time.process_time() - start)
    torch.set_num_threads(threads)
    return 1e3 * statistics.median(took)


def run(config: Config, place: Place) -> common.Outcome:
    """One form of the network."""
    data, model = photos(config.dataset, place.root), network(config)
    test = list(data.parts["test"])
    x = ready(data.images[test])
    with tempfile.TemporaryDirectory(prefix="gconv-int8-") as name:
        call, size = form(config, data, place.root, Path(name))
        with torch.no_grad():
            want, got = (torch.cat(of(x[:4]), 1) for of in (model, call))
        metrics: dict[str, Any] = {"gap": ((got - want).abs().max() / want.abs().max()).item(), "bytes": size}
        before = os.getloadavg()[0]
        metrics["ms"] = latency(call, x, config.calls)
        metrics["load"] = max(before, os.getloadavg()[0])
        if config.model != "eager":
            model.forward = call  # type: ignore[method-assign]
        found = search(model, data.images[test])
    metrics |= precision(found, [data.boxes[i] for i in test], [data.kinds[i] for i in test])
    return common.Outcome(metrics)


def seen(config: Config, root: Path | None) -> common.Data:
    """What a run sees."""
    data = photos(config.dataset, root)
    return common.Data(data.label, data.content_hash)


def report(rows: list[common.Row]) -> None:
    """A line a form."""
    for row in rows:
        m = row["metrics"]
        print(
            f"{row['config']['model']:10s} {m['bytes'] / 1e3:7.0f} kB, {m['ms']:6.1f} ms of processor a photo, "
            f"AP50 {100 * m['ap50']:.1f}, AP50:95 {100 * m['ap']:.1f}, largest difference {m['gap']:.1e}"
        )


EXPERIMENT = Experiment(
    name="int8",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=run,
    data=seen,
    smoke={"dataset": "random", "calibration": 2, "calls": 2},
    report=report,
    measured=("ms", "load", "bytes"),
    tolerance={"ap50": 0.02, "ap": 0.02, "gap": 0.1},
    defaults={"seeds": 1},
)


def cells(row: common.Row) -> dict[str, Any]:
    """A row of the table."""
    m = row["metrics"]
    shown = {"file, kB": m["bytes"] / 1e3, "ms of processor a photo": m["ms"], "AP50": 100 * m["ap50"]}
    shown |= {"AP50:95": 100 * m["ap"], "largest difference of an output, %": 100 * m["gap"], "load": m["load"]}
    return {name: round(value, 4 if "difference" in name else 1) for name, value in shown.items()}


TABLE = Table(
    name="int8",
    experiment="int8",
    label="config.model",
    labels=MODELS,
    cells=cells,
    format=plain,
    caption=(
        "The detector of blood cells (grid head, seed 0, 243,571 parameters) in PyTorch and as an ONNX program: COCO "
        "average precision in % on BCCD's 72 test photos; the difference is relative to the largest output of the "
        "network in PyTorch. The file of `eager` holds half-precision numbers. `load` is the machine's load average."
    ),
    command="python -m experiments.sweep int8 --official",
)

main = EXPERIMENT.main

if __name__ == "__main__":
    main()
