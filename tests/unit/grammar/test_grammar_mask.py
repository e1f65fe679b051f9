"""The processor: drafts, batches, preemption, failures; and wrong variants of it that the tests must reject."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from grammar_cases import EOS, EOT, VOCAB, compiler, ids, sampler_with, sequence, tokenizer

from nonet.core.grammar import Grammar
from nonet.grammar import llguidance
from nonet.grammar.base import Masks, Matcher
from nonet.grammar.llguidance import LLGuidance, _Matcher
from nonet.sampling.processors import grammar as processor
from nonet.sampling.samples import Sampled, SampleRow

SCHEMA = Grammar(
    "json_schema",
    '{"type":"object","properties":{"a":{"enum":[12,true]},"b":{"type":"array","items":{"const":"no"}}},'
    '"required":["a","b"],"additionalProperties":false}',
)
GRAMMARS = [
    SCHEMA,
    Grammar("choice", '["true", "no", "12"]'),
    Grammar("regex", "(no|12)*"),
    Grammar("lark", 'start: "{" ("true" | "false")+ "}"'),
    None,
]


def logits(rows: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def greedy_text(text: str) -> list[int]:
    return [*ids(text), EOS]


def verify_drafts(drafts: Sequence[int], seed: int = 5, known: Sequence[int] = ()) -> None:
    """Each drafted position's distribution is that of a sequence that really has the drafts, in any order of rows."""
    raw = logits(len(drafts) + 1)
    drafted = sampler_with(sequence(SCHEMA, known, seed=seed))
    base = 1 + len(known)
    rows = [SampleRow(0, base + i, tuple(drafts[:i])) for i in range(len(drafts) + 1)]
    together = drafted.final_probabilities(raw.clone(), rows)
    again = drafted.final_probabilities(raw.flip(0).clone(), rows[::-1]).flip(0)
    assert torch.equal(together, again)
    for i, row in enumerate(rows):
        grown = sampler_with(sequence(SCHEMA, [*known, *drafts[:i]], seed=seed))
        alone = grown.final_probabilities(raw[i : i + 1].clone(), [SampleRow(0, row.position)])
        assert torch.equal(alone[0], together[i]), i
    grown = sampler_with(sequence(SCHEMA, known, seed=seed))
    drafted.append(0, drafts[:1])
    grown.append(0, drafts[:1])
    row = SampleRow(0, base + 1)
    after = [one.final_probabilities(raw[:1].clone(), [row]) for one in (drafted, grown)]
    assert torch.equal(after[0], after[1])


TEXT = greedy_text('{"a": 12, "b": ["no"]}')


@pytest.mark.parametrize("known", [0, 1, 4, len(TEXT) - 3])
def test_drafts_are_masked_as_if_they_stood(known: int) -> None:
    verify_drafts(TEXT[known : known + 4], known=TEXT[:known])


def test_drafts_after_an_end_and_illegal_ones_leave_their_row_alone() -> None:
    raw = logits(4)
    sampler = sampler_with(sequence(Grammar("choice", '["no", "12"]')))
    bad = ids("t")[0]
    rows = [SampleRow(0, 1), SampleRow(0, 2, (bad,)), SampleRow(0, 3, (ids("no")[0], EOS, bad))]
    found = sampler.final_probabilities(raw[:3].clone(), rows)
    assert found[0, bad] == 0.0
    assert torch.equal(found[1:], raw[1:3].softmax(-1))
    again = sampler.final_probabilities(raw[:1].clone(), rows[:1])
    assert torch.equal(again, found[:1])


def run_alone(grammar: Grammar | None, seed: int, steps: int, **params: object) -> list[int]:
    sampler = sampler_with(sequence(grammar, seed=seed, **params))
    outputs: list[int] = []
    while len(outputs) < steps and (not outputs or outputs[-1] not in (EOS, EOT)):
        row = SampleRow(0, 1 + len(outputs))
        (one,) = sampler.sample(logits(1, seed * 1000 + len(outputs)), [row])
        assert one.error is None
        outputs.append(one.token_id)
        sampler.append(0, [one.token_id])
    return outputs


@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_of_mixed_grammars_equals_each_alone(threads: int) -> None:
    with pytest.MonkeyPatch.context() as patch:  # threads from the first mask on
        patch.setattr(llguidance, "WORTH_THREADS_S", -1.0)
        check_mixed_batch(threads)


def check_mixed_batch(threads: int) -> None:
    seeds = range(24)
    grammars = [GRAMMARS[seed % len(GRAMMARS)] for seed in seeds]
    params = [{"temperature": 0.0} if seed % 3 else {"top_p": 0.9} for seed in seeds]
    sequences = [sequence(g, seed=s, **p) for g, s, p in zip(grammars, seeds, params, strict=True)]
    sampler = sampler_with(*sequences, compiler_=compiler(threads))
    outputs: list[list[int]] = [[] for _ in seeds]
    rng = random.Random(1)
    for _ in range(60):
        live = [s for s in seeds if len(outputs[s]) < 12 and not {EOS, EOT} & set(outputs[s][-1:])]
        part = rng.sample(live, min(len(live), rng.randrange(1, 25)))
        if not part:
            break
        raw = torch.cat([logits(1, s * 1000 + len(outputs[s])) for s in part])
        rows = [SampleRow(s, 1 + len(outputs[s])) for s in part]
        for s, one in zip(part, sampler.sample(raw, rows), strict=True):
            assert one.error is None
            outputs[s].append(one.token_id)
            sampler.append(s, [one.token_id])
    for s in seeds:
        assert outputs[s] == run_alone(grammars[s], s, len(outputs[s]), **params[s]), s


