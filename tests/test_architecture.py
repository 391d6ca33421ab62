"""The shape of the library: imports go downwards, operators are descriptions, the import is light, the pins hold."""

import ast
import functools
import re
from pathlib import Path

import pytest
import torch
from limits import fresh

import gconv
from gconv import list_operators

ROOT = Path(__file__).parents[1]
parse = functools.cache(ast.parse)  # of the text
PACKAGE = ROOT / "gconv"

# Each package may import those before it and itself.
ORDER = [
    "help_first",
    "caches", "batched_gradients", "errors", "arguments", "reports", "rates", "kernels", "domains", "basis",
    "laplacian", "mixing", "call", "spec",
    "lowering", "plan", "linear", "binding", "inputs", "module", "minibatch", "operators", "blocks", "interop",
    "adapters", "description", "saving", "transfer", "analysis", "summary", "parallel", "external", "testing",
    "calibrate", "__main__",
]  # fmt: skip
# The import upwards, inside of a function: GConv.from_torch asks what it is given.
ALLOWED_UPWARDS = {("module", "interop")}
# Rooms that must not know each other although the order would let them.
FORBIDDEN = {
    "mixing": {"domains", "laplacian"},
    "basis": {"domains"},
    "lowering": {"domains", "laplacian", "spec", "module", "operators", "linear"},
    "plan": {"domains", "laplacian", "operators"},
    "linear": {"domains", "operators"},
    "binding": {"lowering", "plan", "linear"},
    "inputs": {"lowering", "plan", "linear", "binding", "kernels"},
    "module": {"operators"},
    "operators": {"lowering", "plan", "binding", "inputs", "module", "linear", "kernels"},
}


HEAVY = ("torch_geometric", "networkx", "scipy", "torch._inductor")


def room(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def imported_rooms(path):
    """The rooms that code (not doctests, not annotations under TYPE_CHECKING) imports."""
    found = set()
    for node in ast.walk(parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names if node.module == "gconv"]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("gconv.")}
    return found & set(ORDER)


# The circle of imports that stays: A + B, A @ B and A[rows, cols] are methods of Map, and what they return derives from
# Map. Functions in place of operators, or operators put onto the class from another file, would read worse.
CIRCLES = [["gconv.linear.algebra", "gconv.linear.base", "gconv.linear.member"]]


def imported_modules(text, modules):
    """The modules that code imports, at its beginning or inside of functions, without those for annotations alone."""
    found, nodes = set(), [parse(text)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in modules else node.module for name in named}
    return found & modules


def circles(graph):
    """The sets of more than one module, each of which imports all others of its set, perhaps by way of others."""
    reached = {}
    for start in graph:
        seen, todo = set(), [start]
        while todo:
            new = graph[todo.pop()] - seen
            seen |= new
            todo += new
        reached[start] = seen
    sets = {tuple(sorted({a} | {b for b in reached[a] if a in reached[b]})) for a in graph}
    return sorted([list(found) for found in sets if len(found) > 1])


def modules_of_gconv():
    names = {}
    for path in FILES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    graph = {name: imported_modules(text, set(names)) - {name} for name, text in names.items()}
    for own, above in ALLOWED_UPWARDS:
        graph[f"gconv.{own}"] = {m for m in graph[f"gconv.{own}"] if not m.startswith(f"gconv.{above}")}
    return graph


def test_no_modules_import_each_other():
    graph = modules_of_gconv()
    assert len(graph) > 100
    assert circles(graph) == CIRCLES
    graph["gconv.kernels.registry"] = graph["gconv.kernels.registry"] | {"gconv.kernels.sparse"}
    assert len(circles(graph)) == 2  # sparse imports registry, so that this is a circle, and it is found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    own = room(path)
    assert own in ORDER, f"{own} is a new room: say where it stands in ORDER"
    upwards = {r for r in imported_rooms(path) if ORDER.index(r) > ORDER.index(own) and (own, r) not in ALLOWED_UPWARDS}
    assert not upwards, f"{own} imports {sorted(upwards)}, which stand above it"
    assert not imported_rooms(path) & FORBIDDEN.get(own, set())


def test_the_planner_and_the_lowerings_name_no_operator():
    for path in [PACKAGE / "plan.py", *(PACKAGE / "lowering").glob("*.py")]:
        tree = parse(path.read_text())
        strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        named = strings & set(list_operators())
        assert not named, f"{path.name} knows the operators {named}"


def test_operators_are_descriptions():
    for path in (PACKAGE / "operators").glob("*.py"):
        for node in ast.walk(parse(path.read_text())):
            assert not (isinstance(node, ast.FunctionDef) and node.name in ("forward", "__call__")), (
                f"{path.name} runs something"
            )
            assert not (isinstance(node, ast.Attribute) and node.attr == "Module"), f"{path.name} makes a module"


def test_every_operator_is_exported_documented_and_cited():
    for name in list_operators():
        factory = getattr(gconv.operators, name)
        assert len(factory.__doc__.strip().splitlines()[0]) < 121 and ">>>" in factory.__doc__, name
        assert gconv.cite(name)
    assert sorted(gconv.operators.__all__) == list_operators()


