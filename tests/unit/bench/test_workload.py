"""Mixes that can be made again, and traces whose structure survives scaling."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from nonet.bench.arrivals import poisson, recorded
from nonet.bench.plan import WorkloadPlan, arrival_times, make_workload, parse_range
from nonet.bench.workload import Workload, azure_trace, data_folder, mix, mooncake_trace
from nonet.core.errors import ConfigError

CONTEXT = 4096


@pytest.fixture
def data(tmp_path: Path) -> Path:
    azure = tmp_path / "azure_llm_trace_2023"
    azure.mkdir()
    (azure / "conv.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
        "2023-11-16 18:15:46.6805900,374,44\r\n"
        "2023-11-16 18:15:50.6805900,396,109\r\n"
        "2023-11-16 18:15:56.6805900,9000,20\r\n"
    )
    mooncake = tmp_path / "mooncake_trace_fast25"
    mooncake.mkdir()
    rows = [
        {"timestamp": 0, "input_length": 1100, "output_length": 50, "hash_ids": [0, 1, 2]},
        {"timestamp": 500, "input_length": 1536, "output_length": 9, "hash_ids": [0, 1, 7]},
        {"timestamp": 3000, "input_length": 600, "output_length": 1, "hash_ids": [5, 1]},
        {"timestamp": 9000, "input_length": 9000, "output_length": 9000, "hash_ids": [0, *range(10, 28)]},
    ]  # fmt: skip
    (mooncake / "conversation.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path


def shared_prefix(a: Workload, first: int, second: int) -> int:
    pairs = zip(a.items[first].prompt_ids, a.items[second].prompt_ids, strict=False)
    return next((n for n, (x, y) in enumerate(pairs) if x != y), 10**9)


def test_the_published_mix_to_the_id() -> None:
    rng = random.Random(0)
    lengths = [(rng.randint(32, 1024), rng.randint(32, 512)) for _ in range(512)]
    prompts = [[rng.randrange(1000, 120000) for _ in range(n)] for n, _ in lengths]
    made = mix(512)
    assert (made.prompt_tokens, made.output_tokens) == (264_418, 143_016)
    assert [list(item.prompt_ids) for item in made.items] == prompts
    assert [item.output_len for item in made.items] == [n for _, n in lengths]


def test_a_digest_is_the_work() -> None:
    assert mix(8).digest() == mix(8).digest()
    assert mix(8).digest() != mix(8, seed=1).digest()
    assert mix(8).digest() != mix(8, output=(32, 300)).digest()


@pytest.mark.parametrize("vocab_size", [500, 2000, 49_152, 262_144])
def test_ids_stay_in_the_vocabulary(vocab_size: int) -> None:
    made = mix(4, prompt=(300, 300), vocab_size=vocab_size)
    assert all(0 <= token < min(vocab_size, 120_000) for i in made.items for token in i.prompt_ids)


def test_azure_rows(data: Path) -> None:
    made = azure_trace(data, "conv", num_requests=10, max_model_len=CONTEXT)
    assert [len(item.prompt_ids) for item in made.items] == [374, 396, CONTEXT - 20]
    assert [item.output_len for item in made.items] == [44, 109, 20]
    assert [item.arrival_s for item in made.items] == pytest.approx([0.0, 4.0, 10.0])
    assert made.facts["clipped_rows"] == 1


@pytest.mark.parametrize("speed", [0.5, 1.0, 10.0])
def test_time_is_divided_and_lengths_multiplied(data: Path, speed: float) -> None:
    made = azure_trace(
        data, "conv", num_requests=3, max_model_len=CONTEXT, speed=speed, length_scale=0.25
    )
    assert [item.arrival_s for item in made.items] == pytest.approx(
        [0.0, 4.0 / speed, 10.0 / speed]
    )
    assert [len(item.prompt_ids) for item in made.items] == [94, 99, 2250]
    assert (made.facts["speed"], made.facts["length_scale"]) == (speed, 0.25)


@pytest.mark.parametrize("scale", [1.0, 0.25, 0.1])
def test_equal_hashes_are_equal_tokens(data: Path, scale: float) -> None:
    made = mooncake_trace(
        data, "conversation", num_requests=10, max_model_len=CONTEXT, length_scale=scale
    )
    block = max(1, round(512 * scale))
    assert made.facts["length_scale"] == block / 512
    assert shared_prefix(made, 0, 1) == 2 * block
    assert shared_prefix(made, 0, 3) == block
    # the hash 1 is the second block of both, after different first blocks
    assert shared_prefix(made, 0, 2) == 0
    middle = slice(block, len(made.items[2].prompt_ids))
    assert made.items[2].prompt_ids[middle] == made.items[0].prompt_ids[middle]
    assert len(made.items[0].prompt_ids) == round(1100 * block / 512)
    for item in made.items:
        assert len(item.prompt_ids) >= 1
        assert len(item.prompt_ids) + item.output_len <= CONTEXT


def test_clipping_keeps_beginnings_and_is_counted(data: Path) -> None:
    made = mooncake_trace(data, "conversation", num_requests=10, max_model_len=1024)
    assert made.facts["clipped_rows"] == 3
    assert shared_prefix(made, 0, 1) >= min(len(i.prompt_ids) for i in made.items[:2])
    assert made.items[3].output_len == 512


def test_traces_are_the_same_each_time(data: Path) -> None:
    one, two, other = (
        mooncake_trace(data, "conversation", num_requests=4, max_model_len=CONTEXT, seed=seed)
        for seed in (0, 0, 1)
    )
    assert one.digest() == two.digest() != other.digest()


def test_poisson_arrivals() -> None:
    work = mix(2000, prompt=(1, 1), output=(1, 1))
    times = poisson(work, 8.0, seed=7)
    rng = random.Random(7)
    assert times[0] == rng.expovariate(8.0)
    assert times == sorted(times)
    assert times[-1] == pytest.approx(2000 / 8.0, rel=0.1)
    assert poisson(work, 8.0, seed=7) == times != poisson(work, 8.0, seed=8)


def test_recorded_arrivals_start_at_zero(data: Path) -> None:
    made = azure_trace(data, "conv", num_requests=3, max_model_len=CONTEXT)
    assert recorded(Workload("tail", made.items[1:])) == pytest.approx([0.0, 6.0])


@pytest.mark.parametrize("rate", ["trace", "none", "0", "-1", "nan"])
def test_rates_that_cannot_be(rate: str) -> None:
    with pytest.raises(ConfigError):
        arrival_times(mix(2), rate, 0)


def test_a_plan_is_checked_against_the_context() -> None:
    plan = WorkloadPlan(prompt_len="32-1024", output_len="512")
    made = make_workload(plan, {}, max_model_len=1536, vocab_size=50_000)
    assert made.digest() == mix(64, output=(512, 512), vocab_size=50_000).digest()
    with pytest.raises(ConfigError, match="exceed the context of 1535"):
        make_workload(plan, {}, max_model_len=1535, vocab_size=50_000)
    with pytest.raises(ConfigError, match="give at least 1"):
        make_workload(WorkloadPlan(num_requests=0), {}, max_model_len=1535, vocab_size=50_000)


@pytest.mark.parametrize("text", ["", "a", "3-", "1-x"])
def test_ranges_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError, match="32-1024"):
        parse_range(text)


def test_data_must_be_pointed_to(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="NONET_DATA is not set"):
        data_folder({})
    with pytest.raises(ConfigError, match="no folder"):
        data_folder({"NONET_DATA": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match="must hold azure_llm_trace_2023"):
        azure_trace(tmp_path, "conv", num_requests=1, max_model_len=10)


@pytest.mark.skipif("NONET_DATA" not in os.environ, reason="NONET_DATA is not set")
def test_the_published_traces() -> None:
    folder = data_folder(os.environ)
    azure = azure_trace(folder, "code", num_requests=200, max_model_len=8192)
    assert len(azure.items) == 200
    assert recorded(azure) == sorted(recorded(azure))
    mooncake = mooncake_trace(
        folder, "conversation", num_requests=50, max_model_len=8192, length_scale=0.1
    )
    first = mooncake.items[0].prompt_ids[:51]
    assert all(item.prompt_ids[:51] == first for item in mooncake.items)
