"""One forward pass: write the plan into buffers, run the model (recorded where possible), sample, report.

A row that brings drafts is sampled at each of its positions. A draft stands while it equals the token sampled there:
for drafts without a distribution of their own this is the exact rejection rule (arXiv 2211.17192 with a one-hot q),
and with position-keyed random streams the tokens are those of an undrafted run. For others the sampler applies the rule
itself. After sampling a proposer, if there is one, drafts for the next step; distributions never leave the runner.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import msgspec
import torch

from nonet.core.outputs import TokenLogprob
from nonet.core.step import Row, RowResult, StepPlan, StepResult
from nonet.kernels.ops import Ops, Recording, StepShape
from nonet.layers.forward_step import ForwardStep
from nonet.models.decoder import Decoder
from nonet.runner.batch import StepBuffers
from nonet.runner.compactor import Compactor
from nonet.runner.device_clock import DeviceClock
from nonet.runner.host_gap import HostGap
from nonet.runner.pooling import Pooler
from nonet.runner.rehearsal import time_step
from nonet.runner.sequences import LiveSequence, SequenceTable
from nonet.runner.tap import LogitsTap
from nonet.sampling.acceptance.rejection import Drafted
from nonet.sampling.logprobs import prompt_logprobs
from nonet.sampling.sampler import Sampler
from nonet.sampling.samples import DeviceSamples, Sampled, SampleRow
from nonet.speculate.base import NO_DRAFT, Context, Outcome, Proposer

__all__ = ["LaunchedStep", "Runner", "RunnerTimes"]

logger = logging.getLogger("nonet.runner")

# Rows of logits made at a time for prompt log probabilities: bounds their memory, V * 4 bytes each.
PROMPT_LOGPROB_ROWS = 64


@dataclass(slots=True)
class RunnerTimes:
    """Seconds of the host since start, by part of a step."""

    prepare_s: float = 0.0
    forward_s: float = 0.0
    sample_s: float = 0.0
    propose_s: float = 0.0
    device_s: float = 0.0  # in which the device worked, as it measured itself


@dataclass(frozen=True, slots=True)
class _OfPrompts:
    """What a step brought besides samples, by sequence."""

    logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    pooled: dict[int, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class LaunchedStep:
    """What the device was asked for and has not answered yet."""

    plan: StepPlan
    rows: list[SampleRow]
    logits: torch.Tensor | None  # without rows, or None, where the step samples nothing
    drafted: dict[int, Drafted]
    prompts: _OfPrompts
    clock: DeviceClock
    samples: DeviceSamples | None = None  # None until they were asked for


class Runner:
    """Owns the model's buffers and the state of live sequences. Plans come in order; nothing here decides anything."""

    def __init__(
        self,
        model: Decoder,
        ops: Ops,
        buffers: StepBuffers,
        sequences: SequenceTable,
        sampler: Sampler,
        recording: Recording | None,
        compactor: Compactor | None = None,
        proposer: Proposer | None = None,
    ) -> None:
        self._model = model
        self._ops = ops
        self._sampled: torch.Tensor | None = None  # ids of the last launched step
        self._num_uncollected = 0
        self._unsampled: LaunchedStep | None = None  # waits for the tokens of the step before it
        self._buffers = buffers
        self._sequences = sequences
        self._sampler = sampler
        self._proposer = proposer
        self.recording = recording
        self._compactor = compactor
        self.tap: LogitsTap | None = None
        self._pooler = Pooler()
        self.times = RunnerTimes()
        self.gap = HostGap()

    def time_step(self, num_tokens: int) -> float:
        """Seconds of a forward pass of that many tokens, all sampled; before the first request."""
        seconds = time_step(self._logits, self._sequences, num_tokens, self._buffers.device)
        self.times = RunnerTimes()
        return seconds

    @torch.inference_mode()
    def record_ahead(self) -> bool:
        """Record one more size of steps before one comes, with no step under way. False: no other is left."""
        if self.recording is None:
            return False
        self._buffers.clear()
        try:
            return self.recording.record_ahead()
        except torch.OutOfMemoryError as error:
            # Whoever shares the device took what was left; sizes that are met are tried again.
            logger.warning("event=record_ahead_failed error=%r", error)
            return False

    def awaits_tokens(self, num_seqs: int) -> bool:
        """Whether a step that brings tokens to so many sequences should wait until those before are read.

        Drafts are made on the host, after the last token.
        """
        proposer = self._proposer
        return proposer is not None and (
            not proposer.needs.pauses or proposer.proposes_for(num_seqs)
        )

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> LaunchedStep:
        """Ask the device for the plan's step; a row may begin at the token that the last launched step samples.

        Where a row's token can be chosen only once the host knows the one before it, the forward pass runs now and
        the sampling is asked for when the step before is collected: both at work, neither waits for the other.
        """
        began = time.perf_counter()
        self._take_changes(plan)
        clock = DeviceClock(self._buffers.device)
        shape, step = self._buffers.fill(plan.rows, self._sequences)
        if self._buffers.has_unread:
            assert self._sampled is not None, "no step before this one sampled anything"
            self._ops.take_sampled(step.token_ids, self._sampled)
        prepared = time.perf_counter()
        self.gap.ended(prepared, counts=len(plan.rows) > len(plan.new))
        windows = self._compactor.windows(plan) if self._compactor else None
        prompts = _OfPrompts()
        if windows is not None or any(row.prompt_logprobs or row.pools for row in plan.rows):
            step = replace(step, on_queries=windows)
            hidden = self._model.hidden(step)
            prompts = _OfPrompts(
                self._prompt_logprobs(plan.rows, hidden),
                self._pooler.add(plan.rows, hidden, self._sequences),
            )
            logits = self._model.logits(hidden[step.rows.long()]) if shape.num_rows else None
        else:
            logits = self._forward(shape, step)
        if plan.compactions:
            assert self._compactor is not None, "the plan compacts and nothing here can"
            self._compactor.run(plan, step, windows)
        forwarded = time.perf_counter()
        self._show(plan.rows, logits)
        rows = self._sample_rows(plan.rows)
        launched = LaunchedStep(plan, rows, logits, self._drafted(plan.rows), prompts, clock)
        self._note_launched(plan.rows)
        if self._num_uncollected and self._sampler.reads_tokens(rows):
            self._unsampled = launched
        else:
            self._sample(launched)
        self._num_uncollected += 1
        self.times.prepare_s += prepared - began
        self.times.forward_s += forwarded - prepared
        self.times.sample_s += time.perf_counter() - forwarded
        return launched

    @torch.inference_mode()
    def collect(self, step: LaunchedStep) -> StepResult:
        """Wait for the step; a row's failure is in its result, never an exception."""
        began = time.perf_counter()
        sampled = [] if step.samples is None else self._sampler.read(step.samples, step.rows)
        if step.samples is not None:
            self.gap.began(time.perf_counter())
        result = self._results(step.plan, sampled, step.prompts)
        self._num_uncollected -= 1
        if self._unsampled is not None:
            self._sample(self._unsampled)
        self.times.device_s += step.clock.seconds()
        sampled_at = time.perf_counter()
        if self._proposer is not None:
            result = self._propose(self._proposer, step.plan.rows, result)
        self.times.sample_s += sampled_at - began
        proposed_s = time.perf_counter() - sampled_at
        if self._proposer is not None and self._proposer.needs.model is not None:
            self.gap.skip(proposed_s)
        self.times.propose_s += proposed_s
        return result

    def _sample(self, step: LaunchedStep) -> None:
        """Ask the device for the step's tokens."""
        self._unsampled = None
        if step.rows and step.logits is not None:
            step.samples = self._sampler.sample_on_device(step.logits, step.rows, step.drafted)
        self._sampled = None if step.samples is None else step.samples.ids
        step.clock.stop()

    def _take_changes(self, plan: StepPlan) -> None:
        for seq_id in plan.gone:
            self._pooler.forget(seq_id)
            slot = self._sequences.remove(seq_id)
            if slot is not None:
                self._sampler.remove(slot)
                if self._proposer is not None:
                    self._proposer.remove(slot)
        for new in plan.new:
            slot = self._sequences.add(new).slot
            self._sampler.add(slot, new)
            if self._proposer is not None:
                self._proposer.add(slot, new)
        for update in plan.tables:
            self._sequences.update_table(update)

    def _forward(self, shape: StepShape, step: ForwardStep) -> torch.Tensor:
        if self.recording is not None:
            return self.recording.replay(shape)
        return self._model.forward(step)[: shape.num_rows]

    def _show(self, rows: Sequence[Row], logits: torch.Tensor | None) -> None:
        """Hand the rows to be sampled from to whoever looks."""
        if self.tap is None or logits is None:
            return
        first = 0
        for row in rows:
            if row.num_samples:
                mine = logits[first : first + row.num_samples]
                self.tap(row.seq_id, row.start + row.num_tokens, mine)
            first += row.num_samples

    def _logits(self, rows: Sequence[Row]) -> torch.Tensor:
        return self._forward(*self._buffers.fill(rows, self._sequences))

    def _sample_rows(self, rows: Sequence[Row]) -> list[SampleRow]:
        return [
            SampleRow(
                self._sequences[row.seq_id].slot,
                row.start + row.num_tokens + draft,
                row.drafts[:draft],
            )
            for row in rows
            for draft in range(row.num_samples)
        ]

    def _note_launched(self, rows: Sequence[Row]) -> None:
        """Where the next step finds the tokens of this one, should it begin before they are read."""
        first = 0
        for row in rows:
            sequence = self._sequences[row.seq_id]
            sequence.num_flying += 1
            if row.num_samples == 1:
                sequence.unread = first
            first += row.num_samples

    def _drafted(self, rows: Sequence[Row]) -> dict[int, Drafted]:
        """By number, the rows of logits whose token was drafted from a distribution."""
        found: dict[int, Drafted] = {}
        first = 0
        for row in rows:
            if row.drafts:
                draft = self._sequences[row.seq_id].draft.cut(len(row.drafts))
                assert not draft.distributions or draft.token_ids == row.drafts
                for place, distribution in enumerate(draft.distributions):
                    found[first + place] = Drafted(row.drafts[place], distribution)
            first += row.num_samples
        return found

    def _results(self, plan: StepPlan, sampled: list[Sampled], prompts: _OfPrompts) -> StepResult:
        results: list[RowResult] = []
        first = 0
        for row in plan.rows:
            mine = sampled[first : first + row.num_samples]
            first += row.num_samples
            self._sequences[row.seq_id].num_flying -= 1
            results.append(self._row_result(row, mine, prompts))
        return StepResult(step_id=plan.step_id, rows=results)

    def _row_result(self, row: Row, sampled: list[Sampled], prompts: _OfPrompts) -> RowResult:
        kept: list[Sampled] = []
        for place, one in enumerate(sampled):
            if one.error is not None:
                return RowResult(seq_id=row.seq_id, error=one.error)
            kept.append(one)
            if place < len(row.drafts) and row.drafts[place] != one.token_id:
                break
        sequence = self._sequences[row.seq_id]
        token_ids = [one.token_id for one in kept]
        if token_ids:
            sequence.token_ids.extend(token_ids)
            self._sampler.append(sequence.slot, token_ids)
        wants = sequence.params.logprobs is not None
        return RowResult(
            seq_id=row.seq_id,
            token_ids=token_ids,
            logprobs=[one.logprob for one in kept if one.logprob is not None] if wants else None,
            prompt_logprobs=prompts.logprobs.get(row.seq_id),
            pooled=prompts.pooled.get(row.seq_id),
            num_accepted=max(0, len(kept) - 1),
        )

    def _propose(self, proposer: Proposer, rows: Sequence[Row], result: StepResult) -> StepResult:
        """The result with drafts for the next step."""
        outcomes: list[Outcome] = []
        contexts: list[Context] = []
        most = proposer.needs.max_drafts
        for row, outcome in zip(rows, result.rows, strict=True):
            sequence = self._sequences[row.seq_id]
            sequence.draft = NO_DRAFT
            if outcome.error is not None:
                continue
            if row.drafts:
                outcomes.append(Outcome(sequence.slot, len(row.drafts), outcome.num_accepted))
            room = min(most, _still_wanted(sequence))
            is_sampled = row.num_samples > 0
            is_late = is_sampled and sequence.num_flying > 0
            contexts.append(
                Context(row.seq_id, sequence.slot, sequence.token_ids, is_sampled, room, is_late)
            )
        proposer.observe(outcomes)
        drafts = {
            context.seq_id: draft
            for context, draft in zip(contexts, proposer.propose(contexts), strict=True)
            if not context.is_late
        }
        with_drafts: list[RowResult] = []
        for outcome in result.rows:
            draft = drafts.get(outcome.seq_id, NO_DRAFT)
            if draft.token_ids:
                self._sequences[outcome.seq_id].draft = draft
                outcome = msgspec.structs.replace(outcome, drafts=draft.token_ids)
            with_drafts.append(outcome)
        return StepResult(step_id=result.step_id, rows=with_drafts)

    def _prompt_logprobs(
        self, rows: Sequence[Row], hidden: torch.Tensor
    ) -> dict[int, list[TokenLogprob]]:
        """Per sequence that asked: log probabilities of the prompt tokens after each of this chunk's tokens."""
        found: dict[int, list[TokenLogprob]] = {}
        first = 0
        for row in rows:
            sequence = self._sequences[row.seq_id]
            if row.prompt_logprobs:
                last = min(row.start + row.num_tokens, sequence.num_prompt - 1)
                targets = sequence.token_ids[row.start + 1 : last + 1]
                mine: list[TokenLogprob] = []
                for at in range(0, len(targets), PROMPT_LOGPROB_ROWS):
                    piece = targets[at : at + PROMPT_LOGPROB_ROWS]
                    logits = self._model.logits(hidden[first + at : first + at + len(piece)])
                    if self.tap is not None:
                        self.tap(row.seq_id, row.start + 1 + at, logits)
                    mine.extend(
                        prompt_logprobs(logits, piece, sequence.params.prompt_logprobs or 0)
                    )
                found[row.seq_id] = mine
            first += row.num_tokens + len(row.drafts)
        return found


def _still_wanted(sequence: LiveSequence) -> int:
    """Tokens that the sequence may still get besides the one that every step brings."""
    most = sequence.params.max_tokens
    if most is None:
        return sys.maxsize
    return max(0, sequence.num_prompt + most - len(sequence.token_ids) - 1)
