"""How much one step may hold."""

from __future__ import annotations

from dataclasses import dataclass, fields

from nonet.core.errors import ConfigError
from nonet.kv.compaction import CompactionRule

__all__ = ["SchedulerLimits", "StepBudget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """What the scheduler must keep within."""

    max_num_seqs: int  # sequences that the runner knows at one time
    max_tokens_per_step: int
    chunked_prefill: bool
    max_waiting: int  # requests none of whose sequences has run
    max_model_len: int  # prompt plus output
    reserve_whole: bool = False  # a sequence takes the blocks of its longest output at its start
    lookahead_tokens: int = 0  # slots to reserve past a row's own, where there are blocks to spare
    max_drafts_per_step: int = 1 << 30  # over all sequences

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, bool) and value < 1 and field.name != "lookahead_tokens":
                raise ConfigError(f"{field.name} is {value}; give at least 1")
        if self.max_tokens_per_step < self.max_num_seqs:
            raise ConfigError(
                f"max_tokens_per_step is {self.max_tokens_per_step}, below max_num_seqs {self.max_num_seqs}; every "
                "running sequence needs one token per step, so raise the first or lower the second"
            )

    def check_compaction(self, rule: CompactionRule | None) -> None:
        """ConfigError when running sequences could for ever leave a prompt too few tokens for its query window."""
        least = self.max_num_seqs - 1 + (rule.query_window if rule else 0)
        if rule is not None and self.max_tokens_per_step < least:
            raise ConfigError(
                f"max_tokens_per_step is {self.max_tokens_per_step}; beside max_num_seqs {self.max_num_seqs} running "
                f"sequences it must hold the {rule.query_window} last tokens of a prompt whose KV is pruned, so raise "
                f"it to {least}, or lower max_num_seqs or the window"
            )


class StepBudget:
    """Tokens that are left in the step being planned.

    >>> limits = SchedulerLimits(
    ...     max_num_seqs=4, max_tokens_per_step=64, chunked_prefill=False, max_waiting=8, max_model_len=512
    ... )
    >>> budget = StepBudget(limits)
    >>> budget.left -= 4
    >>> budget.share(60), budget.share(61), budget.share(65)
    (60, 0, 60)
    """

    def __init__(self, limits: SchedulerLimits) -> None:
        self.left = limits.max_tokens_per_step
        self._whole_limit = 0 if limits.chunked_prefill else limits.max_tokens_per_step

    def share(self, remaining: int) -> int:
        """Tokens for a sequence that has not begun; 0 when it must wait.

        Without chunked prefill a prompt waits until it fits whole, unless no step could hold it.
        """
        if self.left < remaining <= self._whole_limit:
            return 0
        return min(remaining, self.left)
