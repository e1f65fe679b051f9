"""A reader's mailbox: order, ends, errors, and readers that do not want each step."""

from __future__ import annotations

import asyncio

import pytest

from nonet.core.errors import EngineDeadError
from nonet.core.outputs import FinishReason, SequenceDelta
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.mailbox import Mailbox


def box(*, n: int = 1, each_step: bool = True) -> Mailbox:
    request = Request(request_id="r", prompt_ids=[1], params=SamplingParams(n=n))
    return Mailbox([request], None, each_step=each_step)


def delta(token_id: int, index: int = 0, finish: FinishReason | None = None) -> SequenceDelta:
    return SequenceDelta(request_id="r", index=index, token_ids=[token_id], finish_reason=finish)


async def test_a_late_reader_gets_everything_at_once() -> None:
    mailbox = box()
    assert mailbox.put(delta(1))
    assert mailbox.put(delta(2))
    assert mailbox.pending_bytes > 0
    assert [one.token_ids for one in await mailbox.take()] == [[1], [2]]
    assert mailbox.pending_bytes == 0


async def test_deltas_of_closed_choices_are_dropped() -> None:
    mailbox = box(n=2)
    assert mailbox.put(delta(1, 0, "length"))
    assert not mailbox.put(delta(2, 0))
    mailbox.drop("r", 1)
    assert not mailbox.put(delta(3, 1))
    assert mailbox.is_finished
    assert len(await mailbox.take()) == 1


async def test_what_came_before_an_error_comes_first() -> None:
    mailbox = box()
    mailbox.put(delta(1))
    mailbox.fail(EngineDeadError("gone"))
    assert len(await mailbox.take()) == 1
    assert mailbox.has_mail
    with pytest.raises(EngineDeadError):
        await mailbox.take()


async def test_an_error_after_the_end_is_none() -> None:
    mailbox = box()
    mailbox.put(delta(1, 0, "length"))
    mailbox.fail(EngineDeadError("gone"))
    assert len(await mailbox.take()) == 1
    assert not mailbox.has_mail


async def test_patient_reader_is_woken_for_the_first_delta_and_the_end() -> None:
    mailbox = box(each_step=False)
    assert mailbox.put(delta(1))
    assert len(await mailbox.take()) == 1
    waiting = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    assert not mailbox.put(delta(2))
    assert not mailbox.put(delta(3))
    assert mailbox.put(delta(4, 0, "length"))
    mailbox.wake()
    assert [one.token_ids for one in await waiting] == [[2], [3], [4]]


async def test_patient_reader_sees_an_error_at_once() -> None:
    mailbox = box(each_step=False)
    mailbox.put(delta(1))
    await mailbox.take()
    waiting = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    mailbox.fail(EngineDeadError("gone"))
    with pytest.raises(EngineDeadError):
        await waiting
