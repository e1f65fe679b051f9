"""Random workloads: what the engine is set to, and who comes, leaves and waits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from nonet.core.errors import OverloadedError, UserError
from nonet.core.request import PrefixLease, Request
from nonet.core.sampling_params import SamplingParams
from nonet.core.service_class import SERVICE_CLASSES
from nonet.kv.compaction import CompactionRule
from tests.simulate.harness import Setup, Simulation

# Steps take no time on the simulation's clock, so nothing is refused; places change hands and waits run out.
SLO = "slo:interactive_ttft=0.05,interactive_tpot=0.01,max_wait=0.3"


@dataclass(frozen=True)
class Arrive:
    request: Request


@dataclass(frozen=True)
class Leave:
    request_id: str
    index: int | None


@dataclass(frozen=True)
class Preempt:
    """Take a running sequence's blocks away, though there is no need."""

    choice: int


@dataclass(frozen=True)
class Run:
    steps: int


@dataclass(frozen=True)
class Case:
    setup: Setup
    events: tuple[Arrive | Leave | Preempt | Run, ...]


def random_setup(random: Random) -> Setup:
    """Small pools and budgets, so that everything is scarce at some time."""
    setup = Setup(
        windows=random.choice([(None,), (None, 5), (7,), (None, 3, 9), (1, None)]),
        num_blocks=random.choice([12, 16, 24]),
        block_size=random.choice([2, 4]),
        prefix_cache=random.random() < 0.8,
        max_num_seqs=random.choice([1, 4, 6, 6]),
        max_tokens=random.choice([6, 10, 30]),
        chunked=random.random() < 0.7,
        max_model_len=random.choice([24, 40]),
        max_waiting=random.choice([4, 100]),
        policy=random.choice(["fcfs", "priority:aging_s=0.1", SLO]),
        batching="static:size=3" if random.random() < 0.1 else "continuous",
        reserve_whole=random.random() < 0.1,
        depth=random.choice([0, 1]),
        num_drafts=random.choice([0, 0, 3]),
        lookahead=random.choice([0, 3]),
        max_drafts=random.choice([100, 100, 2]),
        waits_up_to=random.choice([0, 0, 2, 100]),
        error_tokens=frozenset({3}) if random.random() < 0.1 else frozenset(),
    )
    setup = replace(setup, max_leased=setup.num_blocks // 4)
    if random.random() < 0.4:
        return replace(setup, compaction=random_compaction(random, setup))
    return setup


def random_compaction(random: Random, setup: Setup) -> CompactionRule:
    """A rule that most prompts are too long for, with a query window that fits beside the running sequences."""
    widest = setup.max_tokens - setup.max_num_seqs + 1
    window = random.choice([size for size in (1, 2, 4) if size <= widest])
    return CompactionRule(random.choice([window, window + 1, 6]), window)


def random_request(random: Random, name: str) -> Request:
    """Prompts of few different tokens, so that beginnings are often shared."""
    head = [random.randrange(2)] * random.randrange(1, 8)
    tail = [random.randrange(2) for _ in range(random.randrange(0, 8))]
    return Request(
        request_id=name,
        prompt_ids=head + tail,
        eos_ids=(1, 2),
        leases=_random_leases(Random(str(head + tail)), len(head + tail)),
        priority=random.randrange(-2, 3),
        service_class=random.choice(SERVICE_CLASSES),
        cache_salt=random.choice(["", "", "salt"]),
        adapter_id=random.choice(["", "", "adapter"]),
        params=SamplingParams(
            n=random.choice([1, 1, 1, 3]),
            max_tokens=random.choice([None, 1, 8, 20]),
            min_tokens=random.choice([0, 0, 3]),
            ignore_eos=random.random() < 0.6,
            stop_token_ids=random.choice([[], [], [4, 5]]),
            prompt_logprobs=random.choice([None, None, 0]),
            seed=random.choice([None, 5, -1]),
        ),
    )


def _random_leases(random: Random, num_prompt: int) -> tuple[PrefixLease, ...]:
    """None, one or two; a step takes a hundredth of a second."""
    ends = sorted(random.randrange(num_prompt + 1) for _ in range(random.choice([0, 1, 2])))
    return tuple(PrefixLease(end, random.choice([0.05, 1.0])) for end in ends)


def random_case(random: Random, num_requests: int = 12) -> Case:
    events: list[Arrive | Leave | Preempt | Run] = []
    for i in range(num_requests):
        events.append(Arrive(random_request(random, f"r{i}")))
        events.append(Run(random.randrange(5)))
        if random.random() < 0.3:
            events += [Preempt(random.randrange(6)), Run(random.randrange(3))]
        if random.random() < 0.15:
            events.append(Leave(f"r{random.randrange(i + 1)}", random.choice([None, 0, 1])))
    return Case(random_setup(random), tuple(events))


def play(simulation: Simulation, case: Case) -> None:
    """All events in turn, then until every request has ended. Refused requests are left out."""
    for event in case.events:
        if isinstance(event, Arrive):
            try:
                simulation.add(event.request)
            except (UserError, OverloadedError):
                continue
        elif isinstance(event, Leave):
            simulation.abort([event.request_id], event.index)
        elif isinstance(event, Preempt):
            simulation.preempt(event.choice)
        else:
            for _ in range(event.steps):
                simulation.step()
    simulation.run()
