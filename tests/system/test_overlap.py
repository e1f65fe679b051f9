"""The overlapped loop: a step is launched before the one before it was read, and every token stays the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.engine import Engine
from nonet.engine.llm import LLM
from nonet.sampling.sampler import Sampler
from nonet.sampling.samples import SampleRow
from tests.model.families import save

ROOMY = {"num_blocks": 200, "max_model_len": 200, "max_num_seqs": 8, "dtype": "float32"}
OUTPUT = 40
KINDS = (
    SamplingParams(repetition_penalty=1.6, temperature=0.0),
    SamplingParams(presence_penalty=1.0, frequency_penalty=1.5, temperature=0.8, seed=3),
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0, seed=5, logprobs=2),
    SamplingParams(repetition_penalty=1.4, temperature=1.0, seed=7, stop_token_ids=list(range(9))),
)

Tokens = dict[str, list[int]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    save("llama", path)
    return path


def served(
    folder: Path, depth: int, kinds: Sequence[SamplingParams] = KINDS, **options: object
) -> tuple[Tokens, Engine]:
    """Tokens of ten requests that come one by one while others run."""
    rng = random.Random(2)
    waiting = [
        Request(
            request_id=f"r{number}",
            prompt_ids=[rng.randrange(10, 90) for _ in range(rng.randrange(3, 60))],
            params=replace_length(kinds[number % len(kinds)]),
        )
        for number in range(10)
    ]
    found: Tokens = {}
    with LLM(str(folder), **{**ROOMY, **options}) as llm:
        engine = llm.engine
        engine.parts = replace(engine.parts, depth=depth)
        while waiting or engine.has_work:
            if waiting:
                engine.add(waiting.pop())
            for delta in engine.step():
                assert delta.error is None
                found.setdefault(delta.request_id, []).extend(delta.token_ids)
            engine.check_integrity()
    return found, engine


def replace_length(params: SamplingParams) -> SamplingParams:
    fields = {name: getattr(params, name) for name in params.__struct_fields__}
    return SamplingParams(**{**fields, "max_tokens": OUTPUT, "ignore_eos": True})


def test_overlapped_equals_plain(folder: Path) -> None:
    """Also where a token is chosen by what the host has seen: penalties read all tokens so far."""
    plain, _ = served(folder, 0)
    overlapped, engine = served(folder, 1)
    assert overlapped == plain
    assert any(len(ids) < OUTPUT for ids in plain.values()), "some ended while their next step ran"
    assert engine.times.overlapped_steps > 0.9 * engine.times.steps - 2


def test_overlapped_equals_plain_under_preemption(folder: Path) -> None:
    plain, _ = served(folder, 0)
    overlapped, engine = served(folder, 1, num_blocks=20, max_model_len=120)
    assert overlapped == plain
    assert engine.stats().preemptions > 0


def test_every_stream_runs_ahead(folder: Path) -> None:
    """A batch of penalties alone: each step but the first few is planned while another runs."""
    _, engine = served(folder, 1, KINDS[:1])
    assert engine.times.overlapped_steps > 0.9 * engine.times.steps - 2


def test_a_sampler_that_does_not_wait_is_caught(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = served(folder, 0)

    def never(self: Sampler, rows: Sequence[SampleRow]) -> bool:
        return False

    monkeypatch.setattr(Sampler, "reads_tokens", never)
    assert served(folder, 1)[0] != plain
