"""What gconv keeps between calls: all of it is listed, bounded and emptied, and nothing changes but the time."""

import ast
import importlib
import importlib.util
import pkgutil
import threading
from pathlib import Path

import pytest
import torch
from limits import joined, started

import gconv
from gconv import GConv, Graph, cache_info, caches, clear_cache, constant
from gconv.kernels import memory
from gconv.operators import cheb, conv2d, gcn, max_pool2d, sage, upsample
from gconv.operators.shapes import messy
from gconv.testing import assert_close

PACKAGE = Path(gconv.__file__).parent
# What is no cache: tables that registration fills, and names by which compiled functions find their structures.
TABLES = {("spec", "_OPERATORS"), ("testing.case", "LAWS"), ("caches", "_ENTRIES")}
WRITES = {"add", "append", "appendleft", "clear", "extend", "insert", "pop", "popleft", "setdefault", "update"}


def modules():
    left_out = {"gconv.calibrate.__main__"}
    if importlib.util.find_spec("triton") is None:
        left_out.add("gconv.kernels.triton_code")
    found = pkgutil.walk_packages([str(PACKAGE)], "gconv.")
    return [importlib.import_module(m.name) for m in found if "._csr" not in m.name and m.name not in left_out]


def written(tree):
    """Names of the module that functions in it write into."""
    names = set()
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.Lambda):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
                names.add(ast.unparse(node.value))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WRITES:
                names.add(ast.unparse(node.func.value))
    return names


def unlisted(module, source):
    """What a module keeps in itself that no entry of the list holds."""
    listed = {id(entry.held) for entry in caches._ENTRIES.values()}
    own, names = module.__name__.removeprefix("gconv."), written(ast.parse(source))
    found = []
    for name, value in vars(module).items():
        if isinstance(value, type) or id(value) in listed or (own, name) in TABLES:
            continue
        cached = hasattr(value, "cache_clear") and value.__module__ == module.__name__
        if cached or "Weak" in type(value).__name__ or (name in names and hasattr(value, "__len__")):
            found.append(name)
    return found


def test_every_cache_of_a_module_is_listed():
    for module in modules():
        assert not unlisted(module, Path(module.__file__).read_text()), module.__name__


@pytest.mark.parametrize(
    "source",
    [
        "KEPT = {}\ndef f(x):\n    KEPT[x] = x\n",
        "KEPT = []\ndef f(x):\n    KEPT.append(x)\n",
        "from functools import lru_cache\n@lru_cache\ndef f(x):\n    return x\n",
        "from weakref import WeakKeyDictionary\nKEPT = WeakKeyDictionary()\n",
    ],
)
def test_a_cache_that_is_not_listed_is_found(source):
    module = type(gconv)("gconv.made_up")
    exec(source, vars(module))
    assert unlisted(module, source)


CASES = [
    (gcn(2, 3), messy, (6, 2)),
    (cheb(2, 3, k=3), messy, (6, 2)),
    (sage(2, 3), lambda: torch.tensor([[0, 1, 2], [1, 2, 0]]), (6, 2)),
    (conv2d(2, 3, 3), lambda: None, (1, 2, 6, 5)),
    (max_pool2d(2), lambda: None, (1, 2, 6, 5)),
    (upsample(scale_factor=2, mode="bilinear"), lambda: None, (1, 2, 3, 5)),
]


@pytest.mark.parametrize(("spec", "domain", "shape"), CASES, ids=lambda v: v.name if hasattr(v, "name") else "")
def test_layers_give_the_same_after_clearing(spec, domain, shape):
    layer, place, x = GConv(spec, dtype=torch.float64), domain(), torch.randn(shape, dtype=torch.float64)
    want = layer(x, place).detach()
    clear_cache()
    assert_close("again", layer(x, place).detach(), want, 1e-12)
    clear_cache()
    left = {name: info.entries for name, info in cache_info().items() if info.entries}
    assert set(left) <= {"classes of errors", "classes of converted layers", "grid structures of compiled functions",
                         "constant signals and their S x"}  # fmt: skip


