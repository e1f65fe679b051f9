"""One step of the engine: what the scheduler asks of the runner, and what comes back.

There is no prefill step and no decode step. A sequence has tokens it knows and tokens whose KV is computed; each step
computes some more. Drafts are extra known tokens that the step verifies. The plan carries differences only: the runner
keeps each sequence's token ids, block tables and sampling parameters between steps.
"""

from __future__ import annotations

import msgspec

from nonet.core.outputs import TokenLogprob
from nonet.core.sampling_params import SamplingParams

__all__ = [
    "BlockTableUpdate",
    "Compaction",
    "NewSequence",
    "Row",
    "RowResult",
    "StepPlan",
    "StepResult",
]


class NewSequence(msgspec.Struct, frozen=True, kw_only=True):
    """A sequence that the runner sees for the first time, or again after a preemption."""

    seq_id: int
    token_ids: list[int]  # all known tokens: the prompt, and the outputs so far after a preemption
    num_prompt: int
    params: SamplingParams
    seed: int  # drawn by the engine when the request has none, so that a preempted sequence keeps its stream
    eos_ids: tuple[int, ...] = ()
    adapter_id: str = ""


class BlockTableUpdate(msgspec.Struct, frozen=True, array_like=True):
    """Entries `[start, start + len(block_ids))` of one sequence's table in one cache group are now `block_ids`."""

    seq_id: int
    group: int
    start: int
    block_ids: list[int]


class Compaction(msgspec.Struct, frozen=True, kw_only=True):
    """After the forward pass, `length` of a sequence's entries in a cache group are copied to the start of `block_ids`.

    The sequence has a row in the step. Which entries, the runner decides, for each layer and KV head by itself. The
    sequence's table is not changed; a later plan brings the new one.
    """

    seq_id: int
    group: int
    length: int
    block_ids: list[int]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence's share of the step: known tokens `[start, start + num_tokens)`, then the drafts.

    `start` is a logical position. `kv_start` is the number of KV entries that the sequence holds before the step, per
    cache group; it equals `start` until something prunes the cache. `num_samples` is 0 for a chunk that does not reach
    the last known token, otherwise 1 + len(drafts).
    """

    seq_id: int
    start: int
    num_tokens: int
    drafts: tuple[int, ...] = ()
    num_samples: int = 0
    prompt_logprobs: bool = False  # return the log probabilities of this chunk's prompt tokens
    pools: bool = False  # return the mean of the prompt's last hidden states, once it is complete
    kv_start: tuple[int, ...] | None = None  # None: `start` in every group


class StepPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the runner needs for one step; sequences in `gone` are dropped before anything else."""

    step_id: int
    rows: list[Row]
    new: list[NewSequence] = []
    tables: list[BlockTableUpdate] = []
    gone: list[int] = []
    compactions: list[Compaction] = []

    @property
    def num_tokens(self) -> int:
        return sum(row.num_tokens + len(row.drafts) for row in self.rows)


class RowResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one row brought: accepted drafts and the token after them, none for an unfinished chunk."""

    seq_id: int
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = (
        None  # of the prompt tokens at [start + 1, start + num_tokens]
    )
    pooled: bytes | None = None  # float32, little endian
    num_accepted: int = 0
    drafts: tuple[int, ...] = ()  # proposed for the next step
    error: str | None = (
        None  # the row could not be computed (for example, logits that are not numbers)
    )


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """Results in the order of the plan's rows."""

    step_id: int
    rows: list[RowResult]
