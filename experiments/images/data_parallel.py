"""Data-parallel training on CIFAR-10: several processes share the images of each batch and train one network.

Each process computes the loss of its share of a batch, weighted by the size of the share; Lightning Fabric's DDP
strategy averages the gradients (gloo on CPUs, nccl on GPUs). The batch size is that of all processes together, and
mean and variance of batch norm are computed over all of them (`gconv.parallel.sync_batch_norm`), so that any number of
processes takes the same steps up to rounding: with --double, weights agree to 1e-12 after a few steps. With
--norm local each process normalises by its own share, which saves communication and changes the result.

Protocol: the networks, recipe and images of `experiments.images.ladder` and `experiments.images.studies`; one process
gives the numbers of those experiments. By default one and two processes are compared.

    python -m experiments.images.data_parallel                     one process, then two on this machine
    python -m experiments.images.data_parallel --processes 4 --rung 3
    torchrun --nproc-per-node 4 -m experiments.images.data_parallel --rung 3    the same; writes no rows

Processes on several machines are started by torchrun, which also determines their number.
"""

import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from experiments.harness import common
from experiments.harness.experiment import Experiment, Place
from experiments.harness.fit import Epoch, Split, Task, accuracy, learning_rate, loss_of, optimiser, task
from experiments.harness.options import SweepOptions, parse
from experiments.harness.progress import report as progress
from experiments.harness.render import Table, rounded
from experiments.images import ladder, studies
from gconv.parallel import sync_batch_norm
from gconv.parallel.partition import even


@dataclass(frozen=True)
class Config(ladder.Config):
    """Network and training options."""

    study: str = ""
    """Instead of a rung: a network of `experiments.images.studies`, for example "padding circular"."""
    processes: int = 0
    """Number of processes; 0: one, then two."""
    norm: Literal["all", "local"] = "all"
    """Statistics of batch norm: over all processes, or in each process separately."""
    double: bool = False
    """Compute in float64."""

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.processes < 0 or self.batch < self.processes:
            raise ValueError(f"a batch of {self.batch} images cannot be divided among {self.processes} processes")
        if self.study and (self.rung, self.where, self.spec) != ("all", "all", ""):
            raise ValueError("--study goes without --rung, --where and --spec")


def expand(config: Config, seeds: int) -> list[Config]:
    """All runs: one process and two, or the given number, seed by seed. Raises: ValueError for an unknown network."""
    if config.study not in ("", *studies.NETWORKS):
        raise ValueError(f"there is no network {config.study!r}; there are {', '.join(studies.NETWORKS)}")
    if config.rung == "all" and not (config.spec or config.study):
        config = replace(config, rung="9")
    ladder.expand(replace(config, study=""), 1)
    numbers = [config.processes] if config.processes else [1, 2]
    return [replace(config, seed=config.seed + s, processes=p) for s in range(seeds) for p in numbers]


# -- training in each process ------------------------------------------------------------------------------------------


class Network(nn.Sequential):
    """Layers, computed in the dtype of their weights."""

    def forward(self, input: Tensor) -> Tensor:
        """(b, 3, h, w) -> (b, 10)."""
        y: Tensor = super().forward(input.to(next(self.parameters()).dtype))
        return y


class Loss(nn.Module):
    """The mean loss of images and labels, times a weight."""

    def __init__(self, net: nn.Module, data: Task, smoothing: float):
        super().__init__()
        self.net, self.data, self.smoothing = net, data, smoothing

    def forward(self, images: Tensor, labels: Tensor, weight: float) -> Tensor:
        """Images (b, 3, h, w), uint8, and labels (b,) -> a number."""
        where = next(self.net.parameters()).device
        return loss_of(self.net, images, labels, self.data, self.smoothing, where) * weight


def layers(config: Config) -> nn.Sequential:
    """The layers of the network."""
    if config.study:
        return studies.network(studies.NETWORKS[config.study], config.width)
    return ladder.network(config)


def own(split: Split, rank: int, processes: int) -> Split:
    """The share of a process: consecutive images, evenly divided.

    >>> [own(Split(torch.zeros(7, 1), torch.arange(7)), rank, 3).labels.tolist() for rank in range(3)]
    [[0, 1], [2, 3], [4, 5, 6]]
    """
    bounds = even(len(split.labels), processes)
    mine = slice(bounds[rank], bounds[rank + 1])
    return Split(split.images[mine], split.labels[mine])


