"""Reported log probabilities: of the untouched logits, with ranks and alternatives, for outputs and for prompts."""

from __future__ import annotations

import pytest
import torch
from sampling_cases import sampler_for

from nonet.core.outputs import TokenLogprob
from nonet.core.sampling_params import SamplingParams
from nonet.sampling import logprobs as logprobs_module
from nonet.sampling.logprobs import prompt_logprobs
from nonet.sampling.samples import SampleRow


def plain(logits: torch.Tensor, token_id: int, num_top: int) -> TokenLogprob:
    """The definition, for one row [V]."""
    values = logits.double().log_softmax(-1)
    order = torch.sort(values, descending=True, stable=True).indices[:num_top].tolist()
    rank = int((values > values[token_id]).sum()) + 1
    top = [(i, float(values[i])) for i in order]
    return TokenLogprob(token_id, float(values[token_id]), rank, top)


def assert_close(actual: TokenLogprob | None, expected: TokenLogprob) -> None:
    assert actual is not None
    assert (actual.token_id, actual.rank) == (expected.token_id, expected.rank)
    assert actual.logprob == pytest.approx(expected.logprob, abs=1e-5)
    assert [i for i, _ in actual.top] == [i for i, _ in expected.top]
    assert [v for _, v in actual.top] == pytest.approx([v for _, v in expected.top], abs=1e-5)


def test_sampled_tokens_report_the_model_not_the_processors() -> None:
    params = SamplingParams(
        logprobs=4, temperature=0.3, top_k=3, logit_bias={9: 20.0}, frequency_penalty=2.0
    )
    logits = torch.randn(5, 700, generator=torch.Generator().manual_seed(0)) * 2
    sampler = sampler_for(params, 700, outputs=(9, 9, 4))
    sampled = sampler.sample(logits.clone(), [SampleRow(0, 4 + i) for i in range(5)])
    assert {one.token_id for one in sampled} == {9}
    for one, row in zip(sampled, logits, strict=True):
        assert_close(one.logprob, plain(row, one.token_id, 4))


def test_zero_alternatives_still_report_the_chosen_token() -> None:
    logits = torch.randn(1, 50)
    (sampled,) = sampler_for(SamplingParams(logprobs=0), 50).sample(
        logits.clone(), [SampleRow(0, 1)]
    )
    assert_close(sampled.logprob, plain(logits[0], sampled.token_id, 0))


def test_none_reports_nothing() -> None:
    (sampled,) = sampler_for(SamplingParams(), 50).sample(torch.randn(1, 50), [SampleRow(0, 1)])
    assert sampled.logprob is None


def test_alternatives_of_equal_logits_come_by_id() -> None:
    logits = torch.randint(0, 3, (20, 900), generator=torch.Generator().manual_seed(6)).float()
    found = prompt_logprobs(logits, list(range(20)), 64)
    for i, one in enumerate(found):
        assert_close(one, plain(logits[i], i, 64))


@pytest.mark.parametrize("num_top", [0, 1, 5, 64])
def test_prompt_logprobs_in_parts(num_top: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(23, 300, generator=torch.Generator().manual_seed(4)) * 3
    targets = [(7 * i) % 300 for i in range(23)]
    whole = prompt_logprobs(logits, targets, num_top)
    monkeypatch.setattr(logprobs_module, "_VALUES_AT_ONCE", 1000)
    assert prompt_logprobs(logits, targets, num_top) == whole
    for one, row, target in zip(whole, logits, targets, strict=True):
        assert_close(one, plain(row, target, num_top))


def test_no_targets_no_logprobs() -> None:
    assert prompt_logprobs(torch.zeros(0, 10), [], 3) == []


def test_more_alternatives_than_tokens() -> None:
    (found,) = prompt_logprobs(torch.tensor([[0.0, 1.0, 2.0]]), [1], 10)
    assert_close(found, plain(torch.tensor([0.0, 1.0, 2.0]), 1, 10))
