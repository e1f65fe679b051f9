"""How long work on another thread may take: in processor time, so that a busy machine does not change the answer."""

from __future__ import annotations

import sys
import threading
import time

__all__ = ["ThreadLimit"]

SLOWEST = 10.0  # as many times the limit may pass on the wall clock


class ThreadLimit:
    """For one piece of work. The thread that does it calls `start`; any thread may ask the rest while it runs.

    On systems where a thread's processor time cannot be read by another, both limits are of the wall clock.

    >>> limit = ThreadLimit(3.0)
    >>> limit.start()
    >>> limit.is_over, limit.is_late
    (False, False)
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.latest_s = SLOWEST * limit_s
        self._clock: int | None = None
        self._spent_before_s = 0.0
        self._began_s = time.monotonic()

    def start(self) -> None:
        clock = _clock_of_this_thread()
        self._spent_before_s = time.clock_gettime(clock)
        self._began_s = time.monotonic()
        self._clock = clock

    @property
    def left_s(self) -> float:
        """Processor time left, which is also the least time after which the limit may be over."""
        spent_s = (
            0.0 if self._clock is None else time.clock_gettime(self._clock) - self._spent_before_s
        )
        return self.limit_s - spent_s

    @property
    def is_over(self) -> bool:
        """Whether the work has computed longer than the limit."""
        return self.left_s <= 0

    @property
    def is_late(self) -> bool:
        """Whether so much time has passed that somebody else must be computing, or nobody."""
        return time.monotonic() - self._began_s >= self.latest_s


def _clock_of_this_thread() -> int:
    if sys.platform == "linux":
        return time.pthread_getcpuclockid(threading.get_ident())
    return time.CLOCK_MONOTONIC
