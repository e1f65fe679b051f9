"""A token bucket: what may be used in a minute, with a burst of a minute's worth, and when there will be more."""

from __future__ import annotations

__all__ = ["TokenBucket"]


class TokenBucket:
    """Refills evenly. What is taken is an estimate: `settle` puts back what was too much, or takes what was too little.

    A take larger than the bucket is let through when the bucket is full, or it would never be. The level may fall
    below zero when more was used than was estimated; then takes wait until the debt is paid.

    >>> bucket = TokenBucket(per_minute=60, now=0.0)
    >>> bucket.wait_s(60, now=0.0), bucket.take(60, now=0.0), bucket.wait_s(1, now=0.5)
    (0.0, None, 0.5)
    """

    __slots__ = ("_at_s", "_level", "capacity")

    def __init__(self, per_minute: int, now: float) -> None:
        self.capacity = per_minute
        self._level = float(per_minute)
        self._at_s = now

    def level(self, now: float) -> float:
        """What may be taken now."""
        passed_s = max(0.0, now - self._at_s)
        self._level = min(float(self.capacity), self._level + passed_s * self.capacity / 60.0)
        self._at_s = now
        return self._level

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken, if nobody else takes any."""
        missing = min(amount, self.capacity) - self.level(now)
        return 60.0 * missing / self.capacity if missing > 1e-9 else 0.0

    def take(self, amount: float, now: float) -> None:
        """Take it, whatever the level: ask `wait_s` first."""
        self._level = self.level(now) - amount

    def settle(self, estimated: float, used: float, now: float) -> None:
        """`estimated` was taken and `used` is what it came to."""
        self._level = min(float(self.capacity), self.level(now) + estimated - used)

    def full_in_s(self, now: float) -> float:
        return 60.0 * (self.capacity - self.level(now)) / self.capacity
