"""What the engine's process does while nobody waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import zmq
from tests.system.fake_engine import FakeConfig, FakeEngine

from nonet.core.messages import Add, Answered, LoadAdapter, Outputs, Shutdown
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.process import run_engine
from nonet.engine.wire import decode_for_server, encode

PIECES = 5


class Recorder(FakeEngine):
    """Has some pieces of work for idle times; `opened` lets it go on after each."""

    def __init__(self) -> None:
        super().__init__(FakeConfig())
        self.done: list[bool] = []  # of each piece: whether there was work meanwhile
        self.opened = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)

    def use_idle(self) -> bool:
        self.begun.release()
        assert self.opened.acquire(timeout=20)
        self.done.append(self.has_work or self.has_commands)
        return len(self.done) < PIECES


@pytest.fixture
def served() -> Iterator[tuple[Recorder, zmq.Socket[bytes]]]:
    engine = Recorder()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    ours, theirs = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    ours.bind("inproc://engine")
    theirs.connect("inproc://engine")
    thread = threading.Thread(target=run_engine, args=(engine, theirs), daemon=True)
    thread.start()
    yield engine, ours
    for _ in range(PIECES):
        engine.opened.release()
    ours.send(encode(Shutdown()))
    thread.join(20)
    assert not thread.is_alive()
    ours.close()
    theirs.close()
    context.term()


def finished(socket: zmq.Socket[bytes], request_id: str) -> bool:
    """Whether the request ends before frames stop coming."""
    while socket.poll(20_000):
        message = decode_for_server(socket.recv())
        if isinstance(message, Outputs):
            for delta in message.deltas:
                if delta.request_id == request_id and delta.finish_reason is not None:
                    return True
    return False


def test_requests_come_between_the_pieces(served: tuple[Recorder, zmq.Socket[bytes]]) -> None:
    engine, socket = served
    assert engine.begun.acquire(timeout=20)
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    socket.send(encode(Add(request=Request(request_id="r", prompt_ids=[65], params=params))))
    engine.opened.release()
    assert finished(socket, "r")
    assert engine.begun.acquire(timeout=20)  # it goes on where it was
    assert len(engine.done) == 1
    for _ in range(PIECES - 1):
        engine.opened.release()
    wait_for(lambda: len(engine.done) == PIECES)
    assert not any(engine.done)
    socket.send(encode(Add(request=Request(request_id="s", prompt_ids=[65], params=params))))
    assert finished(socket, "s")
    assert len(engine.done) == PIECES  # nothing was left to do


def test_commands_are_answered_first(served: tuple[Recorder, zmq.Socket[bytes]]) -> None:
    engine, socket = served
    assert engine.begun.acquire(timeout=20)
    socket.send(encode(LoadAdapter(command_id=1, name="a", path="/somewhere")))
    for _ in range(PIECES):
        engine.opened.release()
    assert answered(socket, 1)
    wait_for(lambda: len(engine.done) == PIECES)
    assert not any(engine.done)


def answered(socket: zmq.Socket[bytes], command_id: int) -> bool:
    while socket.poll(20_000):
        message = decode_for_server(socket.recv())
        if isinstance(message, Answered):
            return message.command_id == command_id
    return False


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)