def fitted(fabric: Any, config: Config, place: Place) -> tuple[nn.Module, dict[str, Any]]:
    """Train in this process of a Fabric.

    Returns: the network, and the metrics of `fit.fit` and images_per_second, the same in all processes.

    Raises:
        ValueError: if the last batch of an epoch has fewer images than there are processes.
        ArithmeticError: if the loss becomes NaN or infinite.
    """
    data, rank, processes = task(config.dataset, place.root, config.limit), fabric.global_rank, fabric.world_size
    count = len(data.train.labels)
    if (count % config.batch or config.batch) < processes:
        raise ValueError(
            f"the last batch of an epoch has {count % config.batch} images, fewer than the {processes} processes: "
            "choose another --batch"
        )
    common.seed_everything(config.seed)
    net: nn.Module = Network(*layers(config)).to(fabric.device)
    if processes > 1 and config.norm == "all":
        net = sync_batch_norm(net)
    net = net.to(memory_format=torch.channels_last, dtype=torch.float64 if config.double else torch.float32)  # type: ignore[call-overload]
    sgd, steps = optimiser(net, config), math.ceil(count / config.batch)
    model, stepper = fabric.setup(Loss(net, data, config.smoothing), sgd)
    saved = common.Checkpoint(place.checkpoint, net=net, optimiser=sgd) if place.checkpoint else None
    curve: dict[str, Any] = {"train_loss": [], "seconds": 0.0}
    start, curve = saved.restore(curve) if saved else (0, curve)
    for number in range(start, config.epochs):
        epoch, total, clock = Epoch(data.train, config, config.seed, number), 0.0, time.perf_counter()
        net.train()
        for step in range(steps):
            batch = epoch.batch(step)
            mine = own(batch, rank, processes)
            for group in sgd.param_groups:
                group["lr"] = learning_rate((number * steps + step + 1) / (steps * config.epochs), config)
            loss = model(*mine, processes * len(mine.labels) / len(batch.labels))
            stepper.zero_grad(set_to_none=True)
            fabric.backward(loss)
            stepper.step()
            value = float(fabric.all_reduce(loss.detach(), reduce_op="mean"))
            if not math.isfinite(value):
                raise ArithmeticError(f"the training loss became {value} in epoch {number + 1}: lower --lr")
            total += value * len(batch.labels)
        curve["seconds"] += time.perf_counter() - clock
        curve["train_loss"].append(total / count)
        if not rank:
            progress((number + 1) / config.epochs, f"epoch {number + 1}/{config.epochs}, loss {total / count:.3f}")
            if saved:
                saved.save(number + 1, curve)
    mine = own(data.test, rank, processes)
    right = round(accuracy(net, data, mine, fabric.device) * len(mine.labels)) if len(mine.labels) else 0
    right = int(fabric.all_reduce(torch.tensor(right, device=fabric.device), reduce_op="sum"))
    return net, {
        "test_accuracy": right / len(data.test.labels),
        "train_loss": curve["train_loss"],
        "images_per_second": round(count * config.epochs / curve["seconds"], 1),
        "parameters": sum(p.numel() for p in net.parameters()),
    }


def metrics(fabric: Any, config: Config, place: Place, threads: int) -> dict[str, Any]:
    """The metrics of `fitted`, computed with this number of threads; run in each process."""
    torch.set_num_threads(threads)
    return fitted(fabric, config, place)[1]


# -- starting processes ------------------------------------------------------------------------------------------------


def fabric(config: Config, device: str, processes: int, nodes: int = 1, strategy: str = "ddp_spawn") -> Any:
    """A lightning_fabric.Fabric. Raises: SystemExit if it is not installed, ValueError if there are too few GPUs.

    Args:
        config: whether to compute in float64.
        device: auto (GPUs if there are any), cpu or cuda.
        processes: of this machine.
        nodes: number of machines.
        strategy: of Fabric: ddp_spawn, ddp_fork, or ddp if the processes have been started already.
    """
    try:
        from lightning_fabric import Fabric
    except ImportError:
        raise SystemExit(
            "error: data-parallel training needs Lightning Fabric: pip install -c constraints.txt lightning-fabric"
        ) from None
    kind = common.device(device).type
    if kind == "cuda" and torch.cuda.device_count() < processes:
        raise ValueError(f"{processes} processes need a GPU each, but there are {torch.cuda.device_count()}")
    strategy = strategy if processes * nodes > 1 else "auto"
    precision: Any = "64-true" if config.double else "32-true"
    return Fabric(accelerator=kind, devices=processes, num_nodes=nodes, strategy=strategy, precision=precision)


