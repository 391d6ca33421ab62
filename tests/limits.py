"""Waits that end: for threads, forks and processes that a test starts, none of which may outlive it."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence

LIMIT = 100.0  # seconds; below pytest's limit of a test


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
