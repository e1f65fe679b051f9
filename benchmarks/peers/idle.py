"""Waiting until the machine has nothing else to do, and keeping it so, that a measurement measures one thing."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

__all__ = ["alone", "busy_share", "wait_until_idle"]


@contextmanager
def alone(locks: Sequence[Path]) -> Iterator[None]:
    """Hold the lock files, taken in the order given: other work that takes them first waits meanwhile."""
    with ExitStack() as held:
        for path in locks:
            fcntl.flock(held.enter_context(path.open("w")), fcntl.LOCK_EX)
        yield


def wait_until_idle(
    *, most_busy: float = 0.12, quiet_s: float = 3.0, timeout_s: float = 900.0
) -> float:
    """Return when all cores together were under `most_busy` for `quiet_s`, or at the timeout; the last share seen."""
    deadline = time.monotonic() + timeout_s
    while True:
        share = busy_share(quiet_s)
        if share < most_busy or time.monotonic() > deadline:
            return share


def busy_share(seconds: float) -> float:
    """Fraction of all cores' time that was not idle over the next `seconds`."""
    before = _ticks()
    time.sleep(seconds)
    after = _ticks()
    total = sum(after) - sum(before)
    idle = after[3] + after[4] - before[3] - before[4]  # idle and waiting for a disk
    return 1.0 - idle / total if total else 0.0


def _ticks() -> list[int]:
    first = Path("/proc/stat").read_text().partition("\n")[0]
    return [int(field) for field in first.split()[1:9]]