def launched(work: Any, config: Config, place: Place, strategy: str = "ddp_spawn") -> Any:
    """work(fabric, config, place, threads) in each of new processes. Returns: the result of the first one."""
    before = dict(os.environ)
    threads = max(1, torch.get_num_threads() // config.processes)
    try:
        made = fabric(config, place.device, config.processes, strategy=strategy)
        options = {"config": config, "place": place, "threads": threads}
        return made.launch(partial(_begun, work=work, code=common.Checkpoint.code, **options))
    finally:  # Fabric leaves the address of its process group behind
        for name in os.environ.keys() - before.keys():
            del os.environ[name]


def _begun(fabric: Any, work: Any, code: Any, **options: Any) -> Any:
    """work(fabric, ...) in a process that knows the code of the run, for its checkpoints."""
    common.Checkpoint.begin(code)
    return work(fabric, **options)


def run(config: Config, place: Place) -> common.Outcome:
    """Start the processes of a run, and wait for them."""
    return common.Outcome(launched(metrics, config, place))


def member(argv: Sequence[str] | None = None) -> None:
    """The command line in a process that torchrun started: all runs, one after the other. Raises: SystemExit."""
    config, options = parse(Config, SweepOptions, __doc__, argv, EXPERIMENT.defaults)
    world, here = (int(os.environ[name]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if config.processes not in (0, world):
        raise SystemExit(f"error: torchrun started {world} processes, not the {config.processes} of --processes")
    if options.smoke:
        config = replace(config, **EXPERIMENT.smoke)
    rows, place = [], Place(options.data_root, options.device)
    try:
        made = fabric(config, options.device, here, world // here, "ddp")
        made.launch()
        for one in expand(replace(config, processes=world), options.seeds):
            found = metrics(made, one, place, options.threads or torch.get_num_threads())
            rows.append({"config": asdict(one), "metrics": found})
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    if not made.global_rank:
        report(rows)
    if world > 1:
        torch.distributed.destroy_process_group()


def seen(config: Config, root: Path | None) -> common.Data:
    """The data of a run."""
    return task(config.dataset, root, config.limit).seen


def name(config: dict[str, Any]) -> str:
    """The label of a configuration in tables.

    >>> name(asdict(Config(rung="3", processes=2)))
    '3, 2 processes'
    """
    many = f"{config['processes']} process{'es' * (config['processes'] != 1)}"
    return f"{config['study'] or ladder.name(config)}, {many}{', local norm' * (config['norm'] == 'local')}"


def report(rows: list[common.Row]) -> None:
    """Print one line per run."""
    for row in rows:
        m = row["metrics"]
        print(
            f"{name(row['config']):24s} seed {row['config']['seed']}: test accuracy {100 * m['test_accuracy']:.2f} %, "
            f"last loss {m['train_loss'][-1]:.6f}, {m['images_per_second']:.0f} images/s"
        )


def modules(config: Config) -> list[str]:
    """The module of an operator given by --spec."""
    return ladder.modules(config)


EXPERIMENT = Experiment(
    name="data_parallel",
    about=__doc__ or "",
    config=Config,
    expand=expand,
    run=run,
    data=seen,
    smoke={"dataset": "random", "limit": 32, "epochs": 1, "batch": 16, "width": 8},
    report=report,
    modules=modules,
    measured=("images_per_second",),
    tolerance={"test_accuracy": 0.02, "train_loss": 0.02},
)


def cells(row: common.Row) -> dict[str, float]:
    """Speed, and what must not depend on the number of processes."""
    m = row["metrics"]
    return {"images per second": m["images_per_second"], "test accuracy, %": 100 * m["test_accuracy"]}


TABLE = Table(
    name="data_parallel",
    experiment="data_parallel",
    label="config.processes",
    cells=cells,
    format=rounded,
    caption=(
        "The CNN of `experiments.images.ladder` with nine weight matrices, trained in one process and in two with one "
        "thread each; batches of 128 images in total, batch norm over all processes."
    ),
    command="python -m experiments.images.data_parallel --official --threads 1",
)


def main(argv: Sequence[str] | None = None, **how: Any) -> None:
    """The command line. Raises: SystemExit."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        member(argv)
    else:
        EXPERIMENT.main(argv, **how)


if __name__ == "__main__":
    main()