def test_what_is_kept_is_counted_and_dropped():
    clear_cache()
    n = 1000
    graph = Graph(torch.stack([torch.arange(n), (torch.arange(n) + 1) % n]), n)
    GConv(gcn(4, 4))(torch.randn(n, 4), graph)
    derived = cache_info()["derived from graphs"]
    assert derived.entries >= 2 and 16 * n <= derived.bytes <= 400 * n  # indices and values of the adjacency
    own = graph.edge_index.untyped_storage().nbytes()
    clear_cache()
    assert cache_info()["derived from graphs"].bytes < own  # the graph's own edges do not count
    x = constant(torch.randn(n, 4))
    GConv(gcn(4, 4))(x, graph)
    clear_cache()
    info = cache_info()["constant signals and their S x"]
    assert info.entries >= 1 and gconv.kernels.known(x) is not None


def test_caches_by_value_are_bounded_and_drop_the_oldest():
    cache = caches.Cache("of a test", 3)
    try:
        for n in range(10):
            cache[n] = torch.zeros(n)
        assert list(cache) == [7, 8, 9] and cache_info()["of a test"] == (3, 4 * (7 + 8 + 9), "3 entries")
        cache[7] = torch.zeros(1)
        assert list(cache) == [7, 8, 9]
    finally:
        del caches._ENTRIES["of a test"]
    for size in range(3, 80):
        GConv(conv2d(1, 1, 3))(torch.zeros(1, 1, size, 3))
    assert cache_info()["structures on grids"].entries <= 64


def test_free_buffers_are_listed_and_released():
    memory.release()
    large = memory.empty(torch.ones(1), (memory.MIN_BYTES_POOLED,))
    pooled = large.untyped_storage().nbytes() == 4 * memory.MIN_BYTES_POOLED and memory._ADVICE is not None
    del large
    if pooled:
        assert cache_info()["free buffers"].bytes >= 4 * memory.MIN_BYTES_POOLED
    clear_cache()
    assert cache_info()["free buffers"] == (0, 0, "512 MiB")


def test_layers_run_while_caches_are_emptied():
    layers = [(GConv(spec), domain(), torch.ones(shape)) for spec, domain, shape in CASES]
    want = [layer(x, place).detach() for layer, place, x in layers]
    stop, failed = threading.Event(), []

    def run():
        while not stop.is_set():
            for (layer, place, x), right in zip(layers, want, strict=True):
                try:
                    assert_close("shared", layer(x, place).detach(), right, 1e-6)
                except Exception as error:
                    failed.append(error)

    threads = [started(run) for _ in range(2)]
    for _ in range(50):
        clear_cache()
        cache_info()
    stop.set()
    joined(threads)
    assert not failed


def test_listing_and_clearing_go_on_while_threads_add_graphs_and_entries():
    """What another thread adds in between is added here by the callbacks, at every step.

    Iterating the weak dictionaries themselves fails (negative control).
    """
    things = []

    class Thing:
        def __init__(self):
            self.made, self.weak = {1: torch.ones(3)}, caches.OwnWeak()
            things.append(self)

    def added(thing):
        for _ in range(40 if len(things) < 100 else 0):
            held.add(Thing())
        return [thing.made, thing.weak]

    held = caches.Holders("of a test", "things", added)
    try:
        first = Thing()
        first.weak[things[0]] = torch.ones(5)
        held.add(first)
        assert cache_info()["of a test"].entries >= 2 and cache_info()["of a test"].bytes >= 4 * 8
        clear_cache()
        assert not first.made and not first.weak
        things[1:] = []
        with pytest.raises(RuntimeError, match="changed size during iteration"):
            for thing in held._live.values():
                added(thing)
    finally:
        del caches._ENTRIES["of a test"]


def test_a_cache_is_emptied_while_another_thread_replaces_its_oldest_entry(monkeypatch):
    """`clear` waits for the lock that replacing holds: the entry that is evicted cannot vanish in between."""
    cache = caches.Cache("of a test", 1)
    try:
        cache[0] = 0
        with caches._lock:
            thread = started(cache.clear)
            thread.join(0.2)
            assert list(cache) == [0]
        joined([thread])
        assert not cache
        with caches._lock:
            thread = started(dict.clear, cache)  # negative control
            joined([thread])
            cache.pop(0, None)
        assert not cache
    finally:
        del caches._ENTRIES["of a test"]


def test_modules_may_register_caches_while_they_are_listed():
    def entries():
        caches.register(f"late {len(caches._ENTRIES)}", None, lambda: 0, tuple, lambda: None, "none")
        return 0

    known = set(caches._ENTRIES)
    caches.register("of a test", None, entries, tuple, lambda: None, "none")
    try:
        assert cache_info()["of a test"].entries == 0
    finally:
        for name in set(caches._ENTRIES) - known:
            del caches._ENTRIES[name]
