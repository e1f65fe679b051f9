"""The compiled library: cached by content, portable variants, plain sentences when it cannot be built."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nonet.core.errors import ConfigError
from nonet.kernels.native import build, native_available

pytestmark = pytest.mark.skipif(not native_available()[0], reason=native_available()[1])


def test_second_build_is_a_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    path = build.build_library()
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("compiled again"))
    assert build.build_library() == path


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"need a C\+\+ compiler"):
        build.build_library(cache=tmp_path)


def test_compiler_errors_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"could not build the native kernels: .*no-such-cpu"):
        build.build_library("no-such-cpu", tmp_path)
    assert not list(tmp_path.rglob("*.so"))


def test_cache_directory_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match="NONET_CACHE"):
        build.build_library(cache=file)


@pytest.mark.slow
@pytest.mark.parametrize("march", ["x86-64", "x86-64-v3", "x86-64-v4"])
def test_kernel_tests_pass_on_narrower_machines(march: str) -> None:
    """Builds the variant and runs the other test files on it, in a process of its own."""
    here = Path(__file__).parent
    others = [
        str(path)
        for path in sorted(here.glob("test_native_*.py"))
        if path.name != "test_native_build.py"
    ]
    code = (
        "import sys, pytest\n"
        "from nonet.kernels.native import build, library\n"
        f"path = build.build_library({march!r})\n"
        "library.build_library = lambda: path\n"
        f"sys.exit(pytest.main(['-q', '-x', '-p', 'no:cacheprovider', *{others!r}]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=here.parents[1],
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