def test_help_and_completion_show_what_users_call():
    names = set(gconv.__all__) - {"CacheInfo", "OperatorSpec", "interop", "blocks"}
    assert not [name for name in names if name not in gconv.__doc__], "help(gconv) names what users call"
    assert gconv.__doc__.index("GConv(") < gconv.__doc__.index("packages")
    assert set(dir(gconv)) == {*gconv.__all__, "testing", "__version__"}
    for module in (gconv.operators, gconv.analysis):
        assert dir(module) == sorted(module.__all__)


def test_import_is_light():
    """What torch itself loads is not ours to lighten."""
    code = f"""import sys, torch, warnings
before = set(sys.modules)
warnings.simplefilter("error")
import gconv
print(*(m for m in {HEAVY} if m in set(sys.modules) - before))"""
    done = fresh(code)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.split(), f"import gconv loads {done.stdout}"


def test_torch_is_the_pinned_one():
    (pin,) = re.findall(r"^torch==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert torch.__version__.split("+")[0] == pin


SPAWNS = ("run", "call", "check_call", "check_output")


def waits_without_end(tree):
    """Calls that wait for a thread or a process and name no limit; forks and pools, which tests/limits.py has."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name, named = node.func.attr, {keyword.arg for keyword in node.keywords}
            on = getattr(node.func.value, "id", "")
            if (
                (name in ("join", "wait") and not node.args and "timeout" not in named)
                or (name == "communicate" and "timeout" not in named)
                or (on == "subprocess" and name in SPAWNS and "timeout" not in named)
                or (on == "os" and name in ("fork", "waitpid", "wait"))
            ):  # fmt: skip
                found.append(f"line {node.lineno}: {ast.unparse(node.func)}")
        elif isinstance(node, ast.Name | ast.Attribute) and getattr(node, "id", getattr(node, "attr", "")) in (
            "ProcessPoolExecutor", "ThreadPoolExecutor", "Pool", "Thread",
        ):  # fmt: skip
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def test_no_test_waits_without_end():
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if path.name != "limits.py":
            assert not waits_without_end(parse(path.read_text())), path.name


@pytest.mark.parametrize(
    "code", ["thread.join()", "subprocess.run(command, check=True)", "os.fork()", "p.communicate()", "Thread(target=f)"]
)
def test_a_wait_without_end_is_found(code):
    assert len(waits_without_end(parse(code))) == 1
    assert not waits_without_end(parse("a.join(b); thread.join(5); subprocess.run(c, timeout=5)"))


# Experiments: a family may import the harness and itself; report and the commands at the top may import all of them,
# and commands each other.
FAMILIES = {path.name for path in (ROOT / "experiments").iterdir() if (path / "__init__.py").exists()}
COMMANDS = {path.stem for path in (ROOT / "experiments").glob("[a-z]*.py")}
ABOVE = {
    "report": FAMILIES,
    "gpu": {"images", "speed"},
    "large": {"text"},
    **dict.fromkeys(COMMANDS, FAMILIES | COMMANDS),
}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / "experiments").rglob("[a-z]*.py")
}


def imported_experiments(path):
    """The modules of experiments that a file imports, in functions too."""
    found = set()
    for node in ast.walk(parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("experiments"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found & MODULES.keys()


def test_experiments_are_families_on_one_harness():
    for name, path in MODULES.items():
        own = name.split(".")[1]
        for other in imported_experiments(path):
            assert other.split(".")[1] in {own, "harness", *ABOVE.get(own, ())}, f"{name} imports {other}"


def test_experiments_import_in_no_circle():
    needs = {name: imported_experiments(path) - {name} for name, path in MODULES.items()}
    while free := {name for name in needs if not needs[name] & needs.keys()}:
        needs = {name: others for name, others in needs.items() if name not in free}
    assert not needs, f"a circle among {sorted(needs)}"


def asks_for_types(tree):
    """Where code asks what something is: isinstance, hasattr, getattr, `type(x) is`, class patterns."""
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    compared = [n.left for n in ast.walk(tree) if isinstance(n, ast.Compare)]
    patterns = [n for n in ast.walk(tree) if isinstance(n, ast.MatchClass)]
    named = [n for n in calls if n.func.id in ("isinstance", "hasattr", "getattr")]
    return len(named) + len(patterns) + sum(n.func.id == "type" and n in compared for n in calls)


def test_forms_and_mixings_answer_for_themselves():
    """The planner and the lowerings ask a form what it does, and seldom what it is."""
    files = [PACKAGE / "plan.py", *(PACKAGE / "lowering").glob("*.py")]
    found = {path.name: asks_for_types(parse(path.read_text())) for path in files}
    assert sum(found.values()) <= 25, found
    assert asks_for_types(parse("isinstance(S, Taps) or type(S) is Taps or hasattr(S, 'each')")) == 3
