"""Waits that end: for threads, forks and processes that a test starts, none of which may outlive it."""

import atexit
import contextlib
import json
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

LIMIT = 500.0  # seconds, for a machine that is busy with other things; below pytest's limit of a test
ROOT = Path(__file__).parents[1]
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "experiments").rglob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)
"""The modules of experiments that are run as commands."""


def started(run: Callable[..., object], *arguments: object) -> threading.Thread:
    """A thread that a process does not wait for when it ends."""
    thread = threading.Thread(target=run, args=arguments, daemon=True)
    thread.start()
    return thread


def joined(threads: Sequence[threading.Thread], limit: float = LIMIT) -> None:
    """Wait for threads.

    Raises:
        TimeoutError: if one of them runs after `limit` seconds.
    """
    end = time.monotonic() + limit
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        raise TimeoutError(f"a thread still runs after {limit:.0f} s")


def forked(run: Callable[[], int], limit: float = LIMIT) -> int:
    """The exit status of `run` in a fork of this process; the fork is killed after `limit` seconds."""
    child = os.fork()
    if not child:
        try:
            code = run()
        except BaseException:
            code = 99
        os._exit(code)
    end, ended = time.monotonic() + limit, 0
    try:
        while not ended and time.monotonic() < end:
            ended, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0 if ended else 0.005)
    finally:
        if not ended:
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status)


def processes(method: str, run: Callable[..., object], arguments: Sequence[tuple], limit: float = LIMIT) -> list[int]:
    """The exit statuses of `run(*arguments[0])`, `run(*arguments[1])`, ... at once, killed after `limit` seconds."""
    context, end = multiprocessing.get_context(method), time.monotonic() + limit
    children = [context.Process(target=run, args=given, daemon=True) for given in arguments]
    try:
        for child in children:
            child.start()
        for child in children:
            child.join(max(0.0, end - time.monotonic()))
    finally:
        for child in children:
            if child.pid is not None and child.exitcode is None:
                child.kill()
                child.join(10)
    return [child.exitcode for child in children]


SERVER = """
import json, os, socket, sys, traceback
import torch

link = socket.socket(fileno=int(sys.argv[1]))
while True:
    text, pipes, _, _ = socket.recv_fds(link, 1 << 16, 2)
    while text and not text.endswith(b"\\n"):
        text += link.recv(1 << 16)
    if not text:
        os._exit(0)
    child = os.fork()
    if not child:
        break
    for pipe in pipes:
        os.close(pipe)
    link.sendall(b"%d\\n" % child)
    link.sendall(b"%d\\n" % os.waitpid(child, 0)[1])

link.close()
os.setsid()
for number, pipe in enumerate((os.open(os.devnull, os.O_RDONLY), *pipes)):
    os.dup2(pipe, number)
    os.close(pipe)
task = json.loads(text)
os.chdir(task["cwd"])
os.environ.clear()
os.environ.update(task["env"])
sys.argv[1:] = task["arguments"]
status = 0
try:
    exec(compile(task["code"], "<string>", "exec"), {"__name__": "__main__"})
except SystemExit as end:
    status = end.code if isinstance(end.code, int) else int(bool(end.code))
    if isinstance(end.code, str):
        print(end.code, file=sys.stderr)
except BaseException:
    traceback.print_exc()
    status = 1
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
"""
_servers: dict[int, socket.socket] = {}


def _server() -> socket.socket:
    """The connection to this process's server, a new interpreter with torch, which forks."""
    if os.getpid() not in _servers:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-c", SERVER, str(theirs.fileno())]
        process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()])
        theirs.close()
        _servers[os.getpid()] = ours

        def stop() -> None:
            ours.close()
            process.wait(10)

        atexit.register(stop)
    return _servers[os.getpid()]


class Fresh:
    """A program that begins as `python -c code` does once torch is imported, without the seconds that this takes.

    It runs in a fork of an interpreter that has imported torch and nothing else, in a session of its own. One at a
    time: `finish` comes before the next one.
    """

    def __init__(self, code: str, *arguments: str, cwd: Path = ROOT, env: Mapping[str, str] = os.environ) -> None:
        task = {"code": code, "arguments": arguments, "cwd": str(cwd), "env": dict(env)}
        self.link, self.done, pipes = _server(), None, [os.pipe() for _ in range(2)]
        self.read = {ours: bytearray() for ours, _ in pipes}
        socket.send_fds(self.link, [json.dumps(task).encode() + b"\n"], [theirs for _, theirs in pipes])
        for _, theirs in pipes:
            os.close(theirs)
        self.pid = self._number(LIMIT)

    def _number(self, limit: float) -> int:
        self.link.settimeout(limit)
        text = b""
        while not text.endswith(b"\n"):
            if not (more := self.link.recv(1)):
                raise ChildProcessError("the interpreter that forks has ended")
            text += more
        return int(text)

    def running(self) -> bool:
        return self.done is None and not select.select([self.link], [], [], 0)[0]

    def kill(self) -> None:
        """All of its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def finish(self, limit: float = LIMIT) -> subprocess.CompletedProcess[str]:
        """What it printed and its exit status, once it and all that hold its pipes have ended."""
        end, open_ = time.monotonic() + limit, [] if self.done else list(self.read)
        while open_:
            ready = select.select(open_, [], [], max(0.0, end - time.monotonic()))[0]
            if not ready:
                self.kill()
                raise TimeoutError(f"a process still runs after {limit:.0f} s")
            for pipe in ready:
                self.read[pipe] += (more := os.read(pipe, 1 << 16))
                if not more:
                    os.close(pipe)
                    open_.remove(pipe)
        if self.done is None:
            out, err = (text.decode() for text in self.read.values())
            code = os.waitstatus_to_exitcode(self._number(max(1.0, end - time.monotonic())))
            self.done = subprocess.CompletedProcess("fresh", code, out, err)
        return self.done


def fresh(code: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run([sys.executable, "-c", code, *arguments])`, see `Fresh`."""
    return Fresh(code, *arguments, cwd=cwd).finish()
