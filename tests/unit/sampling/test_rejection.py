"""Strings made with drafts have the exact distribution, however bad the drafts; wrong rules are told apart."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from sampling_cases import p_value, sampler_for

from nonet.core.sampling_params import SamplingParams
from nonet.sampling import sampler as sampler_module
from nonet.sampling.acceptance.rejection import Drafted, accept
from nonet.sampling.random import Purpose, uniforms
from nonet.sampling.rowwise import draw
from nonet.sampling.samples import SampleRow

COUNT = 50_000
FEW = 8_000  # enough to tell a wrong rule
VOCAB = 8
DRAFTS = 2
LENGTH = 3

CASES = {
    "temperature 1": SamplingParams(),
    "temperature 0.7, top-p 0.9": SamplingParams(temperature=0.7, top_p=0.9),
    "top-k 5": SamplingParams(top_k=5),
    "penalties": SamplingParams(temperature=0.9, presence_penalty=1.5, frequency_penalty=0.5),
}


def table(seed: int) -> torch.Tensor:
    """Logits [VOCAB, VOCAB] of a language in which a token depends on the one before it."""
    return torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(seed)) * 1.3


TARGET = table(1)
ADVERSARY = -TARGET * 1.2 + 0.3 * table(2)


def final(logits: Sequence[float], params: SamplingParams, outputs: Sequence[int]) -> np.ndarray:
    """What the next token is drawn from, written out in float64."""
    values = np.array(logits, dtype=np.float64)
    for token_id, bias in (params.logit_bias or {}).items():
        values[token_id] += bias
    for token_id in set(outputs):
        values[token_id] -= params.presence_penalty
        values[token_id] -= params.frequency_penalty * list(outputs).count(token_id)
    values = np.exp(values / params.temperature)
    values /= values.sum()
    order = sorted(range(VOCAB), key=lambda token_id: -values[token_id])
    order = [token_id for token_id in order if values[token_id] >= params.min_p * values[order[0]]]
    order = order[: params.top_k or None]
    kept, mass = [], 0.0
    for token_id in order:
        if mass >= params.top_p * values[order].sum():
            break
        kept.append(token_id)
        mass += values[token_id]
    result = np.zeros(VOCAB)
    result[kept] = values[kept] / mass
    return result


def enumerated(params: SamplingParams, target: torch.Tensor = TARGET) -> torch.Tensor:
    """The probability of each string of LENGTH tokens after token 0."""
    rows = target.tolist()
    found = []
    for string in itertools.product(range(VOCAB), repeat=LENGTH):
        chance = 1.0
        for place, token_id in enumerate(string):
            before = string[place - 1] if place else 0
            chance *= final(rows[before], params, string[:place])[token_id]
        found.append(chance)
    return torch.tensor(found, dtype=torch.float64)


class Speculation:
    """Many independent runs in one slot, far apart in position: draft, verify, and draw what is then missing."""

    def __init__(self, params: SamplingParams, draft: torch.Tensor, target: torch.Tensor = TARGET):
        self.sampler = sampler_for(params, VOCAB, prompt=(0,))
        self.draft, self.target = draft, target
        self.num_drafted = self.num_stood = 0

    def strings(self, count: int) -> torch.Tensor:
        """Numbers [count] of the strings, as `enumerated` orders them."""
        outputs: list[list[int]] = [[] for _ in range(count)]
        self._round(outputs, list(range(count)))
        while going := [i for i, output in enumerate(outputs) if len(output) < LENGTH]:
            rows = self._rows(outputs, going, [[] for _ in going], is_target=True)
            last = [outputs[i][-1] for i in going]
            for i, sampled in zip(going, self.sampler.sample(self.target[last], rows), strict=True):
                outputs[i].append(sampled.token_id)
        return torch.tensor(
            [sum(t * VOCAB**p for t, p in zip(o, (2, 1, 0), strict=False)) for o in outputs]
        )

    def _round(self, outputs: list[list[int]], going: list[int]) -> None:
        chains: list[list[Drafted]] = [[] for _ in going]
        for _ in range(DRAFTS):
            rows = self._rows(outputs, going, chains)
            last = [_last(outputs[i], chain) for i, chain in zip(going, chains, strict=True)]
            logits = self.draft[last]
            for chain, drafted in zip(chains, self.sampler.draft(logits, rows), strict=True):
                assert drafted is not None
                chain.append(self.as_reported(drafted))
        self._verify(outputs, going, chains)

    def _verify(
        self, outputs: list[list[int]], going: list[int], chains: list[list[Drafted]]
    ) -> None:
        rows, last, drafted = [], [], {}
        for place in range(DRAFTS + 1):
            cut = [chain[:place] for chain in chains]
            for chain in chains if place < DRAFTS else ():
                drafted[len(drafted)] = chain[place]
            rows += self._rows(outputs, going, cut, is_target=True)
            seen = cut if place < DRAFTS else [self.bonus_after(chain) for chain in chains]
            last += [_last(outputs[i], chain) for i, chain in zip(going, seen, strict=True)]
        sampled = self.sampler.sample(self.target[last], rows, drafted)
        for number, (i, chain) in enumerate(zip(going, chains, strict=True)):
            for place in range(DRAFTS + 1):
                token_id = sampled[place * len(going) + number].token_id
                outputs[i].append(token_id)
                if place == DRAFTS or token_id != chain[place].token_id:
                    break
            self.num_stood += place
            self.num_drafted += min(DRAFTS, place + 1)

    def _rows(
        self,
        outputs: list[list[int]],
        going: list[int],
        chains: list[list[Drafted]],
        is_target: bool = False,
    ) -> list[SampleRow]:
        rows = []
        for i, chain in zip(going, chains, strict=True):
            prefix = (*outputs[i], *(drafted.token_id for drafted in chain))
            rows.append(SampleRow(0, 1 + 10 * i + len(prefix), self.prefix(prefix, is_target)))
        return rows

    # What mutants change.

    def as_reported(self, drafted: Drafted) -> Drafted:
        return drafted

    def prefix(self, prefix: tuple[int, ...], is_target: bool) -> tuple[int, ...]:
        return prefix

    def bonus_after(self, chain: list[Drafted]) -> list[Drafted]:
        return chain


def _last(output: list[int], chain: list[Drafted]) -> int:
    return chain[-1].token_id if chain else output[-1] if output else 0


@pytest.mark.parametrize("name", CASES)
def test_an_adversarial_draft_changes_nothing(name: str) -> None:
    params = CASES[name]
    run = Speculation(params, ADVERSARY)
    count = COUNT // 2 if params.needs_penalties else COUNT  # penalties are slow one by one
    assert p_value(run.strings(count), enumerated(params)) > 0.001
    assert run.num_stood / run.num_drafted < 0.5, "the draft was meant to be bad"


def test_acceptance_is_the_overlap_of_the_distributions() -> None:
    """The share of first drafts that stand, against the sum of min(p, q), within four standard errors."""
    run = Speculation(SamplingParams(), ADVERSARY)
    rows = [SampleRow(0, 10 * i + 1) for i in range(COUNT)]
    drafts = run.sampler.draft(ADVERSARY[:1].repeat(COUNT, 1), rows)
    known = {i: drafted for i, drafted in enumerate(drafts) if drafted is not None}
    sampled = run.sampler.sample(TARGET[:1].repeat(COUNT, 1), rows, known)
    stood = np.mean([one.token_id == known[i].token_id for i, one in enumerate(sampled)])
    overlap = float(torch.minimum(TARGET[0].softmax(0), ADVERSARY[0].softmax(0)).sum())
    assert abs(stood - overlap) < 4 * (overlap * (1 - overlap) / COUNT) ** 0.5


def test_a_perfect_draft_always_stands() -> None:
    params = SamplingParams(temperature=0.7, top_p=0.9)
    run = Speculation(params, TARGET)
    assert p_value(run.strings(FEW), enumerated(params)) > 0.001
    assert run.num_stood == run.num_drafted


def test_a_draft_of_impossible_tokens_never_stands() -> None:
    odd, even = torch.arange(VOCAB) % 2 == 1, torch.arange(VOCAB) % 2 == 0
    target = TARGET.masked_fill(odd, float("-inf"))
    run = Speculation(SamplingParams(), TARGET.masked_fill(even, float("-inf")), target)
    assert p_value(run.strings(FEW), enumerated(SamplingParams(), target)) > 0.001
    assert run.num_stood == 0


def test_rejection_alone_on_made_up_numbers() -> None:
    """p(x) / q(x) = 1/2, so x stands below 0.5; above it the residual is all on token 2."""
    target = torch.tensor([[0.25, 0.25, 0.5]])
    draft = torch.tensor([[0.5, 0.25, 0.25]])
    ids = torch.tensor([0])
    residual = torch.tensor([0.9], dtype=torch.float64)
    for uniform, expected in ((0.0, 0), (0.49, 0), (0.5, 2), (0.99, 2)):
        chosen = accept(target, draft, ids, torch.tensor([uniform], dtype=torch.float64), residual)
        assert chosen.tolist() == [expected]


def test_equal_distributions_leave_something_to_draw() -> None:
    """Rounding may reject what is certain; the token is then drawn from p."""
    target = torch.tensor([[0.5, 0.5]])
    draft = torch.tensor([[0.5000001, 0.5]])
    one = torch.tensor([0.99999999], dtype=torch.float64)
    assert accept(target, draft, torch.tensor([0]), one, one).tolist() == [1]


def test_greedy_guesses_are_certain_and_broken_ones_are_none() -> None:
    sampler = sampler_for(SamplingParams(temperature=0.0), VOCAB)
    logits = TARGET[:2].clone()
    logits[1] = float("nan")
    good, bad = sampler.draft(logits, [SampleRow(0, 1), SampleRow(0, 2)])
    assert good == Drafted(int(TARGET[0].argmax()), None)
    assert bad is None


def test_a_broken_row_that_was_drafted_fails_alone() -> None:
    sampler = sampler_for(SamplingParams(logprobs=1), VOCAB)
    rows = [SampleRow(0, 1), SampleRow(0, 2)]
    drafts = dict(enumerate(sampler.draft(ADVERSARY[:2].clone(), rows)))
    logits = TARGET[:2].clone()
    logits[0, 3] = float("nan")
    broken, sound = sampler.sample(logits, rows, drafts)
    assert broken.error is not None
    assert sound.error is None
    assert sound.logprob is not None
    assert sound.logprob.logprob == pytest.approx(
        float(TARGET[1].log_softmax(0)[sound.token_id]), abs=1e-5
    )


# Wrong rules: each must be rejected by the test above.


class TemperatureOnTheTargetOnly(Speculation):
    def as_reported(self, drafted: Drafted) -> Drafted:
        assert drafted.distribution is not None
        flat = drafted.distribution.log().mul(0.7).softmax(0)
        return replace(drafted, distribution=flat)


class PenaltiesWithoutTheDraftedTokens(Speculation):
    def prefix(self, prefix: tuple[int, ...], is_target: bool) -> tuple[int, ...]:
        return () if is_target else prefix


class BonusFromTheLastDraftsRow(Speculation):
    def bonus_after(self, chain: list[Drafted]) -> list[Drafted]:
        return chain[:-1]


@pytest.mark.parametrize(
    ("name", "mutant", "draft"),
    [
        ("temperature 0.7, top-p 0.9", TemperatureOnTheTargetOnly, ADVERSARY),
        ("penalties", PenaltiesWithoutTheDraftedTokens, ADVERSARY),
        ("temperature 1", BonusFromTheLastDraftsRow, TARGET + 0.3 * table(5)),
    ],
)
def test_a_wrong_step_is_rejected(
    name: str, mutant: type[Speculation], draft: torch.Tensor
) -> None:
    params = CASES[name]
    assert p_value(mutant(params, draft).strings(FEW), enumerated(params)) < 1e-6


Rule = Callable[..., torch.Tensor]


def residual_not_scaled(
    target: torch.Tensor, draft: torch.Tensor, ids: torch.Tensor, first: torch.Tensor, second: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    chosen = accept(target, draft, ids, first, second)
    missing = (target - draft).clamp(min=0).double().cumsum(-1)
    unscaled = (missing <= second[:, None]).sum(-1).clamp(max=VOCAB - 1)
    return torch.where(chosen == ids, chosen, unscaled)


def inequality_reversed(
    target: torch.Tensor, draft: torch.Tensor, ids: torch.Tensor, first: torch.Tensor, second: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    p, q = (values.gather(1, ids[:, None]).squeeze(1) for values in (target, draft))
    return torch.where(first * p < q, ids, draw((target - draft).clamp(min=0), second))


def residual_is_the_target(
    target: torch.Tensor, draft: torch.Tensor, ids: torch.Tensor, first: torch.Tensor, second: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    chosen = accept(target, draft, ids, first, second)
    return torch.where(chosen == ids, chosen, draw(target, second))


def q_of_the_wrong_row(
    target: torch.Tensor, draft: torch.Tensor, ids: torch.Tensor, first: torch.Tensor, second: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    return accept(target, draft.roll(len(draft) // DRAFTS, 0), ids, first, second)


def everything_stands(
    target: torch.Tensor, draft: torch.Tensor, ids: torch.Tensor, first: torch.Tensor, second: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    return ids


def one_number_for_both(
    target: torch.Tensor, draft: torch.Tensor, ids: torch.Tensor, first: torch.Tensor, second: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    return accept(target, draft, ids, first, first)


@pytest.mark.parametrize(
    "rule",
    [
        residual_not_scaled,
        inequality_reversed,
        residual_is_the_target,
        q_of_the_wrong_row,
        everything_stands,
        one_number_for_both,
    ],
)
def test_a_wrong_rule_is_rejected(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler_module, "accept", rule)
    params = SamplingParams()
    run = Speculation(params, ADVERSARY)
    assert p_value(run.strings(FEW), enumerated(params)) < 1e-6


def test_one_stream_for_drafts_and_acceptance_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def shared(seeds: Sequence[int], positions: Sequence[int], purpose: Purpose) -> np.ndarray:
        return uniforms(seeds, positions, Purpose.DRAFT if purpose == Purpose.ACCEPT else purpose)

    monkeypatch.setattr(sampler_module, "uniforms", shared)
    run = Speculation(SamplingParams(), ADVERSARY)
    assert p_value(run.strings(FEW), enumerated(SamplingParams())) < 1e-6


def test_a_row_alone_equals_the_row_in_a_batch() -> None:
    sampler = sampler_for(SamplingParams(temperature=0.8, top_p=0.95), VOCAB)
    rows = [SampleRow(0, position) for position in range(64)]
    at = torch.arange(64) % VOCAB
    drafts = sampler.draft(ADVERSARY[at], rows)
    known = {i: drafted for i, drafted in enumerate(drafts) if drafted is not None and i % 3}
    together = sampler.sample(TARGET[at], rows, known)
    for i, row in enumerate(rows):
        alone = sampler.draft(ADVERSARY[at[i : i + 1]], [row])[0]
        assert alone is not None
        assert drafts[i] is not None
        assert alone.token_id == drafts[i].token_id
        mine = {0: alone} if i in known else {}
        assert sampler.sample(TARGET[at[i : i + 1]], [row], mine) == [together[i]]
