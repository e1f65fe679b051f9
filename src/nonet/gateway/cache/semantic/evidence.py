"""Does a partition keep its bound? Counted on verified answers, so it holds whatever the thresholds got wrong.

Nothing is served until the verified would-be hits prove, at the operator's confidence, that fewer than delta of them
are false. The proof may be looked at after each sample: it is a bet against the rate being delta or more, on all rates
of a grid below delta at once, and such a bet cannot grow twentyfold with more than 5 % chance, however long it runs,
while the rate is not below delta (Ville's inequality; Waudby-Smith and Ramdas, arXiv 2010.09686). While a partition
serves, samples go on, and the last `WINDOW` of them switch it off when the exact binomial test says that the rate is
above delta. That test is repeated without a correction, on purpose: a false alarm costs hits only.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Literal

__all__ = ["Evidence", "State", "binomial_tail", "upper_bound"]

State = Literal["proving", "serving", "off"]

RATES = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)  # of delta, that the bet is spread over
WINDOW = 1000


class Evidence:
    """Verified would-be hits of one partition."""

    def __init__(
        self,
        delta: float,
        confidence: float = 0.95,
        state: State = "proving",
        bets: Sequence[float] = (1.0,) * len(RATES),
        recent: Iterable[bool] = (),
    ) -> None:
        self.state = state
        self.bets = list(bets)
        self.recent = deque(recent, maxlen=WINDOW)
        self._delta = delta
        self._error = 1 - confidence

    def add(self, is_right: bool) -> None:
        """One more would-be hit, verified."""
        self.recent.append(is_right)
        delta = self._delta
        for number, share in enumerate(RATES):
            rate = share * delta
            factor = (1 - rate) / (1 - delta) if is_right else share
            self.bets[number] = min(self.bets[number] * factor, 1e30)
        if self.state == "proving" and sum(self.bets) / len(RATES) >= 1 / self._error:
            self.state = "serving"
        if self.state == "serving" and self.is_broken:
            self.state = "off"

    @property
    def num_false(self) -> int:
        return len(self.recent) - sum(self.recent)

    @property
    def is_broken(self) -> bool:
        """Whether so many false ones among the recent would be a rare accident at a rate of delta."""
        return binomial_tail(self.num_false, len(self.recent), self._delta) < self._error


def binomial_tail(least: int, trials: int, rate: float) -> float:
    """The chance of at least `least` among `trials`."""
    if least <= 0:
        return 1.0
    if rate <= 0:
        return 0.0
    logs = [
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(rate)
        + (trials - k) * math.log1p(-rate)
        for k in range(least)
    ]
    return max(0.0, 1 - math.fsum(math.exp(log) for log in logs))


def upper_bound(num_false: int, trials: int, confidence: float = 0.95) -> float:
    """The largest rate at which so few false ones are not a rare accident (Clopper and Pearson, one-sided)."""
    if num_false >= trials:
        return 1.0
    low, high = num_false / trials, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if 1 - binomial_tail(num_false + 1, trials, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high
