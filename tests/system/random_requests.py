"""Requests of all kinds, and what each of them gives alone."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from nonet.core.outputs import SequenceDelta
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM

VOCAB = 199
PREFIX = list(range(20, 60))


def random_request(rng: random.Random, number: int) -> Request:
    prompt = (PREFIX if rng.random() < 0.5 else []) + rng.choices(
        range(3, VOCAB), k=rng.randint(1, 90)
    )
    params = SamplingParams(
        n=1,
        temperature=rng.choice([0.0, 0.0, 0.8, 1.3]),
        top_p=rng.choice([1.0, 0.9]),
        top_k=rng.choice([0, 5]),
        min_p=rng.choice([0.0, 0.05]),
        repetition_penalty=rng.choice([1.0, 1.2]),
        presence_penalty=rng.choice([0.0, 0.5]),
        logit_bias=rng.choice([None, {7: 2.0, 9: -3.0}]),
        seed=number,
        max_tokens=rng.randint(1, 40),
        min_tokens=rng.choice([0, 1]),
        stop_token_ids=rng.choice([[], [11, 12, 13]]),
        logprobs=rng.choice([None, 2]),
        prompt_logprobs=rng.choice([None, None, 1]),
        ignore_eos=rng.random() < 0.5,
    )
    return Request(request_id=f"r{number}", prompt_ids=prompt, params=params, eos_ids=(2,))


def run_alone(llm: LLM, request: Request) -> list[SequenceDelta]:
    llm.engine.add(request)
    deltas: list[SequenceDelta] = []
    while llm.engine.has_work:
        deltas.extend(llm.engine.step())
    return deltas


def tokens(deltas: list[SequenceDelta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


def check_each_alone(
    alone: LLM, requests: Sequence[Request], results: Mapping[str, list[SequenceDelta]]
) -> int:
    """How many were compared: all but those that were aborted gave what they give in `alone`."""
    compared = 0
    for request in requests:
        mine = results[request.request_id]
        if mine and mine[-1].finish_reason == "abort":
            continue
        expected = run_alone(alone, request)
        assert tokens(mine) == tokens(expected), request
        assert mine[-1].finish_reason == expected[-1].finish_reason
        assert [one for delta in mine for one in delta.logprobs or ()] == [
            one for delta in expected for one in delta.logprobs or ()
        ]
        if request.params.prompt_logprobs is not None:
            assert mine[0].prompt_logprobs is not None
            assert len(mine[0].prompt_logprobs) == len(request.prompt_ids)
            assert mine[0].prompt_logprobs == expected[0].prompt_logprobs
        compared += 1
    return compared
