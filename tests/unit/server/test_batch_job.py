"""A job and its faults: refused for now, a full disk, a second worker, time that is up, room that others need."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nonet.core.errors import StoreError
from nonet.core.messages import EngineStats
from nonet.server.batch import job, output
from nonet.server.batch.call import LineAnswer
from nonet.server.batch.forms import ANTHROPIC, OPENAI
from nonet.server.batch.job import Place
from nonet.server.batch.runner import BatchRunner
from nonet.server.batch.seats import IdleSeats
from nonet.store.batch_records import ENDED, BatchRecord, Line, LineUsage
from nonet.store.batches import BatchStore
from nonet.store.database import Database
from nonet.store.files import FileRecord, FileStore, new_file_id
from nonet.telemetry.ledger import LedgerRow, create_ledger

ID = "batch_1"
URL = "/v1/completions"
ROW = LedgerRow(
    1.0, "r", None, "t", "k", "m", URL, "batch", "", "stop", 1, 0, 0, 0, 1, 0.1, 5, "",
)  # fmt: skip


class Engine:
    """What seats look at."""

    is_ready = True
    num_in_flight = 0
    stats = EngineStats()


class Answers:
    """In place of the endpoints: what a line's prompt is answered with, and who was asked."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.refuse: dict[str, int] = {}  # how often, for now
        self.gate: asyncio.Event | None = None
        self.most_at_once = self.at_once = 0

    async def __call__(self, state: object, url: str, key: str, body: bytes, now: float) -> Any:
        name = json.loads(body)["prompt"]
        self.asked[name] += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0)
            if self.gate is not None:
                await self.gate.wait()
        finally:
            self.at_once -= 1
        if self.refuse.get(name, 0) > 0:
            self.refuse[name] -= 1
            return LineAnswer(429, b"{}", "r", LineUsage(), (), 0.01)
        return LineAnswer(200, b'{"ok":1}', "r", LineUsage(), (ROW,), None)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(tmp_path / "nonet.db", full_sync=False)
    made.open()
    await made.write(create_ledger)
    yield made
    await made.close()


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    made = Answers()
    monkeypatch.setattr(job, "answer_line", made)
    return made


@pytest.fixture
async def place(database: Database, tmp_path: Path, answers: Answers) -> Place:
    files = FileStore(database, tmp_path / "files", max_bytes=10**9)
    await files.start()
    state: Any = SimpleNamespace(config=SimpleNamespace(max_body_bytes=10_000))
    seats = IdleSeats(Engine(), 8)
    made = Place(state=state, store=BatchStore(database), files=files, seats=seats)
    await made.store.start()
    return made


async def make(
    place: Place, num_lines: int, expires_s: int = 10**10, *, dialect: str = OPENAI
) -> None:
    """A batch of OpenAI's, whose lines are counted when they are read, or a message batch, counted when it is made."""
    part = place.files.part()
    line = '{"custom_id": "n%d", "method": "POST", "url": "%s", "body": {"prompt": "n%d"}}\n'
    part.write_text("".join(line % (n, URL, n) for n in range(num_lines)))
    given = FileRecord(
        file_id=new_file_id(), tenant="t", purpose="batch", filename="f", num_bytes=1, created_s=0
    )
    await place.files.place(given.file_id, part)
    record = BatchRecord(
        batch_id=ID,
        tenant="t",
        key_id="k",
        dialect=dialect,
        endpoint=URL,
        status="validating",
        input_file_id=given.file_id,
        created_s=0,
        expires_s=expires_s,
        total=num_lines if dialect == ANTHROPIC else 0,
    )
    await place.store.create(record, given)


async def ended(place: Place, dialect: str = OPENAI) -> BatchRecord:
    async with asyncio.timeout(60):
        while (found := await place.store.get("t", dialect, ID)).status not in ENDED:
            await asyncio.sleep(0.01)
        return found


async def names(place: Place, file_id: str | None) -> list[str]:
    text = place.files.path(file_id or "").read_text() if file_id else ""
    return [json.loads(line)["custom_id"] for line in text.splitlines()]


async def num_billed(database: Database) -> int:
    return await database.read(lambda c: c.execute("SELECT count(*) FROM ledger").fetchone()[0])


async def run_with(place: Place, during: Callable[[], Awaitable[None]]) -> None:
    runner = BatchRunner(place)
    await runner.start()
    try:
        await during()
    finally:
        await runner.close()


async def test_refused_for_now_is_asked_again(
    place: Place, database: Database, answers: Answers
) -> None:
    answers.refuse = {"n3": 2, "n7": 1}
    await make(place, 20)

    async def during() -> None:
        found = await ended(place)
        assert (found.status, found.completed, found.failed) == ("completed", 20, 0)
        assert await names(place, found.output_file_id) == [f"n{n}" for n in range(20)]

    await run_with(place, during)
    assert answers.asked["n3"] == 3
    assert answers.asked["n7"] == 2
    assert answers.asked["n0"] == 1
    assert await num_billed(database) == 20


async def test_two_workers_share_the_work(
    place: Place, database: Database, answers: Answers
) -> None:
    await make(place, 60)
    other = BatchRunner(place)
    await other.start()

    async def during() -> None:
        assert (await ended(place)).completed == 60

    try:
        await run_with(place, during)
    finally:
        await other.close()
    assert await num_billed(database) == 60
    assert set(answers.asked.values()) == {1}


