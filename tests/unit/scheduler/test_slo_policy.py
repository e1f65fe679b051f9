"""Deadlines: who goes first, who gives way, who is refused; and what that brings at twice the capacity."""

from __future__ import annotations

from random import Random

import pytest

from nonet.config.resolved import CacheGroup
from nonet.core.clock import FakeClock
from nonet.core.errors import ConfigError, OverloadedError
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.core.service_class import ServiceClass
from nonet.core.step import RowResult, StepPlan, StepResult
from nonet.kv.cache import KVCache
from nonet.scheduler.budget import SchedulerLimits
from nonet.scheduler.load import Load, StepCost
from nonet.scheduler.policy import POLICIES
from nonet.scheduler.policy.slo import SloPolicy
from nonet.scheduler.scheduler import Scheduler
from nonet.scheduler.sequence import Sequence
from nonet.scheduler.simulate import Arrival, Journey, MachineModel, simulate

TARGETS = SloPolicy.Config(
    interactive_ttft=1.0,
    interactive_tpot=0.05,
    standard_ttft=5.0,
    standard_tpot=0.1,
    max_wait=100.0,
)


def request(
    name: str, service_class: ServiceClass, num_prompt: int = 4, max_tokens: int = 4
) -> Request:
    return Request(
        request_id=name,
        prompt_ids=list(range(num_prompt)),
        params=SamplingParams(max_tokens=max_tokens, ignore_eos=True),
        service_class=service_class,
    )


def sequence(
    seq_id: int,
    service_class: ServiceClass,
    arrival_s: float,
    num_prompt: int = 4,
    num_output: int = 0,
) -> Sequence:
    return Sequence(
        request=request(str(seq_id), service_class, num_prompt),
        index=0,
        seq_id=seq_id,
        seed=0,
        arrival_s=arrival_s,
        token_ids=[1] * (num_prompt + num_output),
        num_prompt=num_prompt,
        min_len=num_prompt,
        max_len=num_prompt + 50,
        stop_ids=frozenset(),
    )


def policy_with(cost_s: float = 0.001, running: list[Sequence] | None = None) -> SloPolicy:
    """A policy that has learnt that a token takes `cost_s`."""
    policy = SloPolicy(TARGETS)
    cost = StepCost(max_tokens_per_step=100)
    for tokens in (1, 10, 50, 100) * 3:
        cost.observe(tokens, cost_s * tokens)
    policy.watch(Load({}, {seq.seq_id: seq for seq in running or []}, cost))
    return policy


def ids(sequences: list[Sequence]) -> list[int]:
    return [seq.seq_id for seq in sequences]


def test_earliest_deadline_first_and_batch_last() -> None:
    waiting = [
        sequence(0, "batch", 0.0),
        sequence(1, "standard", 0.0),  # due at 5
        sequence(2, "interactive", 3.9),  # due at 4.9
        sequence(3, "interactive", 4.2),  # due at 5.2
    ]
    assert ids(policy_with().order(waiting, 4.3)) == [2, 1, 3, 0]


def test_who_cannot_make_it_any_more_delays_nobody() -> None:
    """The mutant is plain earliest deadline first, where the late one goes first and makes the next late too."""
    late, in_time = sequence(0, "interactive", 0.0, num_prompt=800), sequence(1, "interactive", 0.5)
    assert ids(policy_with().order([late, in_time], 0.1)) == [0, 1]
    assert ids(policy_with().order([late, in_time], 0.6)) == [1, 0]


def test_a_running_stream_is_ranked_by_its_next_token() -> None:
    stream = sequence(0, "interactive", 0.0, num_output=10)  # next due at 1.5
    first, second = sequence(1, "interactive", 0.4), sequence(2, "interactive", 0.6)
    assert ids(policy_with().order([stream, second, first], 0.9)) == [1, 0, 2]


def test_the_longest_waiting_goes_first_one_at_a_time() -> None:
    old, older = sequence(1, "batch", 1.0), sequence(0, "batch", 0.0)
    fresh = sequence(2, "interactive", 101.5)
    assert ids(policy_with().order([fresh, old, older], 99.0 + 2.9)) == [0, 2, 1]
    running = sequence(3, "batch", 0.5)
    assert ids(policy_with(running=[running]).order([fresh, old, older], 101.9)) == [2, 0, 1]


