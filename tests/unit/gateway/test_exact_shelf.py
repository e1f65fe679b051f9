"""The exact-match cache: where answers are kept, and how many."""

from __future__ import annotations

from pathlib import Path

from exact_cases import Wall, cached, settled, shelf
from tests.gateway_fakes import ScriptedEngine, ask, pipeline, read, text

from nonet.gateway.answer import Caller
from nonet.store.database import Database
from nonet.text.tokenizer import Tokenizer


async def test_answers_outlive_the_server(tokenizer: Tokenizer, tmp_path: Path) -> None:
    wall = Wall()
    for round_, expected in enumerate(("miss", "exact", "exact", "miss")):
        database = Database(tmp_path / "nonet.db")
        database.open()
        line = cached(ScriptedEngine(), tokenizer, {"ttl_s": 100}, database=database, wall=wall)
        await line.start()
        reply = await line.answer(ask())
        fresh = await text(await pipeline(ScriptedEngine(), tokenizer).answer(ask()))
        assert await text(reply) == fresh
        assert reply.outcome.cache == expected, round_
        await line.close()
        await database.close()
        wall.now_s += 40


async def test_the_shelf_is_bounded(tokenizer: Tokenizer, tmp_path: Path) -> None:
    database = Database(tmp_path / "nonet.db")
    database.open()
    config = {"memory_mib": 0.005, "disk_mib": 0.02}
    line = cached(ScriptedEngine(), tokenizer, config, database=database)
    await line.start()
    for number in range(60):
        await read(await line.answer(ask(f"prompt {number}")))
    await settled(database)
    memory, disk = shelf(line).shelf.num_bytes
    assert 0 < memory <= 0.005 * 1024 * 1024
    assert 0 < disk <= 0.02 * 1024 * 1024
    rows = await database.read(
        lambda c: c.execute("SELECT count(*), sum(size) FROM answer").fetchone()
    )
    assert rows == (shelf(line).shelf.num_entries, disk)
    newest = await line.answer(ask("prompt 59"))
    oldest = await line.answer(ask("prompt 0"))
    middle = await line.answer(ask("prompt 50"))  # on disk, no longer in memory
    assert (newest.outcome.cache, oldest.outcome.cache) == ("exact", "miss")
    assert middle.outcome.cache == "exact"
    for reply in (newest, oldest, middle):
        await read(reply)
    await database.close()


async def test_purge(tokenizer: Tokenizer, tmp_path: Path) -> None:
    database = Database(tmp_path / "nonet.db")
    database.open()
    line = cached(ScriptedEngine(), tokenizer, database=database)
    await line.start()
    for tenant in ("a", "b"):
        for number in range(3):
            await read(await line.answer(ask(f"p{number}", caller=Caller(tenant=tenant))))
    assert shelf(line).purge("a") == 3
    for tenant, expected in (("a", "miss"), ("b", "exact")):
        reply = await line.answer(ask("p1", caller=Caller(tenant=tenant)))
        await read(reply)
        assert reply.outcome.cache == expected
    assert shelf(line).purge() == 4
    await settled(database)
    assert await database.read(lambda c: c.execute("SELECT count(*) FROM answer").fetchone()) == (
        0,
    )
    await database.close()


async def test_what_is_purged_while_it_is_made_is_not_kept(tokenizer: Tokenizer) -> None:
    line = cached(ScriptedEngine(), tokenizer)
    reply = await line.answer(ask())
    await anext(reply.pieces)
    shelf(line).purge()
    assert len(await read(reply)) == 7
    assert shelf(line).shelf.num_entries == 0


async def test_an_unreadable_table_is_a_miss(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for is_damaged in (False, True):
        database = Database(tmp_path / "nonet.db")
        database.open()
        line = cached(ScriptedEngine(), tokenizer, database=database)
        await line.start()
        if is_damaged:
            await database.write(lambda c: c.execute("UPDATE answer SET body = x'93'").close())
        reply = await line.answer(ask())
        assert len(await text(reply)) == 8
        assert reply.outcome.cache == "miss"
        await database.close()