def test_a_preempted_sequence_continues() -> None:
    sampler = sampler_with(sequence(SCHEMA))
    for token_id in TEXT[:3]:
        sampler.append(0, [token_id])
    raw = logits(1)
    expected = sampler.final_probabilities(raw.clone(), [SampleRow(0, 4)])
    sampler.remove(0)
    sampler.add(0, sequence(SCHEMA, TEXT[:3]))
    assert torch.equal(sampler.final_probabilities(raw.clone(), [SampleRow(0, 4)]), expected)


def test_masked_tokens_stay_masked_whatever_else_acts() -> None:
    legal = {ids(text)[0] for text in ("t", "tr", "true", "n", "no", "1", "12")}
    everything = {
        "temperature": 5.0, "top_p": 0.99, "top_k": 200, "min_p": 1e-6, "repetition_penalty": 0.5,
        "frequency_penalty": -2.0, "presence_penalty": -2.0, "logit_bias": {ids("x")[0]: 100.0},
    }  # fmt: skip
    sampler = sampler_with(sequence(GRAMMARS[1], **everything))
    found = sampler.final_probabilities(logits(1), [SampleRow(0, 1)])[0]
    assert set(found.nonzero().flatten().tolist()) <= legal
    assert found.sum() == pytest.approx(1.0)


def failed(sampled: Sampled, says: str) -> bool:
    return sampled.token_id == -1 and sampled.error is not None and says in sampled.error


def test_a_row_without_a_legal_token_fails_alone_and_says_so() -> None:
    """Token 0 to 255 are forbidden by a model that gives them -inf; then by a grammar that cannot be had."""
    raw = logits(3)
    raw[0] = float("-inf")
    raw[0, -1] = 1.0  # only an id that stands for nothing
    hopeless = Grammar("regex", "(")
    sampler = sampler_with(sequence(SCHEMA), sequence(hopeless), sequence(None))
    sampled = sampler.sample(raw, [SampleRow(0, 1), SampleRow(1, 1), SampleRow(2, 1)])
    assert failed(sampled[0], "position 1 are not finite")
    assert failed(sampled[1], "the grammar cannot go on at position 1: the grammar cannot be used")
    assert sampled[2].error is None


def test_a_token_taken_against_the_grammar_ends_the_row() -> None:
    sampler = sampler_with(sequence(SCHEMA), sequence(SCHEMA))
    sampler.append(0, ids("t"))
    sampled = sampler.sample(logits(2), [SampleRow(0, 2), SampleRow(1, 1)])
    assert failed(sampled[0], f"token {ids('t')[0]} was taken although the grammar forbids it")
    assert sampled[1].error is None


def rollback_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_Matcher, "rollback", lambda self, num_tokens: None)


def rollback_one_short(patch: pytest.MonkeyPatch) -> None:
    right = _Matcher.rollback
    patch.setattr(_Matcher, "rollback", lambda self, num: right(self, num - 1))


def end_not_undone(patch: pytest.MonkeyPatch) -> None:
    def rollback(self: _Matcher, num_tokens: int) -> None:
        self.inner.rollback(num_tokens - self._num_ends)

    patch.setattr(_Matcher, "rollback", rollback)


def mask_shifted_by_one_token(patch: pytest.MonkeyPatch) -> None:
    right = processor._forbidden

    def shifted(masks: Masks, vocab_size: int, device: torch.device) -> torch.Tensor:
        return right(masks, vocab_size, device).roll(1, dims=1)

    patch.setattr(processor, "_forbidden", shifted)


def masks_in_another_order(patch: pytest.MonkeyPatch) -> None:
    right = LLGuidance.fill

    def fill(self: LLGuidance, wanted: Sequence[tuple[Matcher, int]], masks: Masks) -> None:
        rows = [row for _, row in wanted][::-1]
        right(self, [(m, r) for (m, _), r in zip(wanted, rows, strict=True)], masks)

    patch.setattr(LLGuidance, "fill", fill)


def drafts_not_walked(patch: pytest.MonkeyPatch) -> None:
    right = processor._Walk.__init__

    def start(
        self: processor._Walk, place: object, stops: list[tuple[tuple[int, ...], int]]
    ) -> None:
        right(self, place, [((), number) for _, number in stops])  # type: ignore[arg-type]

    patch.setattr(processor._Walk, "__init__", start)


def outputs_forgotten_on_return(patch: pytest.MonkeyPatch) -> None:
    right = processor.GrammarMask.add

    def add(self: processor.GrammarMask, slot: int, new: object) -> bool:
        acts = right(self, slot, new)  # type: ignore[arg-type]
        self._places[slot].pending.clear()
        return acts

    patch.setattr(processor.GrammarMask, "add", add)


def check_drafts() -> None:
    verify_drafts(TEXT[4:8], known=TEXT[:4])
    verify_drafts(TEXT[-3:], known=TEXT[:-3])


def check_batch() -> None:
    test_a_batch_of_mixed_grammars_equals_each_alone(1)


def check_single() -> None:
    outputs = run_alone(GRAMMARS[1], 3, 12)
    assert tokenizer().decode(outputs) in ("true", "no", "12")


MUTANTS: dict[Callable[[pytest.MonkeyPatch], None], Callable[[], None]] = {
    rollback_forgotten: check_drafts,
    rollback_one_short: check_drafts,
    end_not_undone: check_drafts,
    drafts_not_walked: check_drafts,
    mask_shifted_by_one_token: check_single,
    masks_in_another_order: check_batch,
    outputs_forgotten_on_return: test_a_preempted_sequence_continues,
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutants_are_told_apart(mutant: Callable[[pytest.MonkeyPatch], None]) -> None:
    check = MUTANTS[mutant]
    check()
    with pytest.MonkeyPatch.context() as patch:
        mutant(patch)
        with pytest.raises((AssertionError, KeyError, OverflowError)):
            check()
