"""Work off the step loop: order, failures, lateness; and the engine's waiting sequences."""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections.abc import Callable

import pytest

from nonet.core.errors import InvalidRequestError
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.preparations import Finished, Preparations, Task


def request(request_id: str) -> Request:
    return Request(request_id=request_id, prompt_ids=[1], params=SamplingParams())


def collect(preparations: Preparations, count: int) -> list[Finished]:
    """The next `count` ends."""
    found: list[Finished] = []
    end = time.monotonic() + 60
    while len(found) < count and time.monotonic() < end:
        preparations.wait(0.05)
        found += preparations.finished()
    return found


def fail(error: Exception) -> None:
    raise error


def test_only_what_a_preparer_asks_for_is_done() -> None:
    done: list[str] = []
    task = Task("a b", lambda: done.append("b"))
    preparations = Preparations([lambda r: task if r.request_id == "b" else None, lambda r: None])
    assert preparations.tasks(request("a")) == []
    preparations.start("a", [])
    assert preparations.finished() == []
    preparations.start("b", preparations.tasks(request("b")))
    assert collect(preparations, 1) == [Finished("b", "a b")]
    assert done == ["b"]
    preparations.close()


def test_failures_are_told_and_the_next_task_runs() -> None:
    preparations = Preparations()
    preparations.start(
        "r",
        [
            Task("one", lambda: fail(InvalidRequestError("not like this"))),
            Task("two", lambda: fail(ZeroDivisionError("oops"))),
            Task("three", lambda: None),
        ],
    )
    assert collect(preparations, 3) == [
        Finished("r", "one", "not like this"),
        Finished("r", "two", "two failed: ZeroDivisionError: oops"),
        Finished("r", "three"),
    ]
    preparations.close()


def wait_at(gate: threading.Event) -> None:
    gate.wait(20)


def spin_at(gate: threading.Event) -> None:
    end = time.monotonic() + 20
    while not gate.is_set() and time.monotonic() < end:
        hashlib.sha256(bytes(1 << 20))


@pytest.mark.skipif(sys.platform != "linux", reason="no clock of another thread's work")
@pytest.mark.parametrize(("work", "seconds"), [(spin_at, "0.1"), (wait_at, "1")])
def test_a_task_that_takes_too_long_fails_alone(
    work: Callable[[threading.Event], None], seconds: str
) -> None:
    gate = threading.Event()
    preparations = Preparations(limit_s=0.1)
    preparations.start("slow", [Task("a gate", lambda: work(gate))])
    preparations.start("quick", [Task("nothing", lambda: None)])
    assert collect(preparations, 2) == [
        Finished("slow", "a gate", f"a gate took longer than {seconds} s"),
        Finished("quick", "nothing"),
    ]
    gate.set()
    time.sleep(0.05)
    assert preparations.finished() == []
    preparations.close()
