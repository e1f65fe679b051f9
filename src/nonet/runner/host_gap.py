"""How long the host takes from a step's results to the next step: the device idles then, unless it has one already."""

from __future__ import annotations

import statistics
from collections import deque

__all__ = ["HostGap"]

NUM_SEEN = 64
RENEWED_EVERY = 16


class HostGap:
    """The median of the gaps seen lately, 0 before there are some.

    A gap counts only when a sequence of the results goes on in the step that ends it: otherwise the engine may have had
    nothing to do.

    >>> gap = HostGap()
    >>> for second in range(16):
    ...     gap.began(second)
    ...     gap.ended(second + 0.25, counts=True)
    >>> gap.seconds()
    0.25
    """

    def __init__(self) -> None:
        self._seen: deque[float] = deque(maxlen=NUM_SEEN)
        self._began_s: float | None = None
        self._num_new = 0
        self._median_s = 0.0

    def began(self, now_s: float) -> None:
        """Results came in."""
        self._began_s = now_s

    def skip(self, seconds: float) -> None:
        """So much since then is not the host's."""
        if self._began_s is not None:
            self._began_s += seconds

    def ended(self, now_s: float, *, counts: bool) -> None:
        """A step is on its way to the device."""
        if counts and self._began_s is not None:
            self._seen.append(now_s - self._began_s)
            self._num_new += 1
        self._began_s = None

    def seconds(self) -> float:
        """The median is taken here, now and then, for every step keeps its gap and not every engine asks for it."""
        if self._num_new >= RENEWED_EVERY:
            self._num_new = 0
            self._median_s = statistics.median(self._seen)
        return self._median_s
