"""Priority with aging.

Idea: the lower the priority number the earlier; a request that has waited `aging_s` seconds counts as one level
better, so that a steady stream of better requests delays a worse one but never starves it. As all age at the same
pace, `priority + arrival / aging_s` says the same and never changes: two sequences never swap ranks.
Reference: aging as in multilevel feedback queues.
Cost: one sort in a step.
Good for: requests of unequal worth.
Conflicts: none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nonet.core.errors import ConfigError
from nonet.scheduler.policy.base import Policy
from nonet.scheduler.sequence import Sequence

__all__ = ["PriorityPolicy"]


class PriorityPolicy(Policy):
    """Order of priority less seniority, then of arrival."""

    @dataclass(frozen=True, slots=True)
    class Config:
        aging_s: float = 30.0  # seconds of waiting that are worth one level of priority

        def __post_init__(self) -> None:
            if not self.aging_s > 0:
                raise ConfigError(
                    f"priority: aging_s is {self.aging_s:g}; give seconds above 0, such as 30"
                )

    def __init__(self, config: Config | None = None) -> None:
        self._config = config if config is not None else self.Config()

    def order(self, sequences: Iterable[Sequence], now: float) -> list[Sequence]:
        return sorted(sequences, key=self._rank)

    def victim(self, running: Iterable[Sequence], now: float) -> Sequence:
        return max(running, key=self._rank)

    def _rank(self, seq: Sequence) -> tuple[float, int]:
        return seq.request.priority + seq.arrival_s / self._config.aging_s, seq.seq_id
