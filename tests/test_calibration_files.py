"""Whatever a calibration file holds, and wherever it should be: a layer runs, and says once what is wrong."""

import json
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from limits import processes

from gconv import GConv, calibrate, rates
from gconv import plan as plan_module
from gconv.calibrate.__main__ import main
from gconv.operators import conv2d

ROOT = Path(rates.__file__).parents[1]
ENTRY = json.loads((ROOT / "gconv" / "rates.json").read_text())["threads"]["1"]
HUGE = "1" + "0" * 400


def file(threads="1", **curves):
    return json.dumps({"format": rates.FORMAT, "threads": {threads: ENTRY | {"curves": ENTRY["curves"] | curves}}})


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Plans and rates as at the start of a process, with a calibration at tmp_path / "c.json"."""
    monkeypatch.setattr(plan_module, "_PLANS", {})
    monkeypatch.setenv("GCONV_CALIBRATION", str(tmp_path / "c.json"))
    rates._read.cache_clear()
    yield tmp_path / "c.json"
    rates._read.cache_clear()


def a_layer_runs():
    layer = GConv(conv2d(1, 1, 3))
    assert layer(torch.zeros(1, 1, 5, 5)).shape == (1, 1, 3, 3)
    layer(torch.zeros(2, 1, 5, 5))


DAMAGED = {
    "not UTF-8": b"\xff\xfe{}",
    "no threads": file("0"),
    "negative threads": file("-3"),
    "threads with zeros": file("01"),
    "threads in words": file("two"),
    "too many threads": file(HUGE),
    "a number of 400 digits": file(fft=[[1, 7]]).replace("[[1, 7]]", f"[[1, {HUGE}]]"),
    "infinity": file(fft=[[1, float("inf")]]),
    "a word": file(fft=[[1, "7"]]),
    "true": file(fft=[[1, True]]),
    "sizes that fall": file(fft=[[2, 7], [1, 7]]),
    "no points": file(fft=[]),
    "a triple": file(fft=[[1, 2, 3]]),
    "a number for a curve": file(fft=3),
    "numbers that are far apart": file(fft=[[1, 1e-300], [2, 1e300]]),
    "deep brackets": "[" * 100_000 + "]" * 100_000,
    "deep braces": '{"threads": ' * 100_000,
    "a list": json.dumps({"format": rates.FORMAT, "threads": [1]}),
    "a list of rates": json.dumps({"format": rates.FORMAT, "threads": {"1": []}}),
    "an overhead that is no number": json.dumps(
        {"format": rates.FORMAT, "threads": {"1": ENTRY | {"overheads": {"dense": "x"}}}}
    ),
    "NUL bytes": b"\0" * 100,
    "another device": json.dumps({"format": rates.FORMAT, "threads": {"1": ENTRY}, "devices": {"tpu": ENTRY}}),
    "a device without rates": json.dumps({"format": rates.FORMAT, "threads": {"1": ENTRY}, "devices": {"cuda": {}}}),
    "nothing": "",
    "too large": " " * ((1 << 24) + 1),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_one_warning_and_the_built_in_rates(fresh, content):
    fresh.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.warns(UserWarning, match=r"cannot be used \(.+\), so plans use the built-in rates") as caught:
        a_layer_runs()
    assert len(caught) == 1 and len(str(caught[0].message)) < 600 and rates.rates().source == "defaults"


def test_a_special_file_is_one_warning(fresh):
    fresh.mkdir()
    with pytest.warns(UserWarning, match="it is not a file"):
        a_layer_runs()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_not_waited_for(fresh):
    os.mkfifo(fresh)
    with pytest.warns(UserWarning, match="it is not a file"):
        a_layer_runs()


@pytest.mark.parametrize("home", ["/dev/null", "/no/such/folder"])
def test_without_a_home_folder_layers_run(fresh, monkeypatch, home):
    monkeypatch.delenv("GCONV_CALIBRATION")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", home)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a_layer_runs()


def test_a_user_without_a_name_and_a_home(fresh, monkeypatch):
    def homeless(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    for name in ("GCONV_CALIBRATION", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert rates.path() is None
    a_layer_runs()
    monkeypatch.setattr(calibrate, "measure", lambda say, device: rates.DEFAULTS[1])
    with pytest.raises(
        SystemExit, match=r"cannot write the calibration: there is no home folder; GCONV_CALIBRATION=path"
    ):
        main([])
    monkeypatch.setenv("GCONV_CALIBRATION", "~/c.json")
    assert rates.path() == Path("~/c.json"), "there is nothing to put in place of ~"


def test_a_tilde_is_the_home_folder(fresh, monkeypatch):
    monkeypatch.setenv("HOME", str(fresh.parent))
    monkeypatch.setenv("GCONV_CALIBRATION", "~/c.json")
    assert rates.path() == fresh
    calibrate.store(rates.DEFAULTS[1])
    assert fresh.exists()


def _store(threads):
    torch.set_num_threads(threads)
    calibrate.store(rates.DEFAULTS[1])


def test_calibrations_stored_at_once_are_all_there(fresh):
    assert processes("fork", _store, [(n,) for n in range(1, 7)]) == [0] * 6
    assert sorted(rates.parse(json.loads(fresh.read_text()), "file")) == [1, 2, 3, 4, 5, 6]
    assert {path.name for path in fresh.parent.iterdir()} == {"c.json", "c.json.lock"}


def test_storing_keeps_what_is_sound_of_a_damaged_file(fresh):
    damaged = {"format": rates.FORMAT, "threads": {"3": ENTRY, "4": {}, "-1": ENTRY}}
    fresh.write_text(json.dumps(damaged))
    calibrate.store(rates.DEFAULTS[1])
    assert sorted(rates.parse(json.loads(fresh.read_text()), "file")) == sorted({3, torch.get_num_threads()})
    fresh.write_bytes(b"\xff")
    calibrate.store(rates.DEFAULTS[1])
    a_layer_runs()


def test_rates_of_a_gpu_and_of_the_cpu_are_stored_separately(fresh):
    calibrate.store(rates.DEFAULTS[1])
    slow = rates.Rates(rates.DEFAULTS[1].curves, {name: 9.0 for name in rates.DEFAULTS[1].overheads})
    calibrate.store(slow, "cuda:1")
    calibrate.store(rates.DEFAULTS[1])  # keeps it
    rates._read.cache_clear()
    assert set(rates.rates("cuda").overheads.values()) == {9.0}
    assert rates.rates().overheads == rates.rates("xpu").overheads == rates.DEFAULTS[1].overheads
    assert rates.price("dense", "", "", (), "cuda") == 9.0 > rates.price("dense", "", "", ())
    assert "rates from" in calibrate.table(rates.rates("cuda"), "cuda")


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("gpu", "Rates are measured for cpu, cuda, xpu, not for 'gpu'"),
        ("cpu:x", "The device 'cpu:x' cannot be used"),
        pytest.param(
            "cuda",
            "The device 'cuda' cannot be used",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_an_absent_device_is_refused_before_anything_is_measured(fresh, capsys, device, says):
    with pytest.raises(SystemExit) as end:
        main(["--device", device])
    assert end.value.code == 2 and says in capsys.readouterr().err and not fresh.exists()
    with pytest.raises(ValueError, match=says):
        calibrate.measure(device=device)


def test_a_device_s_queue_is_waited_for_before_the_clock_stops(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: waits.append(device.type))
    plan_module.take_turns({"a": lambda: None}, 1, 1e-9, torch.device("cuda"))
    assert waits == ["cuda"] * 4
    plan_module.take_turns({"a": lambda: None}, 1, 1e-9)
    assert len(waits) == 4


def test_a_failed_store_leaves_the_file_as_it_was(fresh, monkeypatch):
    calibrate.store(rates.DEFAULTS[1])
    before = fresh.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        calibrate.store(rates.DEFAULTS[1])
    assert fresh.read_bytes() == before and not list(fresh.parent.glob("*.tmp"))


RUN = """import torch, gconv
print(gconv.GConv(gconv.operators.conv2d(1, 1, 3))(torch.zeros(1, 1, 5, 5)).shape, gconv.__file__)"""


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["-OO"]], ids=["plain", "-OO"])
def test_gconv_runs_from_a_zip_archive(tmp_path, flags):
    archive = tmp_path / "gconv.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted((ROOT / "gconv").rglob("*")):
            if path.suffix in (".py", ".json", ".c", ".h"):
                packed.write(path, path.relative_to(ROOT))
    env = {**os.environ, "PYTHONPATH": str(archive), "HOME": "/dev/null"}
    command = [sys.executable, *flags, "-c", RUN]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "torch.Size([1, 1, 3, 3])" in done.stdout and "gconv.zip" in done.stdout


def test_what_another_version_wrote_is_not_kept_as_if_it_were_ours(fresh):
    """The same entries are kept in this format (the control), and dropped in another one, or in none."""
    for format_, kept in ((rates.FORMAT, {3}), (rates.FORMAT + 1, set()), (None, set())):
        fresh.write_text(json.dumps({"format": format_, "threads": {"3": ENTRY}, "devices": {"cuda": ENTRY}}))
        calibrate.store(rates.DEFAULTS[1])
        found = rates.parse(json.loads(fresh.read_text()), "file").keys() - {torch.get_num_threads()}
        assert found == kept | ({"cuda"} if kept else set())


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_permissions_of_a_calibration_follow_the_umask(fresh, mask, mode):
    before = os.umask(mask)
    try:
        calibrate.store(rates.DEFAULTS[1])
    finally:
        os.umask(before)
    assert fresh.stat().st_mode & 0o777 == mode


def test_a_file_that_may_not_be_read_is_not_replaced(fresh, monkeypatch):
    calibrate.store(rates.DEFAULTS[1])
    before = fresh.read_bytes()

    def refuse(where):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(calibrate, "read_bounded", refuse)
    with pytest.raises(PermissionError):
        calibrate.store(rates.DEFAULTS[1])
    assert fresh.read_bytes() == before


def test_nothing_is_measured_for_a_file_that_cannot_be_written(fresh, monkeypatch, capsys):
    measured = []
    monkeypatch.setattr(calibrate, "measure", lambda say, device: measured.append(1) or rates.DEFAULTS[1])
    file_as_folder = fresh.parent / "file"
    file_as_folder.write_text("")
    for place in ("/proc/nowhere/c.json", str(file_as_folder / "c.json"), str(fresh.parent)):
        monkeypatch.setenv("GCONV_CALIBRATION", place)
        with pytest.raises(SystemExit, match=f"cannot write {place}: .+; GCONV_CALIBRATION=path names another file"):
            main([])
    assert not measured
    monkeypatch.setenv("GCONV_CALIBRATION", str(fresh))
    main([])
    assert measured and "stored in" in capsys.readouterr().out


def test_what_was_measured_is_shown_even_if_it_cannot_be_stored(fresh, monkeypatch, capsys):
    monkeypatch.setattr(calibrate, "measure", lambda say, device: rates.DEFAULTS[1])
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(SystemExit, match="No space left"):
        main([])
    assert "rates from" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_an_interrupt_leaves_the_file_as_it_was(fresh, monkeypatch, name):
    calibrate.store(rates.DEFAULTS[1])
    before = fresh.read_bytes()
    monkeypatch.setattr(os, name, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        calibrate.store(rates.DEFAULTS[1])
    assert fresh.read_bytes() == before and {p.name for p in fresh.parent.iterdir()} == {"c.json", "c.json.lock"}


@pytest.mark.parametrize("low", [1e-30, 1e-12, 1.0, 1e12, 1e30])
@pytest.mark.parametrize("high", [1e-30, 1.0, 1e30])
def test_any_rates_that_a_file_may_hold_predict_a_time(fresh, low, high):
    """Between two points of a curve, however small: rounding to nine digits makes many of them 0 (the control)."""
    curve = (1e-30, low), (1e30, high)
    for size in (1e-29, 1.0, 64.0, 1e29):
        assert min(low, high) <= rates.at(curve, size) <= max(low, high)
    assert low > 1e-9 or round(low, 9) == 0.0
    fresh.write_text(file(**{kind: [list(point) for point in curve] for kind in ENTRY["curves"]}))
    a_layer_runs()
    assert rates.rates().source == str(fresh)


def test_help_names_the_file_and_the_threads(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0
    assert all(word in said for word in ("GCONV_CALIBRATION", "OMP_NUM_THREADS", "calibration.json", "a minute"))
