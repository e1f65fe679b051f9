"""The whole engine on tiny models: in any mix of chunks, preemptions and aborts a request gets its own tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from nonet.core.outputs import SequenceDelta
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from tests.model.families import save

VOCAB = 199
PREFIX = list(range(20, 60))


@pytest.fixture(scope="module", params=["llama", "gemma3", "mistral"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    save(request.param, path)
    return path


@pytest.fixture(scope="module")
def alone(folder: Path) -> Iterator[LLM]:
    """One request at a time, with room for all, nothing cached."""
    with LLM(
        str(folder), dtype="float32", num_blocks=400, max_num_seqs=1, prefix_cache=False
    ) as llm:
        yield llm


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


@pytest.mark.parametrize("seed", [1, 2])
def test_any_mix_gives_each_request_its_own_tokens(folder: Path, alone: LLM, seed: int) -> None:
    rng = random.Random(seed)
    requests = [random_request(rng, number) for number in range(30)]
    results: dict[str, list[SequenceDelta]] = {request.request_id: [] for request in requests}
    aborted: set[str] = set()
    crowded = {"num_blocks": 90, "max_num_seqs": 8, "max_tokens_per_step": 24, "max_model_len": 200}
    with LLM(str(folder), dtype="float32", prefix_cache=True, **crowded) as llm:
        waiting = list(requests)
        while waiting or llm.engine.has_work:
            if waiting and rng.random() < 0.5:
                llm.engine.add(waiting.pop())
            if rng.random() < 0.03:
                victim = rng.choice(requests).request_id
                aborted.add(victim)
                llm.engine.abort([victim])
            for delta in llm.engine.step():
                results[delta.request_id].append(delta)
            llm.engine.check_integrity()
        stats = llm.engine.stats()
    assert stats.blocks_free == stats.blocks_total
    assert stats.preemptions > 0 or stats.prefix_hit_tokens > 0
    compared = 0
    for request in requests:
        mine = results[request.request_id]
        if mine and mine[-1].finish_reason == "abort":
            assert request.request_id in aborted
            continue
        expected = run_alone(alone, request)
        assert tokens(mine) == tokens(expected), request
        assert mine[-1].finish_reason == expected[-1].finish_reason
        compared += 1
        if request.params.prompt_logprobs is not None:
            assert mine[0].prompt_logprobs is not None
            assert len(mine[0].prompt_logprobs) == len(request.prompt_ids)
            assert mine[0].prompt_logprobs == expected[0].prompt_logprobs
    assert compared > 15
