"""The guard over slow streams, on times of the test's own."""

from __future__ import annotations

from starlette.types import Message

from nonet.server.sse import EventStream, StreamGuard


def stream_with(pending_bytes: int, cuts: list[str]) -> EventStream:
    async def send(message: Message) -> None:
        raise AssertionError(f"nothing is sent here: {message}")

    return EventStream(send, (), lambda: pending_bytes, lambda: cuts.append("cut"))


def test_guard_cuts_by_bytes_and_by_time_but_only_blocked_streams() -> None:
    reasons: list[str] = []
    cuts: list[str] = []
    guard = StreamGuard(100, 10.0, reasons.append)
    free, heavy, slow = (stream_with(size, cuts) for size in (1000, 101, 100))
    heavy.blocked_since_s = slow.blocked_since_s = 0.0
    with guard.watch(free), guard.watch(heavy), guard.watch(slow):
        guard.look(1.0)
        assert reasons == ["slow_reader_bytes"]
        guard.look(10.0)
        assert len(cuts) == 1
        guard.look(10.1)
        assert reasons == ["slow_reader_bytes", "slow_reader_time"]
        guard.look(99.0)
    assert len(cuts) == 2


async def test_head_goes_out_with_the_first_event_only() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    stream = EventStream(send, ((b"x", b"y"),), lambda: 0, lambda: None)
    assert not stream.is_started
    await stream.write(b"data: 1\n\n")
    await stream.finish(b"data: [DONE]\n\n")
    assert [message["type"] for message in sent] == [
        "http.response.start",
        "http.response.body",
        "http.response.body",
    ]
    assert (b"x", b"y") in sent[0]["headers"]
    assert sent[1]["more_body"]
    assert sent[2] == {
        "type": "http.response.body",
        "body": b"data: [DONE]\n\n",
        "more_body": False,
    }
    assert stream.blocked_since_s is None
