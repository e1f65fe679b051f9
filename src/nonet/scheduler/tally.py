"""What the scheduler has counted since its start."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from nonet.core.messages import EngineStats
from nonet.kv.cache import KVCache
from nonet.scheduler.planner import PlannedStep
from nonet.scheduler.roster import Roster

__all__ = ["Tally"]


@dataclass(slots=True)
class Tally:
    """Counters that only grow, under the names of `EngineStats`."""

    steps: int = 0
    step_tokens: int = 0
    preemptions: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    late_joins: int = 0
    partial_prefills: int = 0
    compactions: int = 0
    peak_blocks: int = 0
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    accepted_per_position: list[int] = field(default_factory=list)

    def planned(self, step: PlannedStep, kv: KVCache) -> None:
        """A step that will run."""
        self.prefix_query_tokens += step.query_tokens
        self.prefix_hit_tokens += step.hit_tokens
        self.late_joins += step.num_late
        self.partial_prefills += sum(not row.num_samples for row in step.rows)
        self.compactions += len(step.compactions)
        self.peak_blocks = max(self.peak_blocks, kv.num_blocks - kv.num_free)

    def drafted(self, num_drafted: int, num_accepted: int) -> None:
        """A run of drafts was verified."""
        self.num_drafts += 1
        self.num_draft_tokens += num_drafted
        self.num_accepted_tokens += num_accepted
        places = self.accepted_per_position
        places += [0] * (num_drafted - len(places))
        for place in range(num_accepted):
            places[place] += 1

    def stats(self, roster: Roster, kv: KVCache) -> EngineStats:
        """The counters, beside what queues and pool are now."""
        return EngineStats(
            num_running=len(roster.running),
            num_waiting=len(roster.waiting),
            waiting_tokens=sum(len(seq.token_ids) for seq in roster.waiting.values()),
            kv_usage=kv.usage,
            blocks_free=kv.num_free,
            blocks_total=kv.num_blocks,
            blocks_leased=kv.num_leased,
            **asdict(self),
        )
