"""What holds for every test: seeds, threads, limits, no network, fresh compilers; dtypes with their tolerances."""

import faulthandler
import gc
import importlib.util
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import gconv.module
from gconv.kernels import native

os.environ.setdefault("KERAS_BACKEND", "torch")  # before anything imports keras, whose default is TensorFlow

STDERR = pytest.StashKey[int]()
START = pytest.StashKey[float]()
SEED = int(os.environ.get("GCONV_TEST_SEED", "0"))

# The one table of tolerances: relative to the largest entry, for sums of a few thousand products.
TOL = {torch.float64: {"rtol": 1e-10, "atol": 1e-10}, torch.float32: {"rtol": 1e-5, "atol": 1e-5}}

# The session's own patch rather than a fixture's: docstring examples outside tests/ are held to it too.
_offline = pytest.MonkeyPatch()
_connect, _connect_ex, _getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo


class NetworkBlocked(OSError):
    """A test reached for the network; code under test sees what a machine without one would show it."""


def _check(host: object) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    if name not in (None, "", "localhost", "::1") and not str(name).startswith("127."):
        raise NetworkBlocked(f"tests do not use the network: {name}")


def pytest_configure(config: pytest.Config) -> None:
    gconv.module.AT_IMPORT = (
        sys.maxsize
    )  # threads of the runner, and what tests leave, change no path; see test_threads
    config.stash[START] = time.monotonic()
    gc.disable()  # until everything is collected: what is made then stays
    if importlib.util.find_spec("triton") is None:  # the one module that cannot be imported without an extra
        config.option.ignore = [*(config.option.ignore or []), "gconv/kernels/triton_code.py"]
    config.stash[STDERR] = os.dup(2)  # before pytest puts a file in its place
    if hasattr(faulthandler, "register"):  # a run that is stopped from outside says where it was
        faulthandler.register(signal.SIGTERM, config.stash[STDERR], all_threads=True, chain=True)
    config.pluginmanager.register(Limits())  # for docstring examples outside tests/ too
    if "PYTEST_XDIST_WORKER" in os.environ:  # one thread a worker, and in the processes that tests start
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads()))

    def connect(method):
        def guarded(self, address):
            if self.family in (socket.AF_INET, socket.AF_INET6):
                _check(address[0])
            return method(self, address)

        return guarded

    def getaddrinfo(host, *args, **kwargs):
        _check(host)
        return _getaddrinfo(host, *args, **kwargs)

    _offline.setattr(socket.socket, "connect", connect(_connect))
    _offline.setattr(socket.socket, "connect_ex", connect(_connect_ex))
    _offline.setattr(socket, "getaddrinfo", getaddrinfo)


class Limits:
    """Ends the process, with its tracebacks, where pytest-timeout cannot: in a wait in C, or with its alarm lost."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        marker, config = item.get_closest_marker("timeout"), item.config
        limit = float(marker.args[0] if marker else config.getoption("timeout") or config.getini("timeout") or 0)
        if limit:
            faulthandler.dump_traceback_later(2 * limit, file=config.stash[STDERR], exit=True)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--perturb-eigh",
        action="store_true",
        help="run every test with an eigensolver that picks other eigenvectors and signs, see tests/eigensolver.py",
    )
    parser.addoption(
        "--minutes",
        type=float,
        metavar="N",
        help="run tests in an order drawn with GCONV_TEST_SEED, and skip those that have not begun after N minutes",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = item.config.getoption("--minutes")
    if minutes is not None and time.monotonic() - item.config.stash[START] > 60 * minutes:
        pytest.skip(f"not begun within {minutes:g} minutes")


@pytest.fixture(autouse=True)
def eigensolver(seeded: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another machine's LAPACK might answer, under --perturb-eigh or GCONV_PERTURB_EIGH=1."""
    if request.config.getoption("--perturb-eigh") or os.environ.get("GCONV_PERTURB_EIGH") == "1":
        from eigensolver import perturbed

        monkeypatch.setattr("gconv.basis.functions._solver", perturbed)


def pytest_unconfigure(config: pytest.Config) -> None:
    if hasattr(faulthandler, "unregister"):
        faulthandler.unregister(signal.SIGTERM)
    os.close(config.stash[STDERR])
    _offline.undo()


def pytest_report_header(config: pytest.Config) -> str:
    return f"gconv: seed {SEED} (GCONV_TEST_SEED), data {os.environ.get('GCONV_DATA', 'none (GCONV_DATA)')}"


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Collector, obj: object) -> list[pytest.Item] | None:
    """Slow tests of which none is wanted, and none is named, are not made: thousands of items in every process."""
    config = collector.config
    if config.option.markexpr == "not slow" and not any("::" in arg for arg in config.args):
        marks = getattr(obj, "pytestmark", ())
        if isinstance(marks, list) and any(mark.name == "slow" for mark in marks):
            return []
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--minutes") is not None:
        random.Random(SEED).shuffle(items)
    drawn: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled") and not item.get_closest_marker("slow"):
            drawn.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for test, sets in drawn.items():
        (one_in,) = sets[0].get_closest_marker("sampled").args
        random.Random(f"{SEED} {test}").shuffle(sets)
        for item in sets[-(-len(sets) // one_in) :]:
            item.add_marker(pytest.mark.slow)
    if not os.environ.get("GCONV_DATA"):
        for item in items:
            if item.get_closest_marker("data"):
                item.add_marker(pytest.mark.skip(reason="needs the real data sets: set GCONV_DATA to their folder"))


def pytest_collection_finish() -> None:
    """What has been made until now is left out of every garbage collection: millions of objects, searched each time."""
    gc.freeze()
    gc.enable()


def global_state() -> dict[str, object]:
    """What torch holds for the whole process, and a test could leave to those after it."""
    return {
        "hooks on every module": bool(torch.nn.modules.module._has_any_global_hook()),
        "gradients": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "autocast": torch.is_autocast_enabled("cpu"),
    }


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    random.seed(SEED)
    np.random.seed(SEED)
    torch.default_generator.manual_seed(SEED)  # torch.manual_seed prints a traceback for CUDA, 10 times as slow
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(SEED)
    torch.set_default_dtype(torch.float32)  # in case an example of a docstring or a module's fixture left another
    before = global_state()
    yield
    torch.use_deterministic_algorithms(False)
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
    assert global_state() == before, "the test changed a global state of torch and did not restore it"


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def tol(dtype: torch.dtype) -> dict[str, float]:
    return TOL[dtype]


@pytest.fixture
def data_root() -> Path:
    """The folder of the real data sets."""
    root = os.environ.get("GCONV_DATA")
    if not root:
        pytest.skip("needs the real data sets: set GCONV_DATA to their folder")
    if not Path(root).is_dir():
        pytest.fail(f"GCONV_DATA={root} is not a folder")
    return Path(root)


@pytest.fixture(params=["torch", *native.LEVELS[: native.LEVEL + 1]])
def anywhere(request, monkeypatch):
    """Runs a test on each instruction set this machine has, and in pure torch."""
    if request.param == "torch":
        monkeypatch.setattr(native, "LIBRARY", None)
    else:
        monkeypatch.setattr(native, "LEVEL", native.LEVELS.index(request.param))


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """No search for docstring examples in tests/, where there are none: it would take seconds in every process."""
    return [found for found in (yield) if type(found).__name__ != "DoctestModule"]


@pytest.fixture(scope="module")
def keras():
    """The module, with the torch backend."""
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "torch":
        pytest.skip("Keras runs with another backend here")
    return keras
