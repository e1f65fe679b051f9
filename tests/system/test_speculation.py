"""Speculation in the whole engine: the tokens are those of a run without it, whatever else happens meanwhile."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from nonet.core.outputs import SequenceDelta
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from tests.data.prompts import PROMPTS
from tests.model.families import save, save_words
from tests.real_models import real_model
from tests.system.random_requests import check_each_alone, random_request

ROOMY = {"dtype": "float32", "num_blocks": 400, "max_num_seqs": 8, "max_model_len": 200}
CROWDED = {**ROOMY, "num_blocks": 70, "max_tokens_per_step": 24}
VOCAB = 199


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    save(request.param, path)
    save_words(path)
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A draft model of another family, which guesses badly."""
    path = tmp_path_factory.mktemp("draft")
    save("qwen3", path)
    save_words(path)
    return path


@pytest.mark.parametrize("proposer", ["prompt_lookup:tokens=5", "draft_model:tokens=3,model="])
@pytest.mark.parametrize("seed", [1, 2])
def test_any_mix_gives_each_request_its_own_tokens(
    folder: Path, other: Path, proposer: str, seed: int
) -> None:
    """Chunks, preemptions, aborts, prefix hits, penalties, truncation, log probabilities."""
    is_model = proposer.startswith("draft_model")
    rng = random.Random(seed)
    requests = [random_request(rng, number) for number in range(24)]
    if is_model:  # random rows are exact in distribution only
        requests = [r for r in requests if r.params.is_greedy]
        requests += [Request(request_id=f"g{r.request_id}", prompt_ids=r.prompt_ids[::-1],
                             params=r.params, eos_ids=r.eos_ids) for r in requests]  # fmt: skip
        proposer += str(other if seed == 1 else folder)
    results: dict[str, list[SequenceDelta]] = {request.request_id: [] for request in requests}
    options = {**CROWDED, "speculate": proposer, "draft_length": "fixed"}
    with LLM(str(folder), **options) as llm:
        waiting = list(requests)
        while waiting or llm.engine.has_work:
            if waiting and rng.random() < 0.5:
                llm.engine.add(waiting.pop())
            if rng.random() < 0.02:
                llm.engine.abort([rng.choice(requests).request_id])
            for delta in llm.engine.step():
                results[delta.request_id].append(delta)
            llm.engine.check_integrity()
        stats = llm.engine.stats()
    assert stats.blocks_free == stats.blocks_total
    assert stats.num_draft_tokens > 20
    assert stats.num_accepted_tokens > 0 or (is_model and seed == 1)
    with LLM(str(folder), prefix_cache=False, **ROOMY) as alone:
        assert check_each_alone(alone, requests, results) > 8


def test_a_draft_model_that_is_the_target_is_always_right(folder: Path) -> None:
    """Its KV must survive prefix hits, preemptions and rejected drafts, or guesses would go wrong."""
    options = {**CROWDED, "speculate": f"draft_model:tokens=3,model={folder}"}
    rng = random.Random(5)
    with LLM(str(folder), draft_length="fixed", **options) as llm:
        for number in range(16):
            params = SamplingParams(
                temperature=rng.choice([0.0, 0.9]), top_p=rng.choice([1.0, 0.9]), seed=number,
                presence_penalty=rng.choice([0.0, 0.5]), max_tokens=30, ignore_eos=True,
            )  # fmt: skip
            prompt = list(range(20, 60)) + rng.choices(range(3, VOCAB), k=rng.randint(1, 30))
            llm.engine.add(Request(request_id=str(number), prompt_ids=prompt, params=params))
        preempted = 0
        roster = llm.engine.parts.scheduler._roster
        while llm.engine.has_work:
            llm.engine.step()
            if roster.running and rng.random() < 0.15:
                roster.preempt(rng.choice(list(roster.running.values())))
                preempted += 1
        stats = llm.engine.stats()
    assert preempted > 3
    assert stats.prefix_hit_tokens > 0
    assert stats.num_draft_tokens > 300
    assert stats.num_accepted_tokens == stats.num_draft_tokens


def test_the_distribution_through_the_whole_engine(folder: Path, other: Path) -> None:
    """The first two tokens of many seeds, with a bad draft model and without: one distribution."""
    count = 800
    few = dict.fromkeys(range(10, 15), 9.0)  # tokens that both models will take
    requests = [
        SamplingParams(
            temperature=0.8, top_p=0.95, logit_bias=few, seed=seed, max_tokens=3, ignore_eos=True
        )
        for seed in range(count)
    ]
    prompts = [[5, 6, 7, 8]] * count
    found = []
    for speculation in (
        {},
        {"speculate": f"draft_model:tokens=2,model={other}", "draft_length": "fixed"},
    ):
        with LLM(str(folder), **ROOMY, **speculation) as llm:
            outputs = llm.generate(prompts, requests)
            found.append(Counter(tuple(o.outputs[0].token_ids[1:3]) for o in outputs))
            accepted = llm.engine.stats().num_accepted_tokens
    assert accepted > count // 4
    keys = {key for counts in found for key in counts}
    # Chi-square of two samples of equal size; its mean is the number of kinds less one.
    statistic = sum((found[0][k] - found[1][k]) ** 2 / (found[0][k] + found[1][k]) for k in keys)
    assert statistic < len(keys) + 5 * (2 * len(keys)) ** 0.5


@pytest.mark.models
@pytest.mark.slow
def test_greedy_tokens_of_a_real_model_do_not_change() -> None:
    """20 prompts of 64 tokens in float32, under each proposer; the draft model is the target in 4 bits."""
    model = str(real_model("smollm2"))
    prompts = PROMPTS[:20]
    params = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
    options = {**ROOMY, "max_model_len": 512, "num_blocks": 800, "max_num_seqs": 20}
    outputs = {}
    for spec in (None, "prompt_lookup", f"draft_model:model={model},weight_format=int4"):
        speculation = {"speculate": spec, "draft_length": "fixed"} if spec else {}
        with LLM(model, **options, **speculation) as llm:
            found = llm.generate(prompts, params)
            outputs[spec] = [output.outputs[0].token_ids for output in found]
            stats = llm.engine.stats()
            print(
                f"{spec}: {stats.steps} steps, {stats.num_accepted_tokens} of {stats.num_draft_tokens} stood"
            )
        assert outputs[spec] == outputs[None]
        assert (stats.num_accepted_tokens > 50) is (spec is not None)
