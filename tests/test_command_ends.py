"""Commands that are interrupted, or whose output nobody reads: no traceback, and the usual status."""

import os
import signal
import subprocess
import sys

import pytest
from limits import ROOT

import gconv_command

COMMANDS = [["gconv", "operators"], ["datasets"], ["experiments.sweep", "--help"]]
PREPARED = "import gconv_command, sys; gconv_command.end_in_one_line(); "


def started(words, **options):
    """A process that SIGINT ends, also if these tests run in the background, where it may be ignored."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"} | options.pop("env", {})
    options |= {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    return subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


def unread(words, unbuffered):
    """The status and the errors of a process whose output is a closed pipe."""
    read, write = os.pipe()
    os.close(read)
    process = started(words, stdout=write, env={"PYTHONUNBUFFERED": "1"} if unbuffered else {})
    os.close(write)
    return process.communicate(timeout=110)[1], process.returncode


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_closed_pipe_is_not_an_error(command):
    assert unread(["-m", *command], True) == ("", gconv_command.CLOSED_PIPE)


@pytest.mark.parametrize("unbuffered", [True, False])
def test_buffered_output_that_nobody_reads_is_dropped(unbuffered):
    errors, status = unread(["-c", PREPARED + "print('text')"], unbuffered)
    assert errors == "" and status in (0, gconv_command.CLOSED_PIPE)
    assert "BrokenPipeError" in unread(["-c", "print('text')"], unbuffered)[0]


def test_another_broken_pipe_is_reported():
    process = started(["-c", PREPARED + "raise BrokenPipeError('of a worker')"], stdout=subprocess.PIPE)
    assert "BrokenPipeError: of a worker" in process.communicate(timeout=110)[1] and process.returncode == 1


@pytest.mark.parametrize("command", [["gconv"], ["datasets", "cora"], ["experiments.sweep"]], ids=" ".join)
def test_an_interrupt_prints_one_word(command, tmp_path):
    """The interrupt arrives while torch is imported; a module before it on the path sends it."""
    (tmp_path / "torch.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    paths = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = started(["-m", *command], stdout=subprocess.PIPE, env={"PYTHONPATH": paths})
    out, errors = process.communicate(timeout=110)
    assert (out, errors, process.returncode) == ("", "stopped\n", -signal.SIGINT)


def test_a_command_of_a_user_keeps_its_hooks(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("import gconv\n")
    (tmp_path / "package" / "train.py").write_text("import sys\nprint(sys.excepthook is sys.__excepthook__)\n")
    paths = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = started(["-m", "package.train"], stdout=subprocess.PIPE, env={"PYTHONPATH": paths})
    assert process.communicate(timeout=110) == ("True\n", "")


def test_a_full_disk_is_an_error_with_a_message():
    with open("/dev/full", "w") as full:
        process = started(["-m", "datasets"], stdout=full, env={"PYTHONUNBUFFERED": "1"})
        assert process.communicate(timeout=110)[1] == "error: No space left on device\n" and process.returncode == 1


def test_errors_still_have_a_traceback():
    process = started(["-c", PREPARED + "1 / 0"], stdout=subprocess.PIPE)
    assert "Traceback" in process.communicate(timeout=110)[1] and process.returncode == 1


def test_characters_that_the_output_lacks_are_escaped():
    text = "print('\\ud800 \\u72d7')"
    process = started(["-c", PREPARED + text], stdout=subprocess.PIPE, env={"PYTHONIOENCODING": "ascii"})
    assert process.communicate(timeout=110) == ("\\ud800 \\u72d7\n", "") and process.returncode == 0
    process = started(["-c", text], stdout=subprocess.PIPE, env={"PYTHONIOENCODING": "ascii"})
    assert "UnicodeEncodeError" in process.communicate(timeout=110)[1]
