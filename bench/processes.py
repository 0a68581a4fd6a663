"""Runs programs for a bounded time and tells what they cost: seconds, processor time, memory.

The kernel's own account of an ended child (`wait4`) has its processor time exactly. Its `ru_maxrss` is of no use: it
begins at what the parent had when it started the child. The kernel's own peak (`VmHWM`) is read instead, again and
again while the child runs, so that only what it takes in its last moments can be missed. The walsender, which is
nobody's child here, is looked at while it runs too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from measurement import Incomplete

# Long enough for any single step of `--full`, short enough that a hanging one ends the same day.
LONGEST_RUN = 900.0
POLL = 0.02
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Ended:
    """How a program ended and what it used."""

    status: int
    began: float
    ended: float
    processor_seconds: float
    peak_memory: int

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Program:
    """A child process in a group of its own, with its output in a file."""

    def __init__(self, command: Sequence[str | Path], log: Path, **options) -> None:
        self.name = Path(command[0]).name
        self.log = log
        self.began = time.time()
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                **options,
            )
        self._ended: Ended | None = None
        self._peak_memory = 0

    @property
    def pid(self) -> int:
        return self._child.pid

    def poll(self) -> Ended | None:
        if self._ended is None:
            self._peak_memory = max(self._peak_memory, peak_memory_of(self.pid))
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid != 0:
                self._keep(status, usage)
        return self._ended

    def wait(self, limit: float = LONGEST_RUN, meanwhile: Callable[[], None] = lambda: None) -> Ended:
        """Until it ends, or is ended; `meanwhile` is called every few hundredths of a second."""
        deadline = time.monotonic() + limit
        try:
            while (ended := self.poll()) is None:
                if time.monotonic() > deadline:
                    raise Incomplete(f"{self.name} did not end within {limit:.0f} s\n{self.tail()}")
                meanwhile()
                time.sleep(POLL)
        finally:
            self.kill()
        return ended

    def finish(self, limit: float = LONGEST_RUN, meanwhile: Callable[[], None] = lambda: None) -> Ended:
        """As `wait`, and it must have succeeded."""
        ended = self.wait(limit, meanwhile)
        if ended.status != 0:
            raise Incomplete(f"{self.name} ended with {ended.status}\n{self.tail()}")
        return ended

    def stop(self, how: signal.Signals = signal.SIGTERM, limit: float = 60.0) -> Ended:
        if self.poll() is None:
            os.kill(self.pid, how)
        return self.wait(limit)

    def kill(self) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            _, status, usage = os.wait4(self.pid, 0)
            self._keep(status, usage)

    def tail(self, lines: int = 12) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _keep(self, status: int, usage) -> None:
        self._child.returncode = os.waitstatus_to_exitcode(status)
        self._ended = Ended(
            status=self._child.returncode,
            began=self.began,
            ended=time.time(),
            processor_seconds=usage.ru_utime + usage.ru_stime,
            peak_memory=self._peak_memory,
        )


class ProcessorTime:
    """What a process that is not our child has used, as last seen before it went."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def look_at(self, pid: int | None) -> None:
        if pid is None:
            return
        with suppress(OSError, ValueError, IndexError):
            # The name in parentheses may hold anything, so the fields are counted from behind it.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            self.seconds = max(self.seconds, (int(fields[11]) + int(fields[12])) / CLOCK_TICKS)


def peak_memory_of(pid: int) -> int:
    """The most resident memory a process has had so far, in bytes; 0 once it has ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def wait_for(what: str, condition: Callable[[], bool], limit: float, pause: float = POLL) -> None:
    """Until the condition holds, looked at again and again."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            raise Incomplete(f"waited {limit:.0f} s for {what}")
        time.sleep(pause)
