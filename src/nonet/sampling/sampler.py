"""The batched sampler: logits in, one token per row out, with everything a request may ask for.

A live sequence holds a *slot*, where its parameters and penalty counts stay between steps. One call of `sample` serves
any mix of sequences and of positions within a sequence (drafts to verify). Stages that no row needs are skipped; a
batch of greedy rows costs an argmax. A row's token depends on its own logits, parameters, seed and position only, to
the bit.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from nonet.core.sampling_params import SamplingParams
from nonet.core.step import NewSequence
from nonet.kernels.ops import SamplingKernels
from nonet.sampling.acceptance.rejection import NOTHING_DRAFTED, Drafted, accept
from nonet.sampling.logprobs import measure
from nonet.sampling.processors import (
    PROCESSORS,
    TRUNCATIONS,
)
from nonet.sampling.processors.base import LogitsProcessor, ProcessorRow, Truncation
from nonet.sampling.random import Purpose, uniforms
from nonet.sampling.ranking import Ranking, depths, rank
from nonet.sampling.rowwise import argmax, draw
from nonet.sampling.samples import DeviceSamples, Sampled, SampleRow
from nonet.sampling.upload import upload

__all__ = ["Sampler"]


class Sampler:
    """Chooses tokens for the sequences in its slots.

    >>> from nonet.core.sampling_params import SamplingParams
    >>> sampler = Sampler(vocab_size=4, max_slots=1, device=torch.device("cpu"))
    >>> greedy = SamplingParams(temperature=0.0)
    >>> sampler.add(0, NewSequence(seq_id=9, token_ids=[3], num_prompt=1, params=greedy, seed=0))
    >>> sampler.sample(torch.tensor([[0.0, 2.0, 1.0, 2.0]]), [SampleRow(slot=0, position=1)])[0].token_id
    1
    """

    def __init__(
        self,
        vocab_size: int,
        max_slots: int,
        device: torch.device,
        more: Sequence[LogitsProcessor] = (),
        kernels: SamplingKernels | None = None,
    ) -> None:
        """`more` processors, which need something of their maker, run after those of the catalogue.

        `kernels` choose tokens where there are any for the device; else plain torch does.
        """
        self.vocab_size = vocab_size
        self._device = device
        self._kernels = kernels
        self._argmax = argmax if kernels is None else kernels.argmax
        self._depths = depths(vocab_size, device)
        self._slots: list[_Slot | None] = [None] * max_slots
        self._processors: list[LogitsProcessor] = [
            *(PROCESSORS.load(name)(vocab_size) for name in PROCESSORS.order()),
            *more,
        ]
        self._truncations: list[Truncation] = [
            TRUNCATIONS.load(name)(vocab_size) for name in TRUNCATIONS.order()
        ]
        # A large result fresh from the allocator is paged in by the kernel at every step; this one is not.
        self._scratch = torch.empty(0, vocab_size, device=device)

    def add(self, slot: int, sequence: NewSequence) -> None:
        """Give a free slot to a sequence: a new one, or one that comes back with its outputs after a preemption."""
        assert self._slots[slot] is None, f"sampler slot {slot} is taken"
        params = sequence.params
        acting = tuple(i for i, p in enumerate(self._processors) if p.add(slot, sequence))
        cutting = [] if params.is_greedy else self._truncations
        cuts = [t.add(slot, sequence) for t in cutting]
        self._slots[slot] = _Slot(sequence.seed, not params.is_greedy, any(cuts), params, acting)

    def append(self, slot: int, token_ids: Sequence[int]) -> None:
        """The sequence grew by accepted tokens; called after each step."""
        for number in self._slot(slot).acting:
            self._processors[number].append(slot, token_ids)

    def remove(self, slot: int) -> None:
        """The sequence left; its slot is free."""
        for number in self._slot(slot).acting:
            self._processors[number].remove(slot)
        for truncation in self._truncations:
            truncation.remove(slot)
        self._slots[slot] = None

    def reads_tokens(self, rows: Sequence[SampleRow]) -> bool:
        """Whether some row can be sampled only after `append` brought its sequence's last token."""
        return any(
            self._processors[number].reads_tokens
            for row in rows
            for number in self._slot(row.slot).acting
        )

    def sample(
        self,
        logits: torch.Tensor,
        rows: Sequence[SampleRow],
        drafted: Mapping[int, Drafted] = NOTHING_DRAFTED,
    ) -> list[Sampled]:
        """A token for each row of logits [R, V] (float32, may be overwritten). Waits for the device at the end.

        `drafted` has, by number, the rows whose token was guessed from a distribution: it is taken or replaced by the
        exact rejection rule.
        """
        return self.read(self.sample_on_device(logits, rows, drafted), rows)

    def sample_on_device(
        self,
        logits: torch.Tensor,
        rows: Sequence[SampleRow],
        drafted: Mapping[int, Drafted] = NOTHING_DRAFTED,
    ) -> DeviceSamples:
        """As `sample`, without waiting for the device; `read` does."""
        with torch.inference_mode():
            slots = [self._slot(row.slot) for row in rows]
            wanted = [i for i, slot in enumerate(slots) if slot.num_logprobs is not None]
            raw = _unshaped(logits, wanted, slots) if wanted else None
            faults: dict[int, str] = {}
            best_ids, is_finite = self._shape(logits, rows, slots, faults)
            ids = self._draw(logits, rows, slots, best_ids, drafted)
            found = None
            if raw is not None:
                count = max(slots[i].num_logprobs or 0 for i in wanted)
                found = measure(raw, ids[upload(wanted, self._device)], count)
            return DeviceSamples.send(torch.where(is_finite, ids, -1), wanted, found, faults)

    def read(self, samples: DeviceSamples, rows: Sequence[SampleRow]) -> list[Sampled]:
        """Wait for what `sample_on_device` chose for these rows."""
        samples.wait()
        ids = samples.host_ids.tolist()
        results = [
            Sampled(token_id)
            if token_id >= 0
            else Sampled(-1, error=samples.faults.get(i) or _no_token(row))
            for i, (token_id, row) in enumerate(zip(ids, rows, strict=True))
        ]
        if samples.host_logprobs is not None:
            at = samples.logprob_rows
            num_top = [self._slot(rows[i].slot).num_logprobs or 0 for i in at]
            for i, logprob in zip(at, samples.host_logprobs.read(num_top), strict=True):
                if ids[i] >= 0:
                    results[i] = Sampled(ids[i], logprob)
        return results

    def final_probabilities(self, logits: torch.Tensor, rows: Sequence[SampleRow]) -> torch.Tensor:
        """The distributions [R, V] (float32) that `sample` draws these rows from; a greedy row is one-hot.

        May overwrite logits. Rows without finite logits hold anything.
        """
        with torch.inference_mode():
            slots = [self._slot(row.slot) for row in rows]
            best_ids, _ = self._shape(logits, rows, slots)
            result = torch.zeros_like(logits).scatter_(1, best_ids[:, None], 1.0)
            random = [i for i, slot in enumerate(slots) if slot.is_random]
            if random:
                result[random] = self._final(logits, rows, slots, random)
            return result

    def draft(self, logits: torch.Tensor, rows: Sequence[SampleRow]) -> list[Drafted | None]:
        """A guess for each row from another model's logits [R, V] (may be overwritten), shaped as `sample` shapes them.

        None for a row without finite logits. Waits for the device at the end.
        """
        with torch.inference_mode():
            slots = [self._slot(row.slot) for row in rows]
            ids, is_finite = self._shape(logits, rows, slots)
            random = [i for i, slot in enumerate(slots) if slot.is_random]
            distributions: dict[int, torch.Tensor] = {}
            if random:
                final = self._final(logits, rows, slots, random)
                drawn = draw(final, self._uniforms(rows, slots, random, Purpose.DRAFT))
                ids = ids.index_copy(0, upload(random, self._device), drawn)
                distributions = dict(zip(random, final, strict=True))
            chosen = torch.where(is_finite, ids, -1).tolist()
            return [
                Drafted(token_id, distributions.get(i)) if token_id >= 0 else None
                for i, token_id in enumerate(chosen)
            ]

    def _slot(self, slot: int) -> _Slot:
        state = self._slots[slot]
        assert state is not None, f"sampler slot {slot} is free"
        return state

    def _shape(
        self,
        logits: torch.Tensor,
        rows: Sequence[SampleRow],
        slots: Sequence[_Slot],
        faults: dict[int, str] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the processors in place; returns the best id [R] of each row and whether its logit is finite [R].

        What processors say about rows without a token is put into `faults`.
        """
        acting = {number for slot in slots for number in slot.acting}
        for number in sorted(acting):
            acted = [
                ProcessorRow(i, row.slot, row.position, row.draft_prefix)
                for i, (row, slot) in enumerate(zip(rows, slots, strict=True))
                if number in slot.acting
            ]
            found = self._processors[number].apply(logits, acted)
            if found and faults is not None:
                faults.update(found)
        best_ids, largest = self._argmax(logits)
        return best_ids, largest.isfinite()

    def _draw(
        self,
        logits: torch.Tensor,
        rows: Sequence[SampleRow],
        slots: Sequence[_Slot],
        best_ids: torch.Tensor,
        drafted: Mapping[int, Drafted],
    ) -> torch.Tensor:
        """Ids [R]: `best_ids` for greedy rows, drawn ones for the others."""
        if drafted:
            best_ids = self._verify(logits, rows, slots, best_ids, drafted)
        random = [i for i, slot in enumerate(slots) if slot.is_random and i not in drafted]
        if not random:
            return best_ids
        uniform = self._uniforms(rows, slots, random, Purpose.SAMPLE)
        if self._kernels is not None:
            drawn = self._draw_by(self._kernels, logits, slots, random, uniform)
            if len(random) == len(slots):
                return drawn
            return best_ids.index_copy(0, upload(random, self._device), drawn)
        weights = self._softmax(logits, random)
        cut = [i for i in random if slots[i].is_cut]
        uncut = [i for i in random if not slots[i].is_cut]
        ids = best_ids.clone()
        if uncut:
            drawn = draw(_part(weights, random, uncut), _part(uniform, random, uncut))
            ids.index_copy_(0, upload(uncut, self._device), drawn)
        if cut:
            at = upload(cut, self._device)
            numbers_cut = _part(uniform, random, cut)
            self._truncate(
                _part(weights, random, cut),
                [rows[i].slot for i in cut],
                lambda ranking, kept, which: ids.index_copy_(
                    0, at[which], ranking.draw(kept, numbers_cut[which])
                ),
            )
        return ids

    def _draw_by(
        self,
        kernels: SamplingKernels,
        logits: torch.Tensor,
        slots: Sequence[_Slot],
        random: list[int],
        uniform: torch.Tensor,
    ) -> torch.Tensor:
        """Ids of the rows numbered `random`, without a look at the values."""
        wanted = [slots[i].params for i in random]
        return kernels.draw(
            _part(logits, range(len(logits)), random),
            uniform,
            upload([params.min_p for params in wanted], self._device, torch.float32),
            upload([params.top_k for params in wanted], self._device, torch.int32),
            upload([params.top_p for params in wanted], self._device, torch.float32),
        )

    def _verify(
        self,
        logits: torch.Tensor,
        rows: Sequence[SampleRow],
        slots: Sequence[_Slot],
        ids: torch.Tensor,
        drafted: Mapping[int, Drafted],
    ) -> torch.Tensor:
        """`ids` [R] with each drafted token that stands, or what replaces it."""
        at = list(drafted)
        drawn_from = [d.distribution for d in drafted.values() if d.distribution is not None]
        chosen = accept(
            self._final(logits, rows, slots, at),
            torch.stack(drawn_from),
            upload([drafted[i].token_id for i in at], self._device),
            self._uniforms(rows, slots, at, Purpose.ACCEPT),
            self._uniforms(rows, slots, at, Purpose.RESIDUAL),
        )
        return ids.index_copy(0, upload(at, self._device), chosen)

    def _final(
        self,
        logits: torch.Tensor,
        rows: Sequence[SampleRow],
        slots: Sequence[_Slot],
        wanted: list[int],
    ) -> torch.Tensor:
        """The distributions [W, V] that the rows numbered `wanted`, all of them random, are drawn from."""
        weights = self._softmax(logits, wanted)
        result = weights.clone()
        cut = [place for place, i in enumerate(wanted) if slots[i].is_cut]
        if cut:
            at = upload(cut, self._device)
            self._truncate(
                weights[at],
                [rows[wanted[place]].slot for place in cut],
                lambda ranking, kept, which: result.index_copy_(
                    0, at[which], ranking.distribution(kept)
                ),
            )
        return result

    def _uniforms(
        self,
        rows: Sequence[SampleRow],
        slots: Sequence[_Slot],
        wanted: Sequence[int],
        purpose: Purpose,
    ) -> torch.Tensor:
        """A number in [0, 1) for each of the rows numbered `wanted`."""
        numbers = uniforms(
            [slots[i].seed for i in wanted], [rows[i].position for i in wanted], purpose
        )
        return upload(numbers, self._device)

    def _softmax(self, logits: torch.Tensor, random: list[int]) -> torch.Tensor:
        """Probabilities of the rows numbered `random`, in the scratch memory."""
        part = _part(logits, range(len(logits)), random)
        if len(self._scratch) < len(part):
            self._scratch = torch.empty_like(part)
        return torch.softmax(part, dim=-1, out=self._scratch[: len(part)])

    def _truncate(
        self,
        probabilities: torch.Tensor,
        slots: Sequence[int],
        settle: Callable[[Ranking, torch.Tensor, torch.Tensor], object],
    ) -> None:
        """Rank and cut every row, deeper where needed; `settle(ranking, kept, rows)` gets the rows as they are done."""
        pending = torch.arange(len(slots), device=self._device)
        for depth in self._depths:
            here = [slots[i] for i in pending.tolist()] if len(pending) < len(slots) else slots
            part = probabilities if len(pending) == len(slots) else probabilities[pending]
            ranking = rank(part, depth)
            kept = torch.full_like(pending, self.vocab_size)
            is_done = torch.ones_like(pending, dtype=torch.bool)
            for truncation in self._truncations:
                kept = truncation.keep(ranking, kept, here)
                is_done &= ranking.is_known(kept)
            if depth == self.vocab_size:
                settle(ranking, kept, pending)
                return
            is_done &= ranking.is_settled(kept)
            settle(ranking.select(is_done), kept[is_done], pending[is_done])
            pending = pending[~is_done]
            if not len(pending):
                return


@dataclass(frozen=True, slots=True)
class _Slot:
    """What the sampler must know of a sequence at every step."""

    seed: int
    is_random: bool
    is_cut: bool  # some truncation acts
    params: SamplingParams
    acting: tuple[int, ...]  # numbers of the processors that act, in their order

    @property
    def num_logprobs(self) -> int | None:
        return self.params.logprobs


def _no_token(row: SampleRow) -> str:
    return f"the logits at position {row.position} are not finite"


def _part(values: torch.Tensor, numbers: Sequence[int], wanted: list[int]) -> torch.Tensor:
    """The rows of `values`, which are numbered `numbers`, that carry the numbers `wanted` (in the same order)."""
    if len(wanted) == len(numbers):
        return values
    place = {number: i for i, number in enumerate(numbers)}
    return values[upload([place[number] for number in wanted], values.device)]


def _unshaped(logits: torch.Tensor, wanted: list[int], slots: Sequence[_Slot]) -> torch.Tensor:
    """The rows `wanted` of the logits, safe from the processors: a copy only where one will act."""
    if len(wanted) < len(slots):
        return logits[upload(wanted, logits.device)]
    return logits.clone() if any(slot.acting for slot in slots) else logits
