"""Experiments as data: configuration, runs and data sets, with a common command line and sweep."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

from experiments.harness.options import RUNS, Data, Outcome, SweepOptions, fields_of, parse
from experiments.harness.store import Row
from experiments.harness.sweeps import DataMissing, sweep


class Place(NamedTuple):
    """Where a run takes place; this must not affect its numbers beyond rounding."""

    root: Path | None = None
    """Folder of the data sets."""
    device: str = "auto"
    checkpoint: Path | None = None
    """File for the run's `Checkpoint`."""


@dataclass(frozen=True)
class Experiment:
    """The runs of a table.

    Args:
        name: name of the file of rows, and of the table on the command line of `experiments.sweep`.
        about: the help text.
        config: a frozen dataclass, the configuration of a run and of the command line.
        expand: (configuration of the command line, number of seeds) -> the runs, the most informative first.
            Raises: ValueError for invalid configurations.
        run: (configuration, place) -> outcome, a module-level function.
        data: (configuration, folder of the data sets) -> the data of the run.
        smoke: fields of the configuration with which a run takes a second or two.
        report: prints a summary of the rows.
        modules: further modules that affect the numbers of a configuration.
        measured: metrics that are times or rates, and so not reproducible.
        tolerance: largest permitted difference of a metric between two kinds of processors.
        defaults: defaults of `Options` for this experiment.
    """

    name: str
    about: str
    config: type[Any]
    expand: Callable[[Any, int], list[Any]]
    run: Callable[[Any, Place], Outcome]
    data: Callable[[Any, Path | None], Data]
    smoke: Mapping[str, Any]
    report: Callable[[list[Row]], None]
    modules: Callable[[Any], Iterable[str]] = lambda config: ()
    measured: tuple[str, ...] = ()
    tolerance: Mapping[str, float] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(self.name)

    def main(self, argv: Sequence[str] | None = None, *, isolate: bool = False) -> None:
        """The command line. Raises: SystemExit."""
        config, options = parse(self.config, SweepOptions, self.about, argv, self.defaults)
        rows = self.rows(config, options, isolate)
        try:
            self.report(rows)
        except KeyError as error:
            what = f"a row of {self.name} has no {error}, so another version wrote it, or it was edited"
            raise SystemExit(f"error: {what}; delete its line in {options.open(self.name).path}") from error
        if options.compare:
            from experiments.harness.render import comparison

            print(f"\n{comparison(rows)}")

    def rows(self, config: Any, options: SweepOptions, isolate: bool = False) -> list[Row]:
        """Run what is missing of a configuration. Returns: its rows. Raises: SystemExit."""
        if options.smoke:
            config = replace(config, **self.smoke)
            options = replace(options, results=options.results or RUNS / "smoke" / f"{self.name}.jsonl")
        try:
            configs = [*self.compared(config, options), *self.expand(config, options.seeds)]
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None
        try:
            return sweep(
                configs,
                partial(call, self.run, options.data_root, options.device),
                options.open(self.name),
                experiment=self.name,
                data=lambda c: self.data(c, options.data_root),
                resumable=True,
                launch=options.launch(isolate),
                modules=self.modules,
            )
        except DataMissing as error:
            raise DataMissing(naming_the_root(str(error), options.data_root)) from None

    def compared(self, config: Any, options: SweepOptions) -> list[Any]:
        """The runs of the models named by --compare. Raises: ValueError without --spec, or for an unknown model."""
        if options.compare and not getattr(config, "spec", ""):
            raise ValueError('--compare goes with an operator of your own, --spec "module:factory(k=3)"')
        name = "rung" if hasattr(config, "rung") else "model"
        known = get_args(get_type_hints(self.config).get(name))
        runs: list[Any] = []
        for model in options.compare:
            if known and model not in known:
                raise ValueError(f"--compare {model}: there is no such {name}; there are {', '.join(known)}")
            runs += self.expand(replace(config, spec="", **{name: model}), options.seeds)
        return runs

    @staticmethod
    def asdict(config: Any) -> dict[str, Any]:
        """The configuration in the form stored in rows."""
        plain: dict[str, Any] = json.loads(json.dumps(fields_of(config)))
        return plain

    def read(self, row: Row) -> Any:
        """The configuration of a row. Raises: ValueError if its fields do not match this version."""
        given, known = row["config"], {f.name: bool(f.metadata.get("later")) for f in dataclasses.fields(self.config)}
        odd = ", ".join(sorted({*given.keys() - known.keys(), *(n for n in known if n not in given and not known[n])}))
        if odd:
            raise ValueError(f"the row {row['key']} of {self.name} is of another version: fields differ in {odd}")
        return self.config(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})


def naming_the_root(message: str, root: Path | None) -> str:
    """A message on data, which also says how to choose another data root if it names a file of this one."""
    from datasets.root import data_root

    folder = str(data_root(root))
    if "--data-root" in message or folder not in message:
        return message
    return f"{message}\n  data root: {folder}; choose another one by --data-root or GCONV_DATA"


def call(
    run: Callable[[Any, Place], Outcome], root: Path | None, device: str, config: Any, path: Path | None = None
) -> Outcome:
    """A run of an experiment, in the form called by `sweep`."""
    return run(config, Place(root, device, path))
