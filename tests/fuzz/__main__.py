"""Random specs, domains and signals against a float64 reference, in child processes, so that a crash is a finding.

    python -m tests.fuzz                              three minutes with a fresh seed
    python -m tests.fuzz --cases 10000 --jobs 2       so many cases
    python -m tests.fuzz --again 'LINE'               one case again, from the line that a finding printed

Each case is a spec near one of an operator's samples, on a random domain: odd grids, no edges, isolated nodes, loops,
double edges, weights of zero, negative and huge; in float64, float32, bfloat16 and float16, with batches of every shape
and several memory layouts. Every admitted lowering, the planned one and its second call have to agree with `dense` in
float64, in value and gradients, within 16 times what the reference moves by when each of its operations rounds. A layer
that was used in other modes, on another graph and with other weights has to agree with a new one.

Exit status: 0 if nothing was found, 1 if something was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

CHUNK = 200  # cases a child process; it starts with empty caches
HANGS = 120.0  # seconds of a processor after which a case counts as hanging, or ten times that on the clock


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=3.0, help="how long; default 3")
    parser.add_argument("--cases", type=int, default=None, help="how many cases, however long they take")
    parser.add_argument("--seed", type=int, default=None, help="default: a fresh one, which is printed")
    parser.add_argument("--jobs", type=int, default=1, help="child processes at once; default 1")
    parser.add_argument("--again", default=None, metavar="LINE", help="run one printed case")
    parser.add_argument("--worker", nargs=3, metavar=("SEED", "CASES", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if wrong := mistake(options):
        parser.error(wrong)
    if options.worker:
        work(int(options.worker[0]), int(options.worker[1]), Path(options.worker[2]))
    elif options.again is not None:
        sys.exit(one(options.again))
    else:
        sys.exit(watch(options))


def mistake(options: argparse.Namespace) -> str:
    """What is wrong with the options, since a run without a case would report that nothing was found."""
    if not 0 < options.minutes < math.inf:
        return f"--minutes must be positive and finite, not {options.minutes:g}"
    for name, least in (("cases", 1), ("jobs", 1), ("seed", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            return f"--{name} must be at least {least}, not {value}"
    return ""


def one(line: str) -> int:
    from tests.fuzz.cases import FuzzCase
    from tests.fuzz.check import Finding, check

    try:
        case = FuzzCase.parse(line)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        sys.exit(f"error: --again takes the quoted line of a finding, and {line[:40]!r} is none ({error})")
    try:
        outcome = check(case)
    except Finding as finding:
        print(f"FOUND {finding}")
        return 1
    print(f"refused: {outcome.refusal}" if outcome.refusal else f"{outcome.compared} runs agree with the reference")
    return 0


def work(seed: int, count: int, folder: Path) -> None:
    """Run cases; the one in work stands in a file, in case the process does not survive it."""
    import warnings

    import hypothesis
    import torch

    from tests.fuzz.cases import FuzzCase, cases
    from tests.fuzz.check import Finding, check

    torch.set_num_threads(1 + seed % 2)
    warnings.simplefilter("ignore")
    parent = os.getppid()
    now = folder / "now"

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(cases())
    def run(case: FuzzCase) -> None:
        if os.getppid() != parent:  # killed before it could end its children
            os._exit(1)
        now.write_text(str(case), encoding="utf-8")
        record: dict[str, object] = {"operator": case.spec["operator"]}
        try:
            outcome = check(case)
            record |= {"compared": outcome.compared, "refused": outcome.refusal}
        except Finding as finding:
            record |= {"found": str(finding), "case": str(case)}
        with (folder / "out").open("a", encoding="utf-8") as out:
            out.write(json.dumps(record) + "\n")

    run()


class Child:
    """One child process and the records that it has left so far."""

    def __init__(self, seed: int, count: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        command = [sys.executable, "-m", "tests.fuzz", "--worker", str(seed), str(count), self.folder.name]
        self.errors = (self.path / "errors").open("w+", encoding="utf-8")
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=self.errors, cwd=Path(__file__).parents[2]
        )
        self.count, self.read, self.last = count, 0, (time.monotonic(), self.worked())

    def records(self) -> list[dict[str, str]]:
        out = self.path / "out"
        lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
        fresh, self.read = lines[self.read :], len(lines)
        if fresh:
            self.last = time.monotonic(), self.worked()
        return [json.loads(line) for line in fresh]

    def worked(self) -> float:
        """Seconds that it has had of a processor, which other processes don't lengthen; of the clock where unknown."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, AttributeError):
            return time.monotonic()

    def end(self) -> tuple[str, dict[str, str] | None] | None:
        """None while it runs; then how it ended, and a finding if it did not end by itself."""
        code = self.process.poll()
        waited, worked = time.monotonic() - self.last[0], self.worked() - self.last[1]
        hangs = code is None and (worked > HANGS or waited > 10 * HANGS)
        if code is None and not hangs:
            return None
        if hangs:
            self.kill()
        now = self.path / "now"
        case = now.read_text(encoding="utf-8") if now.exists() else ""
        self.errors.seek(0)
        said = self.errors.read().strip().splitlines()[-1:]
        if hangs:
            return "hangs", {"found": f"no answer within {HANGS:.0f} s", "case": case}
        if code:
            return "died", {"found": f"the process died with {code}: {' '.join(said)[:300]}", "case": case}
        return "done", None

    def kill(self) -> None:
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=10)


def watch(options: argparse.Namespace) -> int:
    seed = secrets.randbelow(10**9) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that children are ended on the way out
    start, launched = time.monotonic(), 0
    findings: list[dict[str, str]] = []
    tally: Counter[str] = Counter()
    operators: set[str] = set()
    children: list[Child] = []

    def missing() -> int:
        """How many cases no child process has been given yet."""
        if options.cases is None:
            return CHUNK if time.monotonic() - start < 60 * options.minutes else 0
        return int(options.cases - tally["cases"] - sum(child.count - child.read for child in children))

    def take(record: dict[str, str]) -> None:
        tally["cases"] += 1
        operators.add(record.get("operator", ""))
        if "found" in record:
            findings.append(record)
            print(f"FOUND {record['found']}\n    python -m tests.fuzz --again '{record['case']}'", flush=True)
        elif record["refused"]:
            tally["refused"] += 1
        else:
            tally["runs"] += int(record["compared"])

    try:
        while missing() > 0 or (children and options.cases is not None):
            while missing() > 0 and len(children) < options.jobs:
                children.append(Child(seed + launched, min(CHUNK, missing())))
                launched += 1
            time.sleep(0.2)
            for child in list(children):
                ended = child.end()
                for record in child.records():
                    take(record)
                if ended is not None:
                    children.remove(child)
                    if ended[1] is not None:
                        take(ended[1])
    finally:
        for child in children:
            child.kill()
    for child in children:
        for record in child.records():
            take(record)
    seconds = time.monotonic() - start
    print(
        f"{tally['cases']} cases of {len(operators - {''})} operators in {seconds:.0f} s: "
        f"{tally['runs']} runs of lowerings agree with float64, {tally['refused']} cases refused in words, "
        f"{len(findings)} found (seed {seed})"
    )
    return 1 if findings else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    main()
