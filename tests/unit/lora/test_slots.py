"""Slots: who is loaded, who gives way, who may start, and that nobody starves, whatever the order of events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random

import pytest

from nonet.lora.slots import SlotTable, User


@dataclass(eq=False)
class Someone:
    """A sequence that runs for `left` turns."""

    adapter_id: str
    left: int = 1


class Memory:
    """What lies in each slot; a slot is never filled while somebody runs in it."""

    def __init__(self, num_slots: int) -> None:
        self.content: dict[int, str] = {}
        self.table = SlotTable(num_slots, self.load)

    def load(self, adapter_id: str, slot: int) -> None:
        assert 1 <= slot <= self.table.num_slots
        before = self.content.get(slot)
        assert before is None or not self.table.is_pinned(before), (
            "a running adapter was overwritten"
        )
        self.content[slot] = adapter_id


def test_the_least_recently_used_gives_way() -> None:
    memory = Memory(2)
    table = memory.table
    for name in "aba":
        table.take(name)
        table.give_back(name)
    table.take("c")
    assert sorted(memory.content.values()) == ["a", "c"]
    assert table.num_loads == 3
    table.take("a")
    assert table.num_loads == 3, "a was still in its slot"
    assert table.slot_of("") == 0
    assert {table.slot_of("a"), table.slot_of("c")} == {1, 2}


def test_pinned_adapters_stay() -> None:
    memory = Memory(2)
    table = memory.table
    table.take("a")
    table.take("b")
    assert not table.can_take("c")
    assert table.can_take("a")
    assert table.can_take("")
    assert [
        user.adapter_id for user in table.startable([Someone(x) for x in ("c", "a", "b", "")])
    ] == ["b", ""]
    table.give_back("a")
    assert table.can_take("c")
    assert not table.check_integrity()


def test_a_claimed_slot_takes_no_newcomer() -> None:
    """c waits for a slot: the emptier one, b's, is closed; a goes on as before."""
    table = Memory(2).table
    for name in ("a", "a", "b"):
        table.take(name)
    waiting = [Someone(name) for name in ("a", "c", "b", "a", "c", "", "d", "a")]
    able = [
        waiting.index(user) for user in table.startable(waiting)
    ]  # each finds its adapter in a slot
    assert able == [0, 3, 5], "d claims a's slot, so the last a must wait"


def test_dropped_adapters_free_their_slot() -> None:
    table = Memory(1).table
    table.take("a")
    with pytest.raises(AssertionError, match="pinned"):
        table.drop("a")
    table.give_back("a")
    table.drop("a")
    table.drop("never here")
    assert not table.check_integrity()
    assert table.can_take("b")


def test_integrity_sees_a_lost_slot() -> None:
    table = Memory(2).table
    table.take("a")
    table._free.clear()
    assert table.check_integrity()


class NoClaims(SlotTable):
    """A mutant: whoever finds its adapter in a slot may always join."""

    def startable(self, waiting: Iterable[User]) -> Iterator[User]:
        return (user for user in waiting if self.can_take(user.adapter_id))


def longest_wait(table_class: type[SlotTable], seed: int, num_slots: int = 2) -> int:
    """Turns that the unluckiest waits, when popular adapters never stop coming."""
    random = Random(seed)
    memory = Memory(num_slots)
    memory.table = table_class(num_slots, memory.load)
    table = memory.table
    waiting = [Someone("rare")]
    running: list[Someone] = []
    waited = 0
    for turn in range(300):
        if turn < 200:
            waiting += [Someone(name, random.randint(2, 6)) for name in "ab"]
        if turn == 0:
            waiting.insert(0, waiting.pop(2))  # the rare one is behind one of each
            waiting.insert(0, waiting.pop(2))
        for user in table.startable(list(waiting)):
            waiting.remove(user)
            table.take(user.adapter_id)
            running.append(user)
        for user in list(running):
            assert table._slots[user.adapter_id] == table.slot_of(user.adapter_id)
            user.left -= 1
            if not user.left:
                running.remove(user)
                table.give_back(user.adapter_id)
        for user in waiting:
            if user.adapter_id == "rare":
                waited += 1
        assert not table.check_integrity()
    return waited


@pytest.mark.parametrize("seed", range(5))
def test_nobody_starves(seed: int) -> None:
    assert longest_wait(SlotTable, seed) < 15


def test_without_claims_somebody_would() -> None:
    assert any(longest_wait(NoClaims, seed) > 100 for seed in range(5))


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_events_keeps_the_books(seed: int) -> None:
    random = Random(seed)
    memory = Memory(random.randint(1, 4))
    table = memory.table
    running: list[Someone] = []
    served: Counter[str] = Counter()
    for _ in range(400):
        waiting = [Someone(random.choice(["", *"abcdefgh"])) for _ in range(random.randint(0, 6))]
        for user in table.startable(waiting):
            if random.random() < 0.2:
                break
            table.take(user.adapter_id)
            served[user.adapter_id] += 1
            running.append(user)
            if user.adapter_id:
                assert memory.content[table.slot_of(user.adapter_id)] == user.adapter_id
        random.shuffle(running)
        while running and random.random() < 0.6:
            table.give_back(running.pop().adapter_id)
        if random.random() < 0.1:
            name = random.choice("abcdefgh")
            if not table.is_pinned(name):
                table.drop(name)
        assert not table.check_integrity()
        for user in running:
            assert (
                not user.adapter_id
                or memory.content[table.slot_of(user.adapter_id)] == user.adapter_id
            )
    assert len(served) == 9
