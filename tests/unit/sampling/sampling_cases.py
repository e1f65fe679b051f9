"""What the sampler's tests share: a sampler over one sequence, and the chi-square test."""

from __future__ import annotations

import msgspec
import torch

from nonet.core.sampling_params import SamplingParams
from nonet.core.step import NewSequence
from nonet.sampling.sampler import Sampler
from nonet.sampling.samples import SampleRow

CPU = torch.device("cpu")


def sequence(
    params: SamplingParams,
    *,
    prompt: tuple[int, ...] = (1,),
    outputs: tuple[int, ...] = (),
    seed: int = 5,
    eos_ids: tuple[int, ...] = (),
) -> NewSequence:
    return NewSequence(
        seq_id=1,
        token_ids=[*prompt, *outputs],
        num_prompt=len(prompt),
        params=params,
        seed=seed,
        eos_ids=eos_ids,
    )


def p_value(token_ids: torch.Tensor, probabilities: torch.Tensor) -> float:
    """Chi-square p-value of drawn ids against the exact probabilities [V]; 0 when an impossible id was drawn."""
    observed = torch.bincount(token_ids, minlength=len(probabilities)).double()
    expected = probabilities.double() * len(token_ids)
    if observed[expected == 0].sum() > 0:
        return 0.0
    # Rare tokens are pooled, as the statistic is chi-square distributed only for counts of 5 and more.
    rare = expected < 5
    observed = torch.cat([observed[~rare], observed[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    filled = expected > 0
    statistic = ((observed - expected)[filled] ** 2 / expected[filled]).sum()
    freedom = torch.tensor((int(filled.sum()) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))


def draw_many(sampler: Sampler, logits: torch.Tensor, count: int) -> torch.Tensor:
    """Ids drawn from slot 0 at `count` successive positions, all with the same logits [V]."""
    rows = [SampleRow(0, position) for position in range(count)]
    batch = logits.expand(count, -1).clone()
    return torch.tensor([one.token_id for one in sampler.sample(batch, rows)])


def sampler_for(params: SamplingParams, vocab_size: int, **details: object) -> Sampler:
    """A sampler with one sequence, in slot 0; `details` go to `sequence`."""
    sampler = Sampler(vocab_size, 4, CPU)
    sampler.add(0, sequence(params, **details))  # type: ignore[arg-type]
    return sampler


def label(params: SamplingParams) -> str:
    """The fields that differ from their defaults, as a test's name."""
    return msgspec.json.encode(params).decode().replace('"', "")