def test_only_batch_gives_its_place_and_never_to_batch() -> None:
    running = [
        sequence(0, "interactive", 0.0),
        sequence(1, "batch", 0.0),
        sequence(2, "batch", 1.0),
    ]
    policy = policy_with(running=running)
    assert policy.displaced(sequence(3, "interactive", 2.0), 2.0) is running[2]
    assert policy.displaced(sequence(3, "batch", 2.0), 2.0) is None
    assert policy_with(running=running[:1]).displaced(sequence(3, "standard", 2.0), 2.0) is None


def test_what_is_predicted_to_be_late_is_refused_with_a_time() -> None:
    busy = [sequence(0, "interactive", 0.0, num_prompt=1500)]
    policy = policy_with(running=busy)
    wait_s = policy.retry_after(request("r", "interactive", num_prompt=100), 0.1)
    assert wait_s == pytest.approx(0.6, abs=0.1)
    assert policy.retry_after(request("r", "standard", num_prompt=100), 0.1) is None
    assert policy.retry_after(request("r", "batch", num_prompt=100_000), 0.1) is None
    assert SloPolicy(TARGETS).retry_after(request("r", "interactive", 10**6), 0.0) is None


def test_a_prompt_leaves_running_streams_their_gap() -> None:
    policy = policy_with(cost_s=0.001)
    stream = sequence(0, "interactive", 0.0, num_output=20)  # next due at 2.0
    assert policy.prompt_budget([stream], 500, now=2.0) == 49
    assert policy.prompt_budget([stream], 500, now=1.8) == 199
    assert policy.prompt_budget([sequence(1, "batch", 0.0, num_output=20)], 500, now=2.0) == 500
    assert policy_with(cost_s=1.0).prompt_budget([stream], 500, now=2.0) == 16


def test_batch_stretches_a_step_of_others_no_further() -> None:
    stream, behind = sequence(0, "standard", 0.0, num_output=20), sequence(1, "batch", 0.0)
    policy = policy_with(cost_s=0.001)
    assert policy.background_limit([stream] * 40 + [behind] * 9, 500, now=2.0) == 42
    assert policy.background_limit([stream] * 97, 500, now=2.0) in (99, 100)  # a tpot of 0.1 s
    assert policy.background_limit([behind] * 9, 500, now=2.0) == 500  # nobody to disturb
    assert SloPolicy(TARGETS).background_limit([stream], 500, now=2.0) == 500  # nothing learnt yet
    assert policy.is_background(behind, 99.0)
    assert not policy.is_background(behind, 101.0)  # has waited too long
    assert not policy.is_background(stream, 2.0)


def test_a_step_that_costs_the_same_whatever_its_size_has_room_for_batch() -> None:
    policy = SloPolicy(TARGETS)
    cost = StepCost(max_tokens_per_step=100)
    for tokens in (1, 10, 50, 100) * 3:
        cost.observe(tokens, 0.01)
    policy.watch(Load({}, {}, cost))
    stream = sequence(0, "standard", 0.0, num_output=20)
    assert policy.background_limit([stream], 500, now=2.0) == 500


def online_tpots(config: SloPolicy.Config, num_behind: int, seed: int) -> list[float]:
    """Seconds per output token of standard requests beside long prompts of batch, ascending."""
    random = Random(seed)
    arrivals = [
        Arrival(0.5 + 0.6 * number, request(f"online-{number}", "standard", 64, 40))
        for number in range(20)
    ]
    arrivals += [
        Arrival(0.0, request(f"behind-{number}", "batch", random.randrange(200, 900), 8))
        for number in range(num_behind)
    ]
    kv = KVCache((CacheGroup((0,), None),), 4096, 16, prefix_cache=False)
    machine = MachineModel(step_s=0.004, token_s=0.0002)
    journeys = simulate(arrivals, limits=LIMITS, kv=kv, policy=SloPolicy(config), machine=machine)
    assert all(one.finished for one in journeys)
    return sorted(one.tpot_s for one in journeys[:20] if one.tpot_s is not None)


