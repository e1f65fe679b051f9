"""The skip check of .ci/run: it must see a skip, name its reason, and refuse what is not listed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CI = Path(__file__).parents[2] / ".ci"
REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="test_one"/>
<testcase classname="tests.a" name="test_two"><skipped type="pytest.skip" message="{reason}">x</skipped></testcase>
<testcase classname="tests.a" name="test_xfail"><skipped type="pytest.xfail" message="known"/></testcase>
</testsuite></testsuites>"""


def check(report: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CI / "skips.py"), str(report), str(CI / "allowed_skips.txt")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("the packaged model gemma-3-270m is not in the cache", 0),
        ("the packaged model smollm2 is not in the cache", 1),
        ("could not import 'gguf': No module named 'gguf'", 1),
    ],
)
def test_only_listed_reasons_pass(tmp_path: Path, reason: str, code: int) -> None:
    report = tmp_path / "tests.xml"
    report.write_text(REPORT.format(reason=reason))
    ran = check(report)
    assert ran.returncode == code
    assert f"tests.a::test_two: {reason}" in ran.stdout
    assert f"1 skipped, {code} for a reason" in ran.stdout


@pytest.mark.parametrize("processes", [[], ["-n", "2"]], ids=["one process", "two"])
def test_a_real_report_with_a_test_and_a_module_skipped(
    tmp_path: Path, processes: list[str]
) -> None:
    (tmp_path / "test_one.py").write_text(
        "import pytest\n\ndef test():\n    pytest.skip('tired')\n"
    )
    (tmp_path / "test_all.py").write_text(
        "import pytest\n\npytest.importorskip('no_such', reason='gone')\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--junitxml=out.xml",
        *processes,
        ".",
    ]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    ran = check(tmp_path / "out.xml")
    assert ran.returncode == 1
    assert "SKIP NOT ALLOWED" in ran.stdout
    assert "::test: tired" in ran.stdout
    assert "test_all: gone" in ran.stdout
    assert "2 skipped, 2 for a reason" in ran.stdout


def test_a_report_that_is_missing_fails(tmp_path: Path) -> None:
    ran = check(tmp_path / "none.xml")
    assert ran.returncode == 1
    assert "did not run to their end" in ran.stdout
