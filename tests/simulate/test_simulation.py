"""Whatever comes, each choice gets the tokens it would get alone, and every block comes back."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.simulate.cases import Arrive, Case, Run, play, random_case, random_request
from tests.simulate.harness import Setup, Simulation


@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.randoms(use_true_random=False))
def test_any_workload_equals_its_oracle(random: Random) -> None:
    case = random_case(random)
    simulation = Simulation(case.setup)
    play(simulation, case)
    assert not simulation.scheduler.check_integrity()


def test_the_workloads_reach_what_they_are_meant_to() -> None:
    """Guards the guard: preemption, hits, overlap and the rest really happen in the cases above."""
    seen: Counter[str] = Counter()
    for seed in range(80):
        case = random_case(Random(seed))
        simulation = Simulation(case.setup)
        play(simulation, case)
        stats = simulation.scheduler.stats()
        seen["preempted"] += stats.preemptions
        seen["preempted, overlapped"] += stats.preemptions * case.setup.depth
        seen["hit"] += stats.prefix_hit_tokens
        seen["hit, window"] += stats.prefix_hit_tokens * (case.setup.windows != (None,))
        seen["accepted"] += simulation.runner.num_accepted
        seen["leased"] += sum(sum(stream.num_leased) for stream in simulation.streams.values())
        seen["looked ahead"] += simulation.runner.num_ahead
        assert stats.num_accepted_tokens <= stats.num_draft_tokens
        seen["steps"] += stats.steps
        for stream in simulation.streams.values():
            seen[str(stream.finish_reason)] += 1
            seen["prompt logprobs"] += stream.prompt_logprobs is not None
    assert seen["steps"] > 1000
    for what in ("preempted", "preempted, overlapped", "hit", "hit, window", "accepted", "leased", "looked ahead",
                 "prompt logprobs", "stop", "length", "abort", "error"):  # fmt: skip
        assert seen[what] >= 5, f"{what}: {seen[what]}"


@pytest.mark.parametrize("seed", range(8))
def test_depth_and_drafts_and_chunks_do_not_change_tokens(seed: int) -> None:
    """The same workload under every way of running it, arrivals at fixed steps, no aborts."""
    random = Random(seed)
    events = []
    for i in range(8):
        events += [Arrive(random_request(random, f"r{i}")), Run(random.randrange(4))]
    base = Setup(windows=(None, 6), num_blocks=24, max_model_len=40)
    outputs = []
    for changes in (
        {}, {"depth": 1}, {"num_drafts": 3}, {"depth": 1, "num_drafts": 3, "waits_up_to": 100},
        {"depth": 1, "num_drafts": 3, "waits_up_to": 2},
        {"depth": 1, "num_drafts": 3, "waits_up_to": 1, "lookahead": 3},
        {"num_drafts": 3, "lookahead": 3}, {"num_drafts": 3, "lookahead": 3, "max_drafts": 2},
        {"max_tokens": 200}, {"chunked": False}, {"prefix_cache": False}, {"num_blocks": 100},
        {"max_num_seqs": 1}, {"policy": "priority"},
    ):  # fmt: skip
        simulation = Simulation(replace(base, **changes))
        play(simulation, Case(simulation.setup, tuple(events)))
        outputs.append({key: stream.token_ids for key, stream in simulation.streams.items()})
    for output in outputs[1:]:
        assert {key: tokens for key, tokens in output.items() if key in outputs[0]} == {
            key: tokens for key, tokens in outputs[0].items() if key in output
        }
    assert outputs[0]


def test_a_long_run_with_a_tiny_pool() -> None:
    """Thousands of steps in one engine, so that blocks and ids are reused many times."""
    random = Random(2024)
    setup = Setup(windows=(None, 5), num_blocks=18, depth=1, num_drafts=2, max_model_len=30)
    simulation = Simulation(setup)
    for i in range(250):
        case = Case(setup, (Arrive(random_request(random, f"r{i}")), Run(random.randrange(12))))
        for event in case.events:
            if isinstance(event, Arrive):
                if len(event.request.prompt_ids) + (event.request.params.max_tokens or 1) <= 30:
                    simulation.add(event.request)
            else:
                for _ in range(event.steps):
                    simulation.step()
        if random.random() < 0.2:
            simulation.abort([f"r{random.randrange(i + 1)}"], random.choice([None, 0]))
    simulation.run()
    assert simulation.steps > 1000
    assert simulation.scheduler.stats().preemptions > 10
