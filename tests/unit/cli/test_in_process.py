"""Verbs that run an engine in this process: made-up weights of a tiny shape, and the real small model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.real_models import real_model

from nonet.bench.device.ceilings import Sizes
from nonet.bench.device.kernels import KERNEL_BENCHES
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


def test_bench_roofline_from_flags_to_files(
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Sizes, "for_device", lambda _: Sizes(copy_bytes=1 << 20, product=64))
    file, picture = tmp_path / "deep" / "roofline.json", tmp_path / "roofline.svg"
    line = [
        "bench",
        "roofline",
        str(tiny_model),
        "--dummy-weights",
        "--batches",
        "1,2",
        "--contexts",
        "8",
    ]
    line += ["--steps", "2", "--num-blocks", "64", "--json", str(file), "--svg", str(picture)]
    assert run(line) == 0
    found = json.loads(file.read_text())
    assert [(one["phase"], one["batch"]) for one in found["points"]] == [
        ("prefill", 1), ("prefill", 2), ("decode", 2), ("decode", 1),
    ]  # fmt: skip
    assert all(one["flops"] > 0 and one["num_bytes"] > 0 for one in found["points"])
    assert found["config"]["prefix_cache"] is False
    assert found["config"]["max_num_seqs"] == 2
    assert found["left_out"] == []
    assert found["peaks"]["flops_per_s"] == max(found["all_peaks"]["flops_per_s"].values())
    assert picture.read_text().startswith("<svg")
    assert "bandwidth" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--batches", "1,x"], "batches is '1,x'; give whole numbers"),
        (["--contexts", "0"], "every number must be at least 1"),
        (["--steps", "0"], "steps is 0"),
    ],
)
def test_points_that_make_no_sense_are_refused(
    given: list[str], message: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "roofline", str(tiny_model), "--dummy-weights", *given]) == 2
    assert message in capsys.readouterr().err


def test_command_lists_runs_and_refuses(
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Sizes, "for_device", lambda _: Sizes(copy_bytes=1 << 16, product=32))
    assert run(["bench", "kernel"]) == 0
    assert capsys.readouterr().out.split() == [*KERNEL_BENCHES.names(), "all"]
    line = [
        "bench",
        "kernel",
        "gated",
        "--model",
        str(tiny_model),
        "--json",
        str(tmp_path / "a" / "b.json"),
    ]
    assert run([*line, "--kernels", "reference"]) == 0
    assert "bandwidth" in capsys.readouterr().out
    found = json.loads((tmp_path / "a" / "b.json").read_text())
    assert {row["kernel"] for row in found["rows"]} == {"gated"}
    assert found["ceilings"]["flops_per_s"]["float32"] > 0
    assert run(["bench", "kernel", "gate"]) == 2
    assert "Did you mean 'gated'?" in capsys.readouterr().err
    assert run(["bench", "kernel", "linear", "--rows", "0"]) == 2
    assert "--rows is 0" in capsys.readouterr().err
    line[2] = "linear"
    assert run([*line, "--kernels", "reference", "--weights", "dense", "--rows", "3", "5"]) == 0
    found = json.loads((tmp_path / "a" / "b.json").read_text())
    assert {row["case"]["M"] for row in found["rows"]} == {3, 5}


@pytest.mark.models
def test_generate_with_a_real_model(capsys: pytest.CaptureFixture[str]) -> None:
    model = str(real_model("smollm2"))
    line = ["generate", "The capital of France is", "--model", model, "--max-tokens", "3", "--json"]
    assert run([*line, "--temperature", "0", "--max-model-len", "256", "--max-num-seqs", "1"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert "Paris" in found["text"]
    assert (found["output_tokens"], found["finish_reason"]) == (3, "length")