@pytest.mark.parametrize("seed", range(3))
def test_online_streams_do_not_feel_a_backlog_of_batch(seed: int) -> None:
    """The mutant leaves batch all that the class has promised to wait."""
    alone = online_tpots(SloPolicy.Config(), 0, seed)
    beside = online_tpots(SloPolicy.Config(), 200, seed)
    mutant = online_tpots(SloPolicy.Config(batch_stretch=1e9), 200, seed)
    assert beside[10] <= 1.06 * alone[10]
    assert beside[-1] <= 1.06 * alone[-1]
    assert mutant[10] > 2 * alone[10]


def test_batch_leaves_time_to_streams_that_wait_for_their_last_token() -> None:
    """Who has drafts in flight cannot run ahead: a step planned meanwhile has no stream in it, and all wait for it."""
    clock = FakeClock()
    limits = SchedulerLimits(
        max_num_seqs=8, max_tokens_per_step=512, chunked_prefill=True, max_waiting=20, max_model_len=4096,
    )  # fmt: skip
    kv = KVCache((CacheGroup((0,), None),), 2000, 16, prefix_cache=False)
    scheduler = Scheduler(limits, kv, SloPolicy(TARGETS), clock)
    for number in range(4):  # prompts of several lengths, so that the cost of a token is learnt
        name = "standard" if number else "interactive"
        scheduler.add(request(f"r{number}", name, num_prompt=40 + 60 * number, max_tokens=500))
        for _ in range(6):
            plan = scheduler.plan(clock.now())
            assert plan is not None
            clock.advance(0.01 + 0.001 * sum(row.num_tokens for row in plan.rows))
            scheduler.apply(one_token_each(plan))
    plan = scheduler.plan(clock.now())
    assert plan is not None
    scheduler.apply(one_token_each(plan, drafts=(5,)))
    clock.advance(60.0)  # no stream is ahead of its deadlines
    flying = scheduler.plan(clock.now())
    assert flying is not None
    assert len(flying.rows) == 4
    scheduler.add(request("behind", "batch", num_prompt=2000))
    scheduler.add(request("newcomer", "standard", num_prompt=2000))
    beside = scheduler.plan(clock.now())
    assert beside is not None
    # The tpot of 0.05 s holds 40 tokens; batch may make a step of four tokens longer by less than one.
    tokens = {row.seq_id: row.num_tokens for row in beside.rows}
    assert 30 <= tokens[5] <= 40
    assert 4 not in tokens


@pytest.mark.parametrize("spec", ["slo:batch_stretch=0.5", "slo:batch_stretch=nan"])
def test_batch_cannot_make_a_step_shorter(spec: str) -> None:
    with pytest.raises(ConfigError, match="give at least 1"):
        POLICIES.build(spec)


@pytest.mark.parametrize(
    "spec", ["slo:interactive_ttft=0", "slo:max_wait=-1", "slo:standard_tpot=nan"]
)
def test_targets_must_be_positive(spec: str) -> None:
    with pytest.raises(ConfigError, match="give seconds above 0"):
        POLICIES.build(spec)


LIMITS = SchedulerLimits(
    max_num_seqs=16,
    max_tokens_per_step=256,
    chunked_prefill=True,
    max_waiting=10_000,
    max_model_len=2048,
)
MACHINE = MachineModel(step_s=0.005, token_s=0.0001)


def overload(
    seed: int, classes: tuple[tuple[ServiceClass, float], ...], load: float
) -> list[Arrival]:
    """Poisson arrivals that bring `load` times what the machine can do."""
    random = Random(seed)
    names, weights = zip(*classes, strict=True)
    drawn = [
        (random.choices(names, weights)[0], random.randrange(20, 600), random.randrange(5, 100))
        for _ in range(400)
    ]
    work_s = sum(
        MACHINE.token_s * (prompt + output) + MACHINE.step_s * output / LIMITS.max_num_seqs
        for _, prompt, output in drawn
    )
    arrivals, now = [], 0.0
    for number, (name, prompt, output) in enumerate(drawn):
        now += random.expovariate(load * len(drawn) / work_s)
        body = Request(
            request_id=str(number),
            prompt_ids=[number] + [0] * prompt,
            params=SamplingParams(max_tokens=output, ignore_eos=True),
            service_class=name,
        )
        arrivals.append(Arrival(now, body))
    return arrivals


