"""Verbs that run an engine in this process: made-up weights of a tiny shape, and the real small model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.real_models import real_model

from nonet.cli.main import run


def test_bench_offline_from_flags_to_file(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    line = [
        "bench",
        "offline",
        str(tiny_model),
        "--dummy-weights",
        "--num-requests",
        "3",
        "--repeats",
        "2",
    ]
    line += ["--prompt-len", "4-9", "--output-len", "3", "--num-blocks", "64", "--json", str(file)]
    assert run(line) == 0
    found = json.loads(file.read_text())
    assert [one["output_tokens"] for one in found["runs"]] == [9, 9]
    assert found["config"]["prefix_cache"] is False
    assert found["config"]["dummy_weights"] is True
    assert found["output_tokens_per_s"]["least"] > 0
    assert {one["finish_reason"] for times in found["requests"] for one in times} == {"length"}


@pytest.mark.models
def test_generate_with_a_real_model(capsys: pytest.CaptureFixture[str]) -> None:
    model = str(real_model("smollm2"))
    line = ["generate", "The capital of France is", "--model", model, "--max-tokens", "3", "--json"]
    assert run([*line, "--temperature", "0", "--max-model-len", "256", "--max-num-seqs", "1"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert "Paris" in found["text"]
    assert (found["output_tokens"], found["finish_reason"]) == (3, "length")
