"""A whole ladder over HTTP on a tiny model with random weights: what is measured, kept and not measured again."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from nonet.bench.ladder.result import Climb
from nonet.cli.main import run
from tests.model.families import save
from tests.system.harness import PATIENCE_S
from tests.system.tiny_text import write_tokenizer

FLAGS = ["--dummy-weights", "--device", "cpu", "--threads", "1", "--dtype", "float32", "--num-requests", "24",
         "--scale", "0.1", "--repeats", "1", "--latency-requests", "1", "--anchor", "none", "--rungs", "exact cache",
         "--no-leave-out"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ladder")
    save("llama-bytes", path / "tiny")
    write_tokenizer(path / "tiny")
    return path


def climb(folder: Path) -> Climb:
    assert run(["ladder", str(folder / "tiny"), *FLAGS, "--out", str(folder / "out")]) == 0
    return msgspec.json.decode((folder / "out" / "ladder.json").read_bytes(), type=Climb)


def test_a_climb_and_the_same_again(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = climb(folder)
    shown = capfd.readouterr()
    assert "[1/2] naive" in shown.err
    assert "event=call" not in shown.err  # its servers do not log each request
    assert "factors over naive" in shown.out
    assert [one.name for one in first.rungs] == ["naive", "exact cache"]
    for one in first.rungs:
        assert one.error is None
        assert one.tokens_per_s > 0
        assert one.requests_per_s > 0
        assert one.peak_memory_bytes > 1 << 20
        assert one.kv_tokens > 0
        assert 0 < one.busy_share < 1.5
        assert one.latency is not None
        assert one.latency.ttft_s is not None
        assert one.latency.num_failed == 0
        assert one.latency_rate_rps == first.latency_rate_rps
    assert "answers from the exact cache" in str(first.rungs[1].proof)
    assert "Dummy weights: speed only" in first.notes[0]
    tier = first.batch_tier
    assert tier is not None
    assert tier.error is None
    assert tier.costs(first.price_per_hour) is not None
    assert tier.settings["policy"] == "slo"
    assert tier.alone is not None
    assert tier.beside is not None
    assert tier.alone.num_requests == tier.beside.num_requests == 1
    assert (folder / "out" / "ladder.html").exists()

    again = climb(folder)
    assert "naive" not in capfd.readouterr().err  # nothing was measured again
    assert again == first


def test_a_user_s_requests_over_a_directory_of_floats(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tools count as prompt, shaped answers may end, and what the directory cannot be is left out with its reason."""
    function = {"name": "w", "parameters": {"type": "object", "properties": {"c": {"enum": [1]}}}}
    asked = {"role": "user", "content": "weather?"}
    rows = [
        {"messages": [asked], "max_tokens": 30, "arrival_s": 2, "tools": [{"type": "function", "function": function}],
         "tool_choice": "required"},
        {"messages": [asked], "max_tokens": 8, "arrival_s": 1, "model": "gpt-4"},
        {"messages": [asked], "max_tokens": 30, "response_format": {"type": "json_object"}},
    ]  # fmt: skip
    work = folder / "w.jsonl"
    work.write_text("\n".join(map(json.dumps, rows)))
    command = [
        "ladder",
        str(folder / "tiny"),
        "--workload",
        str(work),
        "--out",
        str(folder / "users"),
    ]
    command += ["--device", "cpu", "--threads", "1", "--dtype", "float32", "--repeats", "1", "--latency-requests", "0",
                "--anchor", "none", "--no-leave-out", "--no-batch-tier", "--no-quality"]  # fmt: skip
    assert run([*command, "--rungs", "native kernels", "--rungs", "INT8 weights"]) == 0
    shown = capsys.readouterr().out
    found = msgspec.json.decode((folder / "users" / "ladder.json").read_bytes(), type=Climb)
    assert [one.name for one in found.rungs] == ["naive", "native kernels", "INT8 weights"]
    assert [one.error for one in found.rungs] == [None] * 3
    assert found.rungs[0].runs[0].num_failed == 0
    assert "bytes of weights" in str(found.rungs[2].proof)
    assert "not measured" in shown  # its quality
    assert run([*command, "--rungs", "weights as in the file"]) == 2
    refused = capsys.readouterr().err
    assert "the rung weights as in the file cannot be had here" in refused
    assert "holds no block formats" in refused


def test_a_model_that_knows_no_conversations_is_told_what_it_can_climb(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "tiny", tmp_path / "base")
    settings = tmp_path / "base" / "tokenizer_config.json"
    given = json.loads(settings.read_text())
    del given["chat_template"]
    settings.write_text(json.dumps(given))
    command = ["ladder", str(tmp_path / "base"), "--workload", "sample", "--scale", "0.05"]
    assert run([*command, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "has no chat template; give --workload synthetic" in said
    assert not (tmp_path / "out").exists()


def test_a_climb_that_is_told_to_end_leaves_no_server_behind(folder: Path) -> None:
    """And what it has measured is kept."""
    out = folder / "ended"
    command = [
        sys.executable,
        "-m",
        "nonet.cli.main",
        "ladder",
        str(folder / "tiny"),
        *FLAGS,
        "--out",
        str(out),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            while "[2/" not in process.stderr.readline():
                assert process.poll() is None
            children: list[psutil.Process] = []
            while len(children) < 2:  # the server, and its engine
                children = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            said = process.communicate(timeout=PATIENCE_S)[1]
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert f"what was measured is kept in {out}" in said
    _, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
    assert alive == []
    assert len(list((out / "measured").glob("*.json"))) == 1
