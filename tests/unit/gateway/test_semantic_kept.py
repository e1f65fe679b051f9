"""What the layer keeps, for how long, and what survives the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.gateway_fakes import read
from tests.semantic_bench import KEPT, RESET, SAME, Bench, forgive
from tests.semantic_fakes import chat

from nonet.store.database import Database


class Wall:
    """A clock on the wall that is moved by hand."""

    now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


async def restarted(folder: Path, wall: Wall, **knobs: Any) -> tuple[Bench, Database]:
    database = Database(folder / "nonet.db")
    database.open()
    one = Bench({"database": database, "wall": wall}, **knobs)
    await one.layer.start()
    return one, database


async def ended(one: Bench, database: Database) -> None:
    await one.layer.close()
    await database.close()


async def test_what_was_learned_outlives_the_server(tmp_path: Path) -> None:
    wall = Wall()
    one, database = await restarted(tmp_path, wall)
    await one.prove()
    await ended(one, database)
    one, database = await restarted(tmp_path, wall)
    assert one.layer.show()["partitions"]["serving"] == 1
    assert await one.outcome(SAME) == "semantic"
    assert one.text.split() == RESET.split()
    assert one.model.num_asked == 0
    assert one.layer.purge() == 1
    await ended(one, database)
    one, database = await restarted(tmp_path, wall)
    assert one.layer.show()["partitions"] == {"proving": 0, "serving": 0, "off": 0}
    rows = await database.read(
        lambda c: [
            c.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("semantic_question", "semantic_partition", "semantic_answer")
        ]
    )
    assert rows == [0, 0, 0]
    await ended(one, database)


async def test_a_switched_off_partition_stays_so(tmp_path: Path) -> None:
    one, database = await restarted(tmp_path, Wall())
    await one.prove()
    one.roll = 0.0
    for number in range(200):
        one.model.answers[SAME] = f"Now it is done in quite another way, by step {number}."
        if await one.outcome(SAME) == "bypass":
            break
        forgive(one)
    await ended(one, database)
    one, database = await restarted(tmp_path, Wall())
    assert await one.outcome(SAME) == "bypass"
    await ended(one, database)


async def test_entries_grow_old(tmp_path: Path) -> None:
    wall = Wall()
    one, database = await restarted(tmp_path, wall, ttl_s=60)
    await one.prove()
    wall.now_s += 59
    assert await one.outcome(SAME) == "semantic"
    wall.now_s += 2
    assert await one.outcome(SAME) == "miss"
    assert one.layer.count() == 1  # the old one went, the new answer is kept
    await ended(one, database)


async def test_entries_are_bounded() -> None:
    one = Bench(max_entries=5)
    await one.layer.start()
    for number in range(20):
        await one.outcome(f"question about subject{chr(97 + number)}")
    assert one.layer.count() == 5
    assert one.layer.show()["entries"] == 5
    await one.layer.close()
    small = Bench(memory_mib=0.002, disk_mib=0)
    await small.layer.start()
    for number in range(20):
        await small.outcome(f"question about subject{chr(97 + number)}")
    assert small.layer.show()["entries"] < 5
    await small.layer.close()


async def test_purge_of_one_tenant(bench: Bench) -> None:
    for tenant in ("a", "b"):
        await bench.prove(tenant=tenant)
    assert bench.layer.count("a") == bench.layer.count("b") == 1
    assert bench.layer.purge("a") == 1
    assert await bench.outcome(SAME, tenant="a") == "miss"
    assert await bench.outcome(SAME, tenant="b") == "semantic"


async def test_what_is_purged_while_it_is_made_is_not_kept(bench: Bench) -> None:
    reply = await bench.layer.handle(chat(KEPT), bench.model)
    await anext(reply.pieces)
    bench.layer.purge()
    await read(reply)
    await bench.layer.settled()
    assert bench.layer.count() == 0
