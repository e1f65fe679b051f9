"""Compiles the C++ kernels at first use and keeps the library in nonet's cache directory.

The file name holds a hash of the sources, the flags, the compiler's version and the CPU's instruction sets, so a
changed source or another machine on the same home directory never meets a stale library. Two processes that start
together compile once: the second waits for the first one's lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nonet.core.errors import ConfigError

__all__ = ["SOURCES", "build_library", "cache_directory"]

SOURCES = Path(__file__).parent / "csrc"

_FLAGS = (
    "-std=c++17",
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fPIC",
    "-fvisibility=hidden",
    "-pthread",
    "-Wno-psabi",
)


def build_library(march: str = "native", cache: Path | None = None) -> Path:
    """Path of the compiled library; ConfigError says why there is none.

    `march` is the compiler's -march: tests build narrower ones to check the portable paths.
    """
    compiler = _find_compiler()
    flags = (*_FLAGS, f"-march={march}")
    target = (cache or cache_directory()) / "native" / f"kernels-{_key(compiler, flags)}.so"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                _compile(compiler, flags, target)
    except OSError as error:
        raise ConfigError(
            f"the native kernels could not be written to {target.parent} ({error}); "
            "set NONET_CACHE to a directory that can be written"
        ) from error
    return target


def cache_directory() -> Path:
    """NONET_CACHE, or ~/.cache/nonet."""
    given = os.environ.get("NONET_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "nonet"


def _find_compiler() -> str:
    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        found = shutil.which(name)
        if found:
            return found
    raise ConfigError(
        "the native kernels need a C++ compiler: none of c++, g++, clang++ is on the PATH and CXX names none"
    )


def _key(compiler: str, flags: tuple[str, ...]) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    digest = hashlib.sha256()
    for part in (compiler, version.stdout, " ".join(flags), platform.machine(), _cpu_flags()):
        digest.update(part.encode() + b"\0")
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:24]


def _cpu_flags() -> str:
    """The instruction sets, which -march=native looks at; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _compile(compiler: str, flags: tuple[str, ...], target: Path) -> None:
    """One compiler process per source and core, then a link; the result appears atomically."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        sources = sorted(SOURCES.glob("*.cpp"))
        objects = [str(Path(scratch) / f"{source.stem}.o") for source in sources]
        commands = [
            [compiler, *flags, "-c", str(source), "-o", made]
            for source, made in zip(sources, objects, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, commands))
        library = Path(scratch) / "kernels.so"
        _run([compiler, *flags, "-shared", *objects, "-o", str(library)])
        library.replace(target)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.splitlines()
        first = next((line for line in lines if "error" in line), done.stderr[:300])
        raise ConfigError(f"the C++ compiler could not build the native kernels: {first.strip()}")
