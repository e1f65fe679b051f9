"""The whole engine on tiny models: in any mix of chunks, preemptions and aborts a request gets its own tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from nonet.core.outputs import SequenceDelta
from nonet.engine.llm import LLM
from tests.model.families import save
from tests.system.random_requests import check_each_alone, random_request


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
    for request_id, mine in results.items():
        assert request_id in aborted or mine[-1].finish_reason != "abort"
    assert check_each_alone(alone, requests, results) > 15
