"""Crowds with more adapters than slots: nobody runs without its adapter, nobody is forgotten, tokens are as alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random

import msgspec
import pytest

from nonet.core.request import Request
from nonet.core.step import StepPlan, StepResult
from nonet.lora.slots import AdapterUser, SlotTable
from nonet.scheduler.resources import Nothing
from nonet.scheduler.roster import Roster
from nonet.scheduler.scheduler import Scheduler
from nonet.scheduler.sequence import Sequence
from tests.simulate.cases import Arrive, Case, play, random_case
from tests.simulate.harness import Simulation

ADAPTERS = ["", "a", "b", "c", "d", "e"]


class Slots(Nothing):
    """The real table over a memory that remembers what lies where."""

    def __init__(self, num_slots: int) -> None:
        self.memory: dict[int, str] = {}
        self.table = SlotTable(num_slots, self._load)
        self.startable = self.table.startable  # type: ignore[method-assign]

    def _load(self, adapter_id: str, slot: int) -> None:
        self.memory[slot] = adapter_id

    def start(self, user: AdapterUser) -> None:
        self.table.take(user.adapter_id)

    def stop(self, user: AdapterUser) -> None:
        self.table.give_back(user.adapter_id)

    def check_integrity(self) -> list[str]:
        return self.table.check_integrity()

    def holds(self, slot: int, adapter_id: str) -> bool:
        return self.memory.get(slot, "") == adapter_id


def simulation_of(case: Case, num_slots: int) -> tuple[Simulation, Slots]:
    """The runner looks into the slots when a step starts, and again when it ends."""
    slots = Slots(num_slots)
    made = Simulation(case.setup, scheduler_class=partial(Scheduler, resources=slots))  # type: ignore[arg-type]
    runner = made.runner
    launch, collect = runner.launch, runner.collect
    flying: list[list[tuple[int, str]]] = []

    def checked_launch(plan: StepPlan) -> None:
        launch(plan)
        adapters = [runner.known[row.seq_id].new.adapter_id for row in plan.rows]
        used = [(slots.table.slot_of(adapter_id), adapter_id) for adapter_id in adapters]
        assert all(slots.holds(*pair) for pair in used), "a sequence runs without its adapter"
        flying.append(used)

    def checked_collect() -> StepResult:
        assert all(slots.holds(*pair) for pair in flying.pop(0)), "an adapter left in mid-step"
        return collect()

    runner.launch, runner.collect = checked_launch, checked_collect  # type: ignore[method-assign]
    return made, slots


def crowd(seed: int) -> Case:
    """A random workload whose requests ask for five adapters, or none."""
    random = Random(seed)
    case = random_case(random)
    setup = replace(case.setup, depth=seed % 2)

    def with_adapter(request: Request) -> Request:
        return msgspec.structs.replace(request, adapter_id=random.choice(ADAPTERS))

    return Case(
        setup,
        tuple(
            Arrive(with_adapter(event.request)) if isinstance(event, Arrive) else event
            for event in case.events
        ),
    )


@pytest.mark.parametrize("num_slots", [1, 2, 5])
def test_every_stream_equals_its_oracle(num_slots: int) -> None:
    loads = 0
    for seed in range(40):
        case = crowd(seed)
        simulation, slots = simulation_of(case, num_slots)
        play(simulation, case)
        assert not any(slots.table.is_pinned(name) for name in ADAPTERS), "a pin was left behind"
        loads += slots.table.num_loads
    assert loads > 100, "the slots were never scarce"


def pin_lost_at_preemption(patch: pytest.MonkeyPatch) -> None:
    """Given back at once, although a step in flight still uses it."""
    right = Roster.preempt

    def preempt(self: Roster, seq: Sequence) -> None:
        self.resources.stop(seq)
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(type(self.resources), "stop", lambda *_: None)
            right(self, seq)

    patch.setattr(Roster, "preempt", preempt)


def running_adapter_evicted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SlotTable, "can_take", lambda self, adapter_id: True)
    patch.setattr(
        SlotTable,
        "_vacate",
        lambda self: self._free.pop() if self._free else self._slots.popitem(last=False)[1],
    )


def pin_never_given_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SlotTable, "give_back", lambda self, adapter_id: None)


def slot_found_and_not_loaded(patch: pytest.MonkeyPatch) -> None:
    right = SlotTable.__init__

    def init(self: SlotTable, num_slots: int, load: Callable[[str, int], None]) -> None:
        right(
            self,
            num_slots,
            lambda adapter_id, slot: None if self.num_loads > 2 else load(adapter_id, slot),
        )

    patch.setattr(SlotTable, "__init__", init)


def claims_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Every newcomer is let in, whether there is a slot or not."""
    patch.setattr(SlotTable, "startable", lambda self, waiting: iter(list(waiting)))


@pytest.mark.parametrize(
    "mutant",
    [
        pin_lost_at_preemption,
        running_adapter_evicted,
        pin_never_given_back,
        slot_found_and_not_loaded,
        claims_forgotten,
    ],
)
def test_mutants_are_rejected(
    monkeypatch: pytest.MonkeyPatch, mutant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    mutant(monkeypatch)
    for seed in range(80):
        case = crowd(seed)
        try:
            simulation, slots = simulation_of(case, 2)
            play(simulation, case)
            assert not any(slots.table.is_pinned(name) for name in ADAPTERS)
        except (AssertionError, StopIteration, RuntimeError, KeyError):
            return
    raise AssertionError(f"{mutant.__name__} went unnoticed")
