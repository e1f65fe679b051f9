"""Each policy is one steady order; priority ages, so nobody starves."""

from __future__ import annotations

from random import Random

import pytest

from nonet.core.errors import ConfigError, UnknownNameError
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.scheduler.policy import POLICIES
from nonet.scheduler.policy.base import Policy
from nonet.scheduler.sequence import Sequence, Status


def make_sequence(seq_id: int, priority: int = 0, arrival_s: float = 0.0) -> Sequence:
    return Sequence(
        request=Request(
            request_id=str(seq_id), prompt_ids=[1], params=SamplingParams(), priority=priority
        ),
        index=0,
        seq_id=seq_id,
        seed=0,
        arrival_s=arrival_s,
        token_ids=[1],
        num_prompt=1,
        min_len=1,
        max_len=9,
        stop_ids=frozenset(),
    )


@pytest.mark.parametrize("name", POLICIES.names())
def test_order_is_total_and_the_victim_is_last(name: str) -> None:
    policy: Policy = POLICIES.build(name)
    random = Random(3)
    sequences = [
        make_sequence(i, random.randrange(-2, 3), float(random.randrange(4))) for i in range(50)
    ]
    ordered = policy.order(sequences, 10.0)
    assert sorted(seq.seq_id for seq in ordered) == list(range(50))
    random.shuffle(sequences)
    assert policy.order(sequences, 10.0) == ordered
    assert policy.victim(sequences, 10.0) is ordered[-1]
    assert policy.order(sequences[:7], 10.0) == [seq for seq in ordered if seq in sequences[:7]]


def test_fcfs_is_by_arrival() -> None:
    policy: Policy = POLICIES.build("fcfs")
    sequences = [make_sequence(2, priority=-5), make_sequence(1), make_sequence(3)]
    assert [seq.seq_id for seq in policy.order(sequences, 0.0)] == [1, 2, 3]


def test_priority_lower_number_first_then_arrival() -> None:
    policy: Policy = POLICIES.build("priority")
    sequences = [make_sequence(1, 1), make_sequence(2, -1), make_sequence(3, -1)]
    assert [seq.seq_id for seq in policy.order(sequences, 0.0)] == [2, 3, 1]


def test_waiting_is_worth_a_level() -> None:
    policy: Policy = POLICIES.build("priority:aging_s=10")
    old = make_sequence(1, priority=1, arrival_s=0.0)
    assert policy.order([make_sequence(2, 0, arrival_s=9.0), old], 9.0)[0].seq_id == 2
    assert policy.order([make_sequence(3, 0, arrival_s=11.0), old], 11.0)[0] is old


@pytest.mark.parametrize(
    "spec", ["priority:aging_s=0", "priority:aging_s=-1", "priority:aging_s=nan"]
)
def test_aging_must_be_positive(spec: str) -> None:
    with pytest.raises(ConfigError, match="aging_s"):
        POLICIES.build(spec)


def test_an_unknown_policy_names_the_near_miss() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'priority'"):
        POLICIES.build("prioritY")


def test_only_legal_moves() -> None:
    seq = make_sequence(1)
    with pytest.raises(AssertionError, match="cannot go from waiting to preempted"):
        seq.move(Status.PREEMPTED)
    for status in (Status.RUNNING, Status.PREEMPTED, Status.RUNNING, Status.FINISHED):
        seq.move(status)
    with pytest.raises(AssertionError, match="cannot go from finished"):
        seq.move(Status.RUNNING)