async def test_dropped_work_is_taken_up(place: Place, database: Database, answers: Answers) -> None:
    answers.gate = asyncio.Event()
    await make(place, 30)

    async def blocked() -> None:
        async with asyncio.timeout(60):
            while answers.at_once < 7:
                await asyncio.sleep(0.01)

    await run_with(place, blocked)
    assert answers.most_at_once == 7  # of eight sequences one is kept free
    assert await num_billed(database) == 0
    answers.gate.set()

    async def during() -> None:
        assert (await ended(place)).completed == 30

    await run_with(place, during)
    assert await num_billed(database) == 30


async def test_a_full_disk_loses_nothing(
    place: Place, database: Database, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "STORE_RETRY_S", 0.01)
    monkeypatch.setattr("nonet.server.batch.runner.RETRY_S", 0.01)
    left = {"settle": 5, "write": 2}
    settle, write = place.store.settle, output._write

    async def full_settle(*values: Any) -> bool:
        if left["settle"]:
            left["settle"] -= 1
            raise StoreError("full")
        return await settle(*values)

    def full_write(*values: Any) -> None:
        if left["write"]:
            left["write"] -= 1
            raise OSError(28, "No space left on device")
        write(*values)

    monkeypatch.setattr(place.store, "settle", full_settle)
    monkeypatch.setattr(output, "_write", full_write)
    await make(place, 10)

    async def during() -> None:
        found = await ended(place)
        assert await names(place, found.output_file_id) == [f"n{n}" for n in range(10)]

    await run_with(place, during)
    assert left == {"settle": 0, "write": 0}
    assert set(answers.asked.values()) == {1}  # an answer that could not be kept is not made again
    assert await num_billed(database) == 10
    assert not list(place.files.path("x").parent.glob("*.part"))


async def test_time_is_up(place: Place, database: Database, answers: Answers) -> None:
    await make(place, 3, expires_s=1)

    async def during() -> None:
        found = await ended(place)
        assert (found.status, found.completed) == ("expired", 0)

    await run_with(place, during)
    assert not answers.asked
    assert await num_billed(database) == 0


async def test_time_is_up_in_the_middle(place: Place, database: Database, answers: Answers) -> None:
    answers.gate = asyncio.Event()
    await make(place, 5)
    await database.write(
        lambda c: c.execute("UPDATE batches SET expires_s = ?", (int(place.wall()) + 1,)).close()
    )

    async def during() -> None:
        found = await ended(place)
        assert found.status == "expired"
        text = place.files.path(found.error_file_id or "").read_text()
        rows = [json.loads(line) for line in text.splitlines()]
        assert [row["error"]["code"] for row in rows] == ["batch_expired"] * 5
        assert found.output_file_id is None

    await run_with(place, during)
    assert answers.at_once == 0


async def test_seats_are_what_others_leave() -> None:
    engine = Engine()
    seats = IdleSeats(engine, 16)
    assert seats.most == 14
    assert IdleSeats(engine, 16, 3).most == 3
    assert IdleSeats(engine, 1).most == 1
    engine.num_in_flight = 13
    assert seats.is_free()
    engine.num_in_flight = 14
    assert not seats.is_free()
    engine.num_in_flight = 5
    engine.stats = EngineStats(num_waiting=1)
    assert not seats.is_free()
    engine.num_in_flight = 0  # what the engine told last is old
    assert seats.is_free()
    engine.is_ready = False
    assert not seats.is_free()


async def test_batches_take_turns() -> None:
    engine = Engine()
    seats = IdleSeats(engine, 2)
    order: list[str] = []

    async def run(name: str) -> None:
        for _ in range(20):
            await seats.take()
            order.append(name)
            asyncio.get_running_loop().call_soon(seats.give)

    await asyncio.gather(run("a"), run("b"))
    leads = [order[:end].count("a") - order[:end].count("b") for end in range(41)]
    assert max(leads) <= 2
    assert min(leads) >= -2


@pytest.mark.parametrize("num_noted", [0, 30])
@pytest.mark.parametrize(("expires_s", "kind"), [(10**10, "canceled"), (0, "expired")])
async def test_requests_of_a_message_batch_have_results_before_they_are_noted(
    place: Place, answers: Answers, num_noted: int, expires_s: int, kind: str
) -> None:
    """Cancelled, or out of time, before all its lines were read: the requests were counted when it was made."""
    await make(place, 70, expires_s, dialect=ANTHROPIC)
    lines = [Line(n, f"n{n}", 0, 0) for n in range(num_noted)]
    await place.store.index(ID, lines)
    if kind == "canceled":
        await place.store.cancel("t", ANTHROPIC, ID)

    async def during() -> None:
        found = await ended(place, ANTHROPIC)
        assert (found.unrun, found.completed, found.failed) == (70, 0, 0)
        text = place.files.path(found.output_file_id or "").read_text()
        results = [json.loads(line) for line in text.splitlines()]
        assert [one["custom_id"] for one in results] == [f"n{n}" for n in range(70)]
        assert {one["result"]["type"] for one in results} == {kind}

    await run_with(place, during)
    assert not answers.asked


async def test_a_file_that_was_not_checked_has_no_results(place: Place) -> None:
    """Of OpenAI's batches the lines are unknown until all were read: a cancelled one counts none."""
    await make(place, 70)
    await place.store.index(ID, [Line(n, f"n{n}", 0, 0) for n in range(30)])
    await place.store.cancel("t", OPENAI, ID)

    async def during() -> None:
        found = await ended(place)
        assert (found.status, found.total, found.unrun) == ("cancelled", 0, 0)
        assert (found.output_file_id, found.error_file_id) == (None, None)

    await run_with(place, during)
