"""Which adapter lies in which slot of the device: those that run are pinned, else the least recently used gives way.

An adapter that finds all slots pinned claims the slot with the fewest running sequences: while the claimant waits, no
newcomer may join that slot, so it drains and is handed over. Sequences behind the claimant pass it as long as their
own adapter is in a slot that nobody claims. So nobody starves: in each round the first claimant's slot has the fewest
sequences of all and gets no new one, and every sequence ends.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

__all__ = ["AdapterUser", "SlotTable"]


class AdapterUser(Protocol):
    """What is read of a sequence."""

    @property
    def adapter_id(self) -> str: ...


User = TypeVar("User", bound=AdapterUser)


class SlotTable:
    """Slots 1 to `num_slots`; slot 0 stands for no adapter. `load(adapter_id, slot)` fills a slot.

    >>> table = SlotTable(1, lambda adapter_id, slot: None)
    >>> table.take("sql")
    >>> table.slot_of("sql"), table.can_take("other")
    (1, False)
    """

    def __init__(self, num_slots: int, load: Callable[[str, int], None]) -> None:
        self.num_slots = num_slots
        self._load = load
        self._slots: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._pins: Counter[str] = Counter()  # running sequences of each adapter
        self._free = list(range(num_slots, 0, -1))
        self.num_loads = 0

    def slot_of(self, adapter_id: str) -> int:
        """The slot of an adapter that is in one; 0 for no adapter."""
        return self._slots[adapter_id] if adapter_id else 0

    def can_take(self, adapter_id: str) -> bool:
        """Whether `take` would find the adapter in a slot, or a slot that is free or not pinned."""
        if not adapter_id or adapter_id in self._slots or self._free:
            return True
        return any(not self._pins[other] for other in self._slots)

    def startable(self, waiting: Iterable[User]) -> Iterator[User]:
        """Those of `waiting` that may start now, in their order. The caller takes one's adapter before the next."""
        claimants: set[str] = set()
        claimed: set[str] = set()
        for user in waiting:
            adapter_id = user.adapter_id
            if adapter_id in claimants or adapter_id in claimed:
                continue
            if self.can_take(adapter_id):
                yield user
                continue
            claimants.add(adapter_id)
            open_ones = [other for other in self._slots if other not in claimed]
            if open_ones:
                claimed.add(min(open_ones, key=lambda other: self._pins[other]))

    def take(self, adapter_id: str) -> None:
        """Pin the adapter once more, loading it when it is in no slot."""
        if not adapter_id:
            return
        if adapter_id not in self._slots:
            slot = self._vacate()
            self._load(adapter_id, slot)
            self.num_loads += 1
            self._slots[adapter_id] = slot
        self._slots.move_to_end(adapter_id)
        self._pins[adapter_id] += 1

    def give_back(self, adapter_id: str) -> None:
        """Undo one `take`; the adapter stays in its slot until another needs it."""
        if not adapter_id:
            return
        assert self._pins[adapter_id] > 0, f"adapter {adapter_id!r} is not pinned"
        self._pins[adapter_id] -= 1

    def is_pinned(self, adapter_id: str) -> bool:
        return self._pins[adapter_id] > 0

    def drop(self, adapter_id: str) -> None:
        """Free the slot of an adapter that is going away, if it has one."""
        assert not self._pins[adapter_id], f"adapter {adapter_id!r} is pinned"
        del self._pins[adapter_id]
        slot = self._slots.pop(adapter_id, None)
        if slot is not None:
            self._free.append(slot)

    def check_integrity(self) -> list[str]:
        """What is wrong; empty when all is well."""
        problems = []
        if sorted([*self._free, *self._slots.values()]) != list(range(1, self.num_slots + 1)):
            problems.append("a slot is lost or given twice")
        homeless = [name for name, count in self._pins.items() if count and name not in self._slots]
        if homeless:
            problems.append(f"pinned and in no slot: {homeless}")
        return problems

    def _vacate(self) -> int:
        if self._free:
            return self._free.pop()
        victim = next(other for other in self._slots if not self._pins[other])
        return self._slots.pop(victim)
