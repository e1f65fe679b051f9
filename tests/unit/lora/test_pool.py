"""The pool: registered, resident, retired; commands and their answers; a file is never read by the step loop."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from nonet.core.errors import InvalidRequestError, ModelFileError
from nonet.core.messages import Answered, LoadAdapter, UnloadAdapter
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.lora.adapter import Adapter
from nonet.lora.pool import AdapterPool


@dataclass
class User:
    adapter_id: str


class Shelf:
    """A pool over made-up adapters: the content is the folder's name."""

    def __init__(self, num_slots: int = 2, max_registered: int = 4) -> None:
        self.slots: dict[int, str] = {}
        self.readers: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.pool = AdapterPool(
            self.read, self.store, num_slots=num_slots, max_registered=max_registered
        )

    def read(self, name: str, folder: Path) -> Adapter:
        self.gate.wait(60)
        self.readers.add(threading.get_ident())
        if folder.name == "broken":
            raise ModelFileError("broken on purpose")
        return Adapter(name, f"{name}@{folder.name}", 4, ())

    def store(self, adapter: Adapter, slot: int) -> None:
        self.slots[slot] = adapter.adapter_id

    def ask(self, command: LoadAdapter | UnloadAdapter) -> Answered:
        self.pool.command(command)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            answers = self.pool.answers()
            if answers:
                assert len(answers) == 1
                assert answers[0].command_id == command.command_id
                assert not self.pool.is_busy
                return answers[0]
            assert self.pool.is_busy
            time.sleep(0.001)
        raise AssertionError("no answer")

    def enter(self, adapter_id: str, n: int = 1) -> User:
        params = SamplingParams(n=n)
        self.pool.enter(
            Request(request_id="r", prompt_ids=[1], params=params, adapter_id=adapter_id)
        )
        return User(adapter_id)


def test_a_load_is_read_elsewhere_and_answered() -> None:
    shelf = Shelf()
    shelf.gate.clear()
    shelf.pool.command(LoadAdapter(7, "sql", "/x/one"))
    assert shelf.pool.is_busy
    assert shelf.pool.answers() == []
    assert shelf.pool.adapters == ()
    with pytest.raises(InvalidRequestError, match="'sql' is not loaded"):
        shelf.enter("sql@one")
    shelf.gate.set()
    end = time.monotonic() + 60
    answers: list[Answered] = []
    while not answers and time.monotonic() < end:
        answers = shelf.pool.answers()
    assert answers[0].adapter is not None
    assert answers[0].adapter.adapter_id == "sql@one"
    assert [info.name for info in shelf.pool.adapters] == ["sql"]
    assert threading.get_ident() not in shelf.readers
    shelf.enter("sql@one")


def test_what_cannot_be_loaded_is_said() -> None:
    shelf = Shelf(max_registered=1)
    assert shelf.ask(LoadAdapter(1, "a", "/x/broken")).error == "broken on purpose"
    assert shelf.ask(LoadAdapter(2, "a", "/x/one")).error is None
    assert "loaded already" in str(shelf.ask(LoadAdapter(3, "a", "/x/two")).error)
    assert "max_cpu_loras is 1" in str(shelf.ask(LoadAdapter(4, "b", "/x/two")).error)
    unknown = shelf.ask(UnloadAdapter(5, "b"))
    assert (unknown.is_unknown, unknown.error) == (True, "no adapter 'b' is loaded here")


def test_two_loads_of_one_name_at_once() -> None:
    shelf = Shelf()
    shelf.gate.clear()
    shelf.pool.command(LoadAdapter(1, "a", "/x/one"))
    shelf.pool.command(LoadAdapter(2, "a", "/x/two"))
    assert [(a.command_id, a.error is None) for a in shelf.pool.answers()] == [(2, False)]
    shelf.gate.set()


def test_an_unloaded_adapter_drains() -> None:
    """Running and waiting sequences go on; new requests are refused; the last one frees slot and memory."""
    shelf = Shelf(num_slots=1)
    shelf.ask(LoadAdapter(1, "a", "/x/one"))
    running, waiting = shelf.enter("a@one"), shelf.enter("a@one")
    shelf.pool.start(running)
    assert shelf.pool.slot_of("a@one") == 1
    assert shelf.ask(UnloadAdapter(2, "a")).error is None
    assert shelf.pool.adapters == ()
    with pytest.raises(InvalidRequestError):
        shelf.enter("a@one")
    shelf.pool.leave(running)
    shelf.pool.stop(running)
    assert shelf.pool.num_in_memory == 1, "somebody still waits for it"
    assert list(shelf.pool.startable([waiting])) == [waiting]
    shelf.pool.start(waiting)
    shelf.pool.leave(waiting)
    assert shelf.pool.num_in_memory == 1, "a step in flight may still use it"
    shelf.pool.stop(waiting)
    assert shelf.pool.num_in_memory == 0
    assert shelf.pool.check_integrity() == []


def test_another_content_under_the_same_name_is_another_adapter() -> None:
    shelf = Shelf()
    shelf.ask(LoadAdapter(1, "a", "/x/one"))
    old = shelf.enter("a@one")
    shelf.pool.start(old)
    shelf.ask(UnloadAdapter(2, "a"))
    shelf.ask(LoadAdapter(3, "a", "/x/two"))
    new = shelf.enter("a@two")
    shelf.pool.start(new)
    assert shelf.pool.slot_of("a@one") != shelf.pool.slot_of("a@two")
    assert shelf.slots[shelf.pool.slot_of("a@two")] == "a@two"


def test_the_same_content_again_is_the_same_adapter() -> None:
    shelf = Shelf()
    shelf.ask(LoadAdapter(1, "a", "/x/one"))
    user = shelf.enter("a@one")
    shelf.pool.start(user)
    shelf.ask(UnloadAdapter(2, "a"))
    assert shelf.ask(LoadAdapter(3, "a", "/x/one")).error is None
    shelf.pool.leave(user)
    shelf.pool.stop(user)
    assert shelf.pool.num_in_memory == 1
    shelf.enter("a@one")
    shelf.pool.close()


def test_every_choice_of_a_request_counts() -> None:
    shelf = Shelf()
    shelf.ask(LoadAdapter(1, "a", "/x/one"))
    user = shelf.enter("a@one", n=3)
    shelf.ask(UnloadAdapter(2, "a"))
    for left in (2, 1, 0):
        shelf.pool.leave(user)
        assert (shelf.pool.num_in_memory == 0) == (left == 0)
