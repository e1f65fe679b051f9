"""Deadlines by service class.

Idea: every token has a deadline: arrival + ttft for the first, one tpot more for each that follows. Interactive and
standard requests go in order of deadline as long as they can still meet it; those that cannot come after (so that one
late request does not make the next ones late), then batch, which has no deadline. A newcomer with a deadline takes the
place of a running batch sequence when there is no other. Prompts are computed in pieces that leave running streams
their tpot. Beside streams of others batch takes what makes a step at most `batch_stretch` times as long as theirs
alone, and no longer than their tpot; the rest of it, decoding too, waits for idle capacity. A request whose first token
is predicted later than its ttft is refused at once, with the time to wait.
Whoever has waited `max_wait` goes first, one at a time, so nothing waits for ever.
Reference: earliest deadline first (Liu and Layland, 1973); early rejection and chunked budgets as in SLOs-Serve
(arXiv 2504.08784).
Cost: one sort of the queue in a step; one pass over it for each arriving request.
Good for: mixed traffic above capacity.
Conflicts: none. A request's priority is not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

from nonet.core.errors import ConfigError
from nonet.core.request import Request
from nonet.scheduler.load import Load
from nonet.scheduler.policy.base import Policy
from nonet.scheduler.sequence import Sequence

__all__ = ["SloPolicy"]

# A prompt always gets this much of a step, so that newcomers are never stopped by streams that are late already.
LEAST_PROMPT_TOKENS = 16

OVERDUE, IN_TIME, LATE, BATCH = range(4)


class SloPolicy(Policy):
    """Earliest feasible deadline first; targets in seconds."""

    displaces = True

    @dataclass(frozen=True, slots=True)
    class Config:
        interactive_ttft: float = 1.0
        interactive_tpot: float = 0.1
        standard_ttft: float = 10.0
        standard_tpot: float = 0.5
        max_wait: float = 600.0  # after which a request goes first, whatever its class
        batch_stretch: float = 1.05  # how many times longer batch may make a step of other streams
        reject: bool = True  # refuse what is predicted to miss its ttft

        def __post_init__(self) -> None:
            for field in fields(self):
                value = getattr(self, field.name)
                if field.name == "batch_stretch" and not value >= 1:
                    raise ConfigError(f"slo: batch_stretch is {value:g}; give at least 1")
                if not isinstance(value, bool) and not value > 0:
                    raise ConfigError(
                        f"slo: {field.name} is {value:g}; give seconds above 0, such as 1"
                    )

    def __init__(self, config: Config | None = None) -> None:
        self._config = config if config is not None else self.Config()
        self._load: Load | None = None

    def watch(self, load: Load) -> None:
        self._load = load

    def order(self, sequences: Iterable[Sequence], now: float) -> list[Sequence]:
        listed = list(sequences)
        first = self._overdue(listed, now)
        return sorted(listed, key=lambda seq: self._rank(seq, now, first))

    def victim(self, running: Iterable[Sequence], now: float) -> Sequence:
        return self.order(running, now)[-1]

    def displaced(self, seq: Sequence, now: float) -> Sequence | None:
        if self._load is None or self._is_batch(seq.request):
            return None
        batch = [other for other in self._load.running.values() if self._is_batch(other.request)]
        candidates = [other for other in batch if now - other.arrival_s < self._config.max_wait]
        return self.victim(candidates, now) if candidates else None

    def retry_after(self, request: Request, now: float) -> float | None:
        load = self._load
        if load is None or not self._config.reject or self._is_batch(request):
            return None
        if not load.cost.is_known:
            return None
        ttft, _ = self._targets(request)
        known = (*load.running.values(), *load.waiting.values())
        ahead = [
            seq
            for seq in known
            if not self._is_batch(seq.request) and self._deadline(seq) <= now + ttft
        ]
        tokens = len(request.prompt_ids) + sum(seq.num_remaining for seq in ahead)
        predicted = load.cost.seconds(tokens, beside=len(load.running))
        return predicted - ttft if predicted > ttft else None

    def is_background(self, seq: Sequence, now: float) -> bool:
        return self._is_batch(seq.request) and now - seq.arrival_s < self._config.max_wait

    def background_limit(self, decoding: list[Sequence], limit: int, now: float) -> int:
        load = self._load
        streams = [seq for seq in decoding if not self._is_batch(seq.request)]
        if load is None or not load.cost.is_known or not streams:
            return limit
        tpot = min(self._targets(seq.request)[1] for seq in streams)
        seconds = min(tpot, self._config.batch_stretch * load.cost.step_s(len(streams)))
        if load.cost.step_s(limit) <= seconds:
            return limit
        return load.cost.tokens_within(seconds)

    def prompt_budget(self, decoding: list[Sequence], limit: int, now: float) -> int:
        load = self._load
        if load is None or not load.cost.is_known:
            return limit
        seconds = math.inf
        for seq in decoding:
            if not self._is_batch(seq.request):
                _, tpot = self._targets(seq.request)
                # A stream that is ahead of its deadlines can do without for longer.
                seconds = min(seconds, max(tpot, self._deadline(seq) - now))
        if seconds == math.inf:
            return limit
        tokens = load.cost.tokens_within(seconds) - len(decoding)
        return min(limit, max(tokens, LEAST_PROMPT_TOKENS))

    def _rank(self, seq: Sequence, now: float, first: Sequence | None) -> tuple[int, float, int]:
        if seq is first:
            return OVERDUE, 0.0, seq.seq_id
        if self._is_batch(seq.request):
            return BATCH, seq.arrival_s, seq.seq_id
        deadline = self._deadline(seq)
        needed = self._load.cost.seconds(seq.num_remaining) if self._load else 0.0
        if now + needed <= deadline:
            return IN_TIME, deadline, seq.seq_id
        return LATE, seq.arrival_s, seq.seq_id

    def _overdue(self, sequences: list[Sequence], now: float) -> Sequence | None:
        """The oldest of those who waited too long, unless one of them is running."""
        border = now - self._config.max_wait
        late = [seq for seq in sequences if seq.arrival_s <= border]
        if not late:
            return None
        oldest = min(late, key=lambda seq: (seq.arrival_s, seq.seq_id))
        running = self._load.running if self._load else {}
        if oldest.seq_id not in running and any(s.arrival_s <= border for s in running.values()):
            return None
        return oldest

    def _deadline(self, seq: Sequence) -> float:
        """When the next token is due."""
        ttft, tpot = self._targets(seq.request)
        return seq.arrival_s + ttft + tpot * (len(seq.token_ids) - seq.num_prompt)

    def _targets(self, request: Request) -> tuple[float, float]:
        config = self._config
        if request.service_class == "interactive":
            return config.interactive_ttft, config.interactive_tpot
        return config.standard_ttft, config.standard_tpot

    def _is_batch(self, request: Request) -> bool:
        return request.service_class == "batch"
