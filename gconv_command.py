"""The command `gconv`: the file gconv/__main__.py, run without importing gconv first, so that --help needs no torch.

`end_in_one_line` is for all commands of this repository; the packages call it when Python runs one of their modules
with -m, before torch is imported.
"""

import atexit
import errno
import io
import os
import runpy
import select
import sys
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

CLOSED_PIPE = 141  # the status of a process that is ended by SIGPIPE


def main() -> None:
    """Command line."""
    end_in_one_line()
    found = find_spec("gconv")
    assert found is not None and found.origin is not None
    runpy.run_path(str(Path(found.origin).with_name("__main__.py")), run_name="__main__")


def end_in_one_line() -> None:
    """No traceback if the disk is full, the user presses Ctrl-C, or closes the pipe of the output (`| head -1`).

    Ctrl-C prints one word, and the process ends by SIGINT (130 in a shell). Characters that the encoding of the output
    lacks are written as escapes.
    """
    sys.excepthook = _end
    atexit.register(_flush)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
    elif issubclass(kind, BrokenPipeError) and _nobody_reads():
        raise SystemExit(CLOSED_PIPE)
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        print(f"error: {error.strerror}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _nobody_reads() -> bool:
    """Whether the standard output is a pipe that its reader has closed."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(1, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _flush() -> None:
    """Write what is buffered; what nobody reads is dropped, so that Python does not report it when it ends."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except (OSError, ValueError):  # Python reports those
        pass
