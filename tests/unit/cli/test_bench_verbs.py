"""`nonet bench serve --url` against a server that answers from a script, and what the result file holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nonet.cli.main import run


def bench(server, *more: str) -> int:  # type: ignore[no-untyped-def]
    line = [
        "bench",
        "serve",
        "--url",
        server.url,
        "--num-requests",
        "3",
        "--prompt-len",
        "4",
        "--output-len",
        "2",
    ]
    return run([*line, "--rate", "inf", "--warm-up", "1", *more])  # fmt: skip


def test_a_run_and_its_file(server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "result.json"
    code = bench(server, "--json", str(file), "--max-ttft", "60", "--api-key", "s3cret")
    assert code == 0
    assert len(server.bodies) == 4
    assert {len(body["prompt"]) for body in server.bodies[1:]} == {4}
    assert all(0 <= token < 32_000 for body in server.bodies for token in body["prompt"])
    found = json.loads(file.read_text())
    assert found["runs"][0]["num_failed"] == 0
    assert found["runs"][0]["output_tokens"] == 6
    assert found["runs"][0]["goodput_rps"] > 0
    assert found["config"] == {"url": server.url, "name": "tiny", "max_model_len": 512}
    assert len(found["requests"][0]) == 3
    assert "goodput" in capsys.readouterr().out


def test_failures_make_the_command_fail(server, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    server.fail_with = "no room"
    assert bench(server, "--warm-up", "0") == 1
    assert "no room" in capsys.readouterr().out
    assert bench(server) == 1
    assert "warm up failed: no room" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rate", "trace"], "has no times of its own"),
        (["--rate", "fast"], "give requests per second"),
        (["--prompt-len", "600"], "exceed the context of 512"),
        (["--workload", "azure-conv"], "NONET_DATA is not set"),
    ],
)
def test_mistakes(server, more: list[str], message: str, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.delenv("NONET_DATA", raising=False)
    assert run(["bench", "serve", "--url", server.url, *more]) == 2
    assert message in capsys.readouterr().err
