"""Numbers that no run can use, in every option of every command: a message that names the option, and no work."""

import importlib
import importlib.util
import re
import signal

import pytest
from limits import COMMANDS, ROOT

from experiments.harness import sweeps
from experiments.harness.experiment import naming_the_root
from experiments.harness.store import Results, cached, save_cached

NEEDED = {
    "experiments.gpu.__main__": ["--part", "tests", "--device", "cpu", "--tiny", "--out={folder}"],
    "experiments.gpu.run": ["--part", "tests", "--device", "cpu", "--tiny", "--out={folder}"],
    "experiments.detection.predict": [str(ROOT / "experiments" / "figures" / "bert.png")],
    "experiments.large_graphs.sign": ["--out={folder}"],
}


@pytest.fixture
def no_work():
    """Ends a command that does not refuse its options."""

    def ring(*_):
        raise TimeoutError("the command has begun to work")

    before = signal.signal(signal.SIGALRM, ring)
    yield lambda seconds: signal.alarm(seconds)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refusal(main, argv, capsys):
    """The message with which a command ends. Raises: whatever else the command does."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    code, said = ended.value.code, capsys.readouterr()
    assert (isinstance(code, str) and code.startswith("error: ")) or code == 2, f"{argv}: {code}"
    return f"{code} {said.out} {said.err}"


@pytest.mark.sampled(12)
@pytest.mark.parametrize("name", COMMANDS)
def test_numbers_that_no_run_can_use_are_refused(name, tmp_path, capsys, no_work, monkeypatch):
    main = importlib.import_module(name).main
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["--help"])
    kinds = dict(re.findall(r"(--[\w-]+) (?:\{None\}\|)?(INT|FLOAT)\b", capsys.readouterr().out))
    needed = [word.format(folder=tmp_path / "out") for word in NEEDED.get(name, [])]
    for option, kind in kinds.items():
        for value in ["-7"] if kind == "INT" else ["nan", "-inf"]:
            no_work(60)
            said = refusal(main, [*needed, f"{option}={value}"], capsys)
            no_work(0)
            words = re.sub(r"[\s│]+", " ", said).replace("_", "-")
            assert re.search(rf"(?<![a-z]){option[2:]}(?![a-z])", words), said
            assert "Traceback" not in said
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# -- errors of a run -----------------------------------------------------------------------------------------------


def module(tmp_path, text):
    """A module of a run, as if it were one of this repository."""
    path = tmp_path / "toy_run.py"
    path.write_text(
        f"from dataclasses import dataclass\n\n@dataclass(frozen=True)\nclass Config:\n    seed: int = 0\n{text}"
    )
    found = importlib.util.spec_from_file_location("toy_run", path)
    made = importlib.util.module_from_spec(found)
    found.loader.exec_module(made)
    return made


@pytest.mark.parametrize(
    ("body", "says", "ends", "traceback"),
    [
        ("raise ValueError('there are 3 images, not 4')", "there are 3 images, not 4", True, False),
        ("raise ArithmeticError('the loss became nan: lower --lr')", "lower --lr", False, False),
        ("import torch; torch.empty(10**15)", "there is not enough memory for this run: ", False, False),
        ("import numpy; numpy.empty(10**15)", "there is not enough memory for this run: ", False, False),
        ("int('four')", "invalid literal", False, True),  # a mistake of the program
        ("raise TypeError('no')", "TypeError: no", False, True),
    ],
)
def test_an_error_that_a_run_states_is_one_sentence(body, says, ends, traceback, tmp_path, capsys, monkeypatch):
    made = module(tmp_path, f"\ndef run(config):\n    {body}\n")
    monkeypatch.setitem(importlib.sys.modules, "toy_run", made)
    monkeypatch.setattr(sweeps, "ROOT", tmp_path)
    monkeypatch.setattr(sweeps, "code", lambda *_: {})
    with pytest.raises(SystemExit) as ended:
        sweeps.sweep([made.Config(0), made.Config(1)], made.run, Results(tmp_path / "rows"), experiment="toy")
    said = f"{ended.value.code}\n{capsys.readouterr().err}"
    assert says in said and ("Traceback" in said) == traceback
    assert ("2 of 2 runs failed" in said) != ends


def test_a_message_on_data_names_the_option_of_the_root(tmp_path):
    said = naming_the_root(f"there is no {tmp_path}/a.gz", tmp_path)
    assert "--data-root" in said and said.count(str(tmp_path)) == 2
    for kept in (f"{tmp_path} has no file: point --data-root elsewhere", "pip install the weights"):
        assert naming_the_root(kept, tmp_path) == kept


@pytest.mark.parametrize("damage", [b"", b"no tensor", None])
def test_a_damaged_cache_is_not_used(damage, tmp_path):
    import torch

    path = tmp_path / "new" / "features.pt"
    assert cached(path) is None
    save_cached(path, torch.arange(3))
    assert torch.equal(cached(path), torch.arange(3))
    path.write_bytes(path.read_bytes()[:-40] if damage is None else damage)
    with pytest.warns(UserWarning, match="is not used"):
        assert cached(path) is None
    with pytest.warns(UserWarning, match="cannot be written"):
        save_cached(path / "below a file", torch.arange(3))
