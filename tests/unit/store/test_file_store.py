"""Files: there once told of, gone when they expire, kept while somebody needs them, nothing left by a crash."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nonet.core.errors import InvalidRequestError, NotFoundError
from nonet.store.database import Database
from nonet.store.files import INTERNAL, FileRecord, FileStore, hold_file, new_file_id


class Wall:
    """A clock to set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(tmp_path / "nonet.db", full_sync=False)
    made.open()
    yield made
    await made.close()


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
async def files(database: Database, tmp_path: Path, wall: Wall) -> FileStore:
    made = FileStore(database, tmp_path / "files", max_bytes=100, wall=wall)
    await made.start()
    return made


async def add(files: FileStore, tenant: str = "t", **fields: object) -> FileRecord:
    part = files.part()
    part.write_bytes(b"abc")
    values = {
        "file_id": new_file_id(), "tenant": tenant, "purpose": "batch", "filename": "f", "num_bytes": 3,
        "created_s": 1000, **fields,
    }  # fmt: skip
    record = FileRecord(**values)  # type: ignore[arg-type]
    await files.add(record, part)
    return record


async def test_a_start_removes_what_has_no_row(files: FileStore) -> None:
    kept = await add(files)
    torn = files.part()
    torn.write_bytes(b"half")
    nameless = files.path(new_file_id())
    nameless.write_bytes(b"renamed, but the row was never written")
    await files.start()
    assert files.path(kept.file_id).read_bytes() == b"abc"
    assert not torn.exists()
    assert not nameless.exists()
    assert await files.get("t", kept.file_id) == kept
    assert await files.num_bytes() == 3


async def test_a_held_file_stays(files: FileStore, database: Database, wall: Wall) -> None:
    record = await add(files, expires_s=2000)
    await database.write(lambda c: hold_file(c, record.file_id, 1))
    with pytest.raises(InvalidRequestError, match="cancel the batch first"):
        await files.delete("t", record.file_id)
    wall.now = 3000.0
    await files.remove_expired()
    assert files.path(record.file_id).exists()
    with pytest.raises(NotFoundError):  # its owner no longer sees it
        await files.get("t", record.file_id)
    await database.write(lambda c: hold_file(c, record.file_id, -1))
    await files.remove_expired()
    assert not files.path(record.file_id).exists()
    with pytest.raises(NotFoundError):
        await database.write(lambda c: hold_file(c, record.file_id, 1))


async def test_who_sees_what(files: FileStore, wall: Wall) -> None:
    mine, other, ours = await add(files), await add(files, "u"), await add(files, purpose=INTERNAL)
    late = await add(files, expires_s=1500)
    page = {"purpose": None, "after": None, "limit": 9, "order": "asc"}
    assert await files.page("t", **page) == [mine, late]
    assert await files.page("t", **{**page, "order": "desc", "limit": 1}) == [late]
    assert await files.page("t", **{**page, "purpose": INTERNAL}) == []
    for file_id in (other.file_id, ours.file_id, "../nonet.db"):
        with pytest.raises(NotFoundError):
            await files.get("t", file_id)
        with pytest.raises(NotFoundError):
            await files.delete("t", file_id)
        with pytest.raises(NotFoundError):
            await files.page("t", **{**page, "after": file_id})
    wall.now = 1500.0
    assert await files.page("t", **page) == [mine]
    await files.discard(mine.file_id, ours.file_id, None)
    assert files.path(mine.file_id).exists()  # only our own are discarded
    assert not files.path(ours.file_id).exists()