def run(policy: str, arrivals: list[Arrival]) -> list[Journey]:
    kv = KVCache((CacheGroup((0,), None),), 1000, 16, prefix_cache=True)
    return simulate(arrivals, limits=LIMITS, kv=kv, policy=POLICIES.build(policy), machine=MACHINE)


def share_in_time(journeys: list[Journey], service_class: str, ttft_s: float) -> float:
    mine = [one for one in journeys if one.arrival.request.service_class == service_class]
    met = [one for one in mine if one.ttft_s is not None and one.ttft_s <= ttft_s]
    return len(met) / len(mine)


SPEC = "slo:interactive_ttft=1,interactive_tpot=0.05,standard_ttft=5,standard_tpot=0.1"


def test_interactive_keeps_its_promise_at_twice_the_capacity() -> None:
    arrivals = overload(1, (("interactive", 0.3), ("standard", 0.2), ("batch", 0.5)), load=2.0)
    with_slo, with_fcfs = run(SPEC, arrivals), run("fcfs", arrivals)
    assert share_in_time(with_slo, "interactive", 1.0) >= 0.99
    assert share_in_time(with_fcfs, "interactive", 1.0) < 0.7
    assert all(one.finished for one in with_slo)
    batch = [one.ttft_s for one in with_slo if one.arrival.request.service_class == "batch"]
    assert max(filter(None, batch)) > 1.0  # they waited


def test_more_interactive_than_fits_is_refused_and_the_rest_keeps_its_promise() -> None:
    arrivals = overload(2, (("interactive", 1.0),), load=2.0)
    journeys = run(SPEC, arrivals)
    entered = [one for one in journeys if one.retry_after_s is None]
    refused = [one.retry_after_s for one in journeys if one.retry_after_s is not None]
    assert refused
    assert all(1.0 <= wait_s <= 60.0 for wait_s in refused)
    met = [one for one in entered if one.ttft_s is not None and one.ttft_s <= 1.0]
    assert len(met) >= 0.9 * len(entered)
    without = run(SPEC + ",reject=false", arrivals)
    assert len(met) > sum(1 for one in without if one.ttft_s is not None and one.ttft_s <= 1.0)


def test_batch_is_served_within_bounds_under_a_steady_flood() -> None:
    """Interactive traffic alone fills the machine; one old batch request after the other still gets its turn."""
    flood = overload(3, (("interactive", 1.0),), load=1.5)
    old = [Arrival(0.0, request(f"b{i}", "batch", num_prompt=100, max_tokens=10)) for i in range(5)]
    journeys = run(SPEC + ",max_wait=3,reject=false", [*old, *flood])
    waits = [one.ttft_s for one in journeys[:5]]
    assert all(wait_s is not None and wait_s < 10.0 for wait_s in waits)


def test_a_full_queue_says_when_it_will_have_drained() -> None:
    clock = FakeClock()
    limits = SchedulerLimits(
        max_num_seqs=1,
        max_tokens_per_step=16,
        chunked_prefill=True,
        max_waiting=20,
        max_model_len=512,
    )
    kv = KVCache((CacheGroup((0,), None),), 64, 16, prefix_cache=False)
    scheduler = Scheduler(limits, kv, POLICIES.build("fcfs"), clock)
    scheduler.add(request("first", "standard", max_tokens=100))
    for _ in range(20):
        plan = scheduler.plan(clock.now())
        assert plan is not None
        clock.advance(0.5)
        scheduler.apply(one_token_each(plan))
    for number in range(20):
        scheduler.add(request(f"r{number}", "standard", num_prompt=16))
    with pytest.raises(OverloadedError, match="20 requests are waiting") as caught:
        scheduler.add(request("late", "standard"))
    # 320 tokens, 15 beside the running one in each step of half a second and more.
    assert 10.0 <= caught.value.retry_after_s <= 60.0


def one_token_each(plan: StepPlan, drafts: tuple[int, ...] = ()) -> StepResult:
    rows = [
        RowResult(seq_id=row.seq_id, token_ids=[1] * row.num_samples, drafts=drafts)
        for row in plan.rows
    ]
    return StepResult(step_id=plan.step_id, rows=rows)
