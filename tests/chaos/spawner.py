"""A process that has everything imported and forks brokers: each begins within milliseconds, so many may be killed.

For every line on its standard input, [flags by name, path of the log], it answers `began PID`, and later `ended PID CODE`.
What a child runs is what `tidelog broker` runs.
"""

import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from tidelog.server.process import run
from tidelog.server.settings import load_settings


def main(play: Callable[[dict[str, Any], str], None]) -> None:
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    buffer = b""
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            reap()
        if 0 in ready:
            more = os.read(0, 65536)
            if not more:
                return
            *lines, buffer = (buffer + more).split(b"\n")
            for line in lines:
                flags, log = json.loads(line)
                child = os.fork()
                if child == 0:
                    play(flags, log)
                say(f"began {child}")


def reap() -> None:
    while True:
        try:
            child, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if child == 0:
            return
        say(f"ended {child} {os.waitstatus_to_exitcode(status)}")


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def play(flags: dict[str, Any], log: str) -> None:
    """Be a broker."""
    play_as(lambda: run(load_settings(flags=flags, config_file=None, environ=os.environ).settings), log)


def play_as(program: Callable[[], int], log: str) -> None:
    """Be a program whose output goes to a file, and end with its exit code."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for target, file, mode in ((0, os.devnull, os.O_RDONLY), (1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)):
        os.dup2(os.open(file, mode, 0o600), target)
    os.dup2(1, 2)
    code = 1
    try:
        code = program()
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main(play)
