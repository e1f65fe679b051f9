"""The sampler as a whole: independence of the batch, seeds, isolation of bad rows, preemption, what is skipped."""

from __future__ import annotations

import random

import pytest
import torch
from sampling_cases import CPU, label, sampler_for, sequence

from nonet.core.sampling_params import SamplingParams
from nonet.sampling import sampler as sampler_module
from nonet.sampling.sampler import Sampler
from nonet.sampling.samples import SampleRow

VOCAB = 3000
GREEDY = SamplingParams(temperature=0.0)

MIX = [
    GREEDY,
    SamplingParams(logprobs=3),
    SamplingParams(temperature=0.7, top_p=0.9),
    SamplingParams(top_k=5, logprobs=0),
    SamplingParams(min_p=0.05, temperature=1.4),
    SamplingParams(repetition_penalty=1.2, frequency_penalty=0.3),
    SamplingParams(temperature=0.0, presence_penalty=1.0, logprobs=2),
    SamplingParams(logit_bias={5: 4.0}, min_tokens=9, stop_token_ids=[7, 8]),
]


def test_a_row_alone_equals_the_row_in_a_batch() -> None:
    count = 64
    logits = torch.randn(count, VOCAB, generator=torch.Generator().manual_seed(2)) * 4
    sequences = [
        sequence(MIX[i % len(MIX)], prompt=(i, i + 1), outputs=(i,), seed=i) for i in range(count)
    ]
    order = list(range(count))
    random.Random(4).shuffle(order)
    batch = Sampler(VOCAB, count, CPU)
    for slot, i in enumerate(order):
        batch.add(slot, sequences[i])
    together = batch.sample(logits[order].clone(), [SampleRow(s, 3) for s in range(count)])
    for slot, i in enumerate(order):
        alone = Sampler(VOCAB, 2, CPU)
        alone.add(1, sequences[i])
        assert alone.sample(logits[i : i + 1].clone(), [SampleRow(1, 3)]) == [together[slot]]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("vocab_size", [49152, 50257])
def test_real_vocabularies_are_batch_independent(threads: int, vocab_size: int) -> None:
    logits = torch.randn(9, vocab_size, generator=torch.Generator().manual_seed(2)) * 3
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for params in (SamplingParams(logprobs=2), SamplingParams(temperature=0.8, top_p=0.95)):
            sampler = sampler_for(params, vocab_size)
            rows = [SampleRow(0, position) for position in range(9)]
            together = sampler.sample(logits.clone(), rows)
            stated = sampler.final_probabilities(logits.clone(), rows)
            for i, row in enumerate(rows):
                assert sampler.sample(logits[i : i + 1].clone(), [row]) == [together[i]]
                alone = sampler.final_probabilities(logits[i : i + 1].clone(), [row])
                assert torch.equal(alone[0], stated[i])
    finally:
        torch.set_num_threads(before)


def test_seed_and_position_decide() -> None:
    logits = torch.zeros(20, VOCAB)
    rows = [SampleRow(0, position) for position in range(20)]
    same = [
        sampler_for(SamplingParams(), VOCAB, seed=3).sample(logits.clone(), rows) for _ in range(2)
    ]
    other = sampler_for(SamplingParams(), VOCAB, seed=4).sample(logits.clone(), rows)
    assert same[0] == same[1]
    assert len({one.token_id for one in same[0]}) > 15
    assert sum(a == b for a, b in zip(same[0], other, strict=True)) < 3


@pytest.mark.parametrize(
    "params", [GREEDY, SamplingParams(top_k=1), SamplingParams(top_p=0.0)], ids=label
)
def test_greedy_takes_the_lowest_id_of_a_tie(params: SamplingParams) -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, [40, 39, 2999]] = 2.0
    (sampled,) = sampler_for(params, VOCAB).sample(logits, [SampleRow(0, 1)])
    assert sampled.token_id == 39


@pytest.mark.parametrize("params", MIX, ids=label)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_row_fails_alone(params: SamplingParams, bad: float) -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(1))
    rows = [SampleRow(0, 1), SampleRow(0, 2), SampleRow(0, 3)]
    good = sampler_for(params, VOCAB).sample(logits.clone(), rows)
    logits[1] = bad if bad < 0 else logits[1]
    logits[1, 1234] = bad
    sampled = sampler_for(params, VOCAB).sample(logits, rows)
    assert [sampled[0], sampled[2]] == [good[0], good[2]]
    assert sampled[1].token_id == -1
    assert sampled[1].error == "the logits at position 2 are not finite"
    assert sampled[1].logprob is None


