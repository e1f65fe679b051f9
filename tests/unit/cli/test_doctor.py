"""`nonet doctor`: every finding has a state, and only what stops nonet fails."""

from __future__ import annotations

import json
import socket
import subprocess

import pytest

from nonet.cli.main import run


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    """The native kernels are built in a process of its own, which has tests elsewhere."""
    answer = subprocess.CompletedProcess([], 0, stdout="compiled for this CPU\n", stderr="")
    monkeypatch.setattr("nonet.cli.doctor.subprocess.run", lambda *_, **__: answer)


@pytest.mark.usefixtures("built")
def test_findings(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json", "--port", "0"]) == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"Python", "torch", "CPU", "cores", "memory", "GPU", "compiler", "cache", "port"} <= set(
        found
    )
    assert found["torch"]["state"] == "ok"
    assert found["port"]["detail"] == "127.0.0.1:0 is free"
    assert {row["state"] for row in found.values()} <= {"ok", "note"}


@pytest.mark.usefixtures("built")
def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["doctor", "--port", str(port)]) == 0
    line = next(row for row in capsys.readouterr().out.splitlines() if " port " in row)
    assert line.startswith("note")
    assert "give another --port" in line


def test_kernels_that_do_not_build_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback\nConfigError: no luck")
    monkeypatch.setattr("nonet.cli.doctor.subprocess.run", lambda *_, **__: answer)
    monkeypatch.setenv("CXX", "sh")
    assert run(["doctor", "--port", "0"]) == 1
    assert "ConfigError: no luck" in capsys.readouterr().out
