"""All adapters of an engine: which are known, which lie in a slot, which are about to go.

An adapter is *registered* when its file was read and checked: it then lies in host memory, ready for any slot. It is
*resident* while it lies in a slot (`lora.slots`), pinned there by the sequences that run with it. When it is unloaded
it is *retired*: new requests are refused, those that wait or run go on, and the last of them takes it from memory.
Files are read on a thread of their own, so a large one does not hold up the steps of others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from nonet.core.errors import InvalidRequestError, NotFoundError, UserError
from nonet.core.messages import AdapterInfo, Answered, Command, LoadAdapter, UnloadAdapter
from nonet.core.request import Request
from nonet.lora.adapter import Adapter
from nonet.lora.slots import AdapterUser, SlotTable, User

__all__ = ["AdapterPool"]

Reader = Callable[[str, Path], Adapter]
Writer = Callable[[Adapter, int], None]


@dataclass(slots=True)
class _Registered:
    adapter: Adapter
    num_users: int = 0  # unfinished sequences
    is_retired: bool = False


class AdapterPool:
    """Answers the scheduler (`scheduler.resources.Resources`), the runner (`slot_of`) and the server (`command`).

    `read` makes an adapter of a directory and may be called on another thread; `store` copies one into a slot.
    """

    def __init__(self, read: Reader, store: Writer, *, num_slots: int, max_registered: int) -> None:
        self._read = read
        self._store = store
        self._max_registered = max_registered
        self._registered: dict[str, _Registered] = {}  # by adapter_id
        self._slots = SlotTable(num_slots, self._fill)
        self._reading: list[tuple[LoadAdapter, Future[Adapter]]] = []
        self._answers: list[Answered] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="adapters")

    @property
    def adapters(self) -> tuple[AdapterInfo, ...]:
        """Those that new requests may name."""
        return tuple(_info(one.adapter) for one in self._registered.values() if not one.is_retired)

    @property
    def num_loads(self) -> int:
        """How often an adapter was copied into a slot."""
        return self._slots.num_loads

    @property
    def num_in_memory(self) -> int:
        """Registered adapters, retired ones that are still used included."""
        return len(self._registered)

    def register(self, name: str, folder: Path) -> AdapterInfo:
        """Read an adapter here and now, as at start. UserError says what is wrong with it."""
        self._check_new(name)
        return self._add(self._read(name, folder))

    # What the scheduler asks.

    def enter(self, request: Request) -> None:
        """A request comes; InvalidRequestError when its adapter is not here."""
        if not request.adapter_id:
            return
        known = self._registered.get(request.adapter_id)
        if known is None or known.is_retired:
            raise InvalidRequestError(
                f"the adapter {_name_of(request.adapter_id)!r} is not loaded here", "model"
            )
        known.num_users += request.params.n

    def startable(self, waiting: Iterable[User]) -> Iterator[User]:
        return self._slots.startable(waiting)

    def start(self, user: AdapterUser) -> None:
        self._slots.take(user.adapter_id)

    def stop(self, user: AdapterUser) -> None:
        self._slots.give_back(user.adapter_id)
        self._forget_unused(user.adapter_id)

    def leave(self, user: AdapterUser) -> None:
        if user.adapter_id:
            self._registered[user.adapter_id].num_users -= 1
            self._forget_unused(user.adapter_id)

    def check_integrity(self) -> list[str]:
        problems = self._slots.check_integrity()
        if any(one.num_users < 0 for one in self._registered.values()):
            problems.append("an adapter has fewer users than none")
        return problems

    # What the runner asks.

    def slot_of(self, adapter_id: str) -> int:
        return self._slots.slot_of(adapter_id)

    # What the server asks.

    @property
    def is_busy(self) -> bool:
        """An answer is under way."""
        return bool(self._reading or self._answers)

    def command(self, command: Command) -> None:
        """Begin to load, or unload; the answer comes with `answers`."""
        try:
            if isinstance(command, LoadAdapter):
                self._check_new(command.name)
                future = self._thread.submit(self._read, command.name, Path(command.path))
                self._reading.append((command, future))
            else:
                self._answers.append(Answered(command.command_id, adapter=self._retire(command)))
        except UserError as error:
            self._answers.append(_refusal(command, error))

    def answers(self) -> list[Answered]:
        """Answers that are ready, in no order."""
        reading, self._reading = self._reading, []
        for command, future in reading:
            if not future.done():
                self._reading.append((command, future))
                continue
            try:
                self._answers.append(
                    Answered(command.command_id, adapter=self._add(future.result()))
                )
            except UserError as error:
                self._answers.append(_refusal(command, error))
        ready, self._answers = self._answers, []
        return ready

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _check_new(self, name: str) -> None:
        names = [info.name for info in self.adapters] + [
            command.name for command, _ in self._reading
        ]
        if name in names:
            raise InvalidRequestError(
                f"an adapter {name!r} is loaded already; unload it first", "lora_name"
            )
        if len(self._registered) + len(self._reading) >= self._max_registered:
            raise InvalidRequestError(
                f"{len(self._registered)} adapters are in memory and max_cpu_loras is {self._max_registered}; "
                "unload one first",
                "lora_name",
            )

    def _add(self, adapter: Adapter) -> AdapterInfo:
        known = self._registered.get(adapter.adapter_id)
        if known is not None:  # it was retired and is loaded again while still in use
            known.is_retired = False
        else:
            self._registered[adapter.adapter_id] = _Registered(adapter)
        return _info(adapter)

    def _retire(self, command: UnloadAdapter) -> AdapterInfo:
        for adapter_id, known in self._registered.items():
            if known.adapter.name == command.name and not known.is_retired:
                known.is_retired = True
                self._forget_unused(adapter_id)
                return _info(known.adapter)
        raise NotFoundError(f"no adapter {command.name!r} is loaded here")

    def _forget_unused(self, adapter_id: str) -> None:
        known = self._registered.get(adapter_id)
        if (
            known is not None
            and known.is_retired
            and not known.num_users
            and not self._slots.is_pinned(adapter_id)
        ):
            self._slots.drop(adapter_id)
            del self._registered[adapter_id]

    def _fill(self, adapter_id: str, slot: int) -> None:
        self._store(self._registered[adapter_id].adapter, slot)


def _info(adapter: Adapter) -> AdapterInfo:
    return AdapterInfo(name=adapter.name, adapter_id=adapter.adapter_id, rank=adapter.rank)


def _name_of(adapter_id: str) -> str:
    return adapter_id.rpartition("@")[0] or adapter_id


def _refusal(command: Command, error: UserError) -> Answered:
    return Answered(
        command.command_id, error=str(error), is_unknown=isinstance(error, NotFoundError)
    )