@pytest.mark.parametrize("params", MIX, ids=label)
def test_a_preempted_sequence_continues_as_if_nothing_happened(params: SamplingParams) -> None:
    logits = torch.randn(12, VOCAB, generator=torch.Generator().manual_seed(8)) * 3
    prompt = (7, 8, 9)

    def run(preempt_after: set[int]) -> list[int]:
        sampler = Sampler(VOCAB, 2, CPU)
        slot, outputs = 0, []
        sampler.add(slot, sequence(params, prompt=prompt))
        for step in range(12):
            row = SampleRow(slot, len(prompt) + step)
            (sampled,) = sampler.sample(logits[step : step + 1].clone(), [row])
            outputs.append(sampled.token_id)
            sampler.append(slot, [sampled.token_id])
            if step in preempt_after:
                sampler.remove(slot)
                slot = 1 - slot
                sampler.add(slot, sequence(params, prompt=prompt, outputs=tuple(outputs)))
        return outputs

    assert run({0, 4, 5}) == run(set())


def test_penalties_see_the_draft_prefix() -> None:
    params = SamplingParams(repetition_penalty=1.3, frequency_penalty=0.5, presence_penalty=0.2)
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    drafted = sampler_for(params, 50, prompt=(1, 2), outputs=(3,))
    known = sampler_for(params, 50, prompt=(1, 2), outputs=(3, 3, 9, 9, 2))
    row = SampleRow(0, 7, draft_prefix=(3, 9, 9, 2))
    expected = known.final_probabilities(logits.clone(), [SampleRow(0, 7)])
    assert torch.equal(drafted.final_probabilities(logits.clone(), [row]), expected)
    # Looking does not count: without the prefix the row is as before, and differs.
    fresh = sampler_for(params, 50, prompt=(1, 2), outputs=(3,))
    again = drafted.final_probabilities(logits.clone(), [SampleRow(0, 3)])
    assert torch.equal(again, fresh.final_probabilities(logits.clone(), [SampleRow(0, 3)]))
    assert not torch.equal(again, expected)


def test_penalties_hold_more_tokens_than_they_first_have_room_for() -> None:
    params = SamplingParams(repetition_penalty=2.0, temperature=0.0)
    sampler = sampler_for(params, VOCAB, prompt=tuple(range(1000)))
    sampler.append(0, list(range(1000, 2500)))
    logits = torch.linspace(2.0, 1.5, VOCAB)[None].clone()
    assert sampler.sample(logits, [SampleRow(0, 2500)])[0].token_id == 2500


def test_min_tokens_forbids_every_end_until_then() -> None:
    params = SamplingParams(temperature=0.0, min_tokens=2, stop_token_ids=[4])
    logits = torch.tensor([[0.0, 1.0, 5.0, 4.0, 3.0]])
    sampler = sampler_for(params, 5, prompt=(1, 1, 1), eos_ids=(2, 3, 70))
    ids = [
        sampler.sample(logits.clone(), [SampleRow(0, position)])[0].token_id
        for position in (3, 4, 5)
    ]
    assert ids == [1, 1, 2]


def test_min_tokens_leaves_an_ignored_end_alone() -> None:
    params = SamplingParams(temperature=0.0, min_tokens=2, ignore_eos=True)
    sampler = sampler_for(params, 3, eos_ids=(2,))
    (sampled,) = sampler.sample(torch.tensor([[0.0, 1.0, 5.0]]), [SampleRow(0, 1)])
    assert sampled.token_id == 2


def test_logit_bias_is_added() -> None:
    params = SamplingParams(temperature=0.0, logit_bias={0: 6.0, 2: -100.0})
    (sampled,) = sampler_for(params, 3).sample(torch.tensor([[0.0, 5.0, 9.0]]), [SampleRow(0, 1)])
    assert sampled.token_id == 0


def test_greedy_rows_touch_nothing_but_the_argmax(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a greedy batch came here")

    for name in ("uniforms", "rank", "draw", "measure", "ProcessorRow"):
        monkeypatch.setattr(sampler_module, name, refuse)
    logits = torch.randn(8, VOCAB)
    before = logits.clone()
    sampled = sampler_for(GREEDY, VOCAB).sample(logits, [SampleRow(0, i) for i in range(8)])
    assert [one.token_id for one in sampled] == before.argmax(-1).tolist()
    assert torch.equal(logits, before)


def test_a_slot_is_taken_once_and_freed_whole() -> None:
    sampler = sampler_for(
        SamplingParams(frequency_penalty=1.0, top_p=0.5, logit_bias={1: 1.0}), VOCAB
    )
    with pytest.raises(AssertionError, match="slot 0 is taken"):
        sampler.add(0, sequence(GREEDY))
    sampler.remove(0)
    with pytest.raises(AssertionError, match="slot 0 is free"):
        sampler.append(0, [1])
    sampler.add(0, sequence(SamplingParams()))
    logits = torch.randn(1, VOCAB)
    stated = sampler.final_probabilities(logits.clone(), [SampleRow(0, 1)])
    assert torch.equal(stated, logits.softmax(-1))


def test_the_distribution_of_a_greedy_row_is_one_hot() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    stated = sampler_for(GREEDY, 3).final_probabilities(logits, [SampleRow(0, 1)])
    assert stated.tolist() == [[0.0, 1.0, 0.0]]
