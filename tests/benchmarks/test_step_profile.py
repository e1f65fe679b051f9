"""The step profile at tiny sizes on the CPU, and what it makes of a trace by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks_path import FOLDER

assert FOLDER.is_dir()

import step_profile  # noqa: E402
from gpu_parts.trace import Span, by_kernel, idle_share, kind_of  # noqa: E402

SPANS = [
    Span("_linear_few", 0.0, 10.0),
    Span("_rms_norm", 11.0, 12.0),
    Span("_linear_few", 40.0, 50.0),
    Span("overlapping", 45.0, 55.0),
    Span("_rms_norm", 56.0, 57.0),
]


def test_gaps_and_totals_by_hand() -> None:
    assert idle_share(SPANS) == pytest.approx((1 + 28 + 1) / 57)
    assert idle_share(SPANS, longer_than_us=10.0) == pytest.approx(28 / 57)
    assert idle_share([]) == 0.0
    first, second, third = by_kernel(SPANS, steps=2)
    assert (first.name, first.kind, first.count, first.us) == ("_linear_few", "products", 1.0, 10.0)
    assert (second.name, second.kind, second.us) == ("overlapping", "other", 5.0)
    assert third.us == 1.0
    assert first.share == pytest.approx(20 / 32)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("_attend_few", "attention"),
        ("nvjet_tst_128x64_64x11_1x2_h_bz_coopA_TNN", "products"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int>", "products"),
        ("sm90_xmma_gemm_e4m3bf16", "products"),
        ("_quantize_rows", "rounding"),
        ("_rope_store", "rope and cache"),
        ("_rms_norm", "norms"),
        ("_gated", "gate"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
    ],
)
def test_kinds_by_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_a_profile_of_an_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = [
        "--out",
        str(tmp_path),
        "--shape",
        "tiny",
        "--sizes",
        "tiny",
        "--device",
        "cpu",
        "--commit",
        "test",
    ]
    line += ["--batches", "1", "3", "--context", "24", "--prefill", "2", "16", "--steps", "2"]
    step_profile.main([*line, "--set", "kernels=reference"])
    found = json.loads((tmp_path / "bf16-profile.json").read_text())["figures"]["rows"]
    assert set(found) == {"decode 1", "decode 3", "prefill 2x16"}
    for row in found.values():
        kinds = {kind["kind"]: kind for kind in row["kinds"]}
        assert kinds["products"]["us"] > 0
        assert kinds["products"]["num_bytes"] > 0
        assert kinds["attention"]["flops"] > 0
        assert 0 <= row["idle_share_between_steps"] <= row["idle_share"] < 1
        assert sum(kernel["share"] for kernel in row["kernels"]) == pytest.approx(1)
    few, many = ({k["kind"]: k for k in found[name]["kinds"]} for name in ("decode 1", "decode 3"))
    assert many["attention"]["num_bytes"] == 3 * few["attention"]["num_bytes"]
    assert many["products"]["num_bytes"] == few["products"]["num_bytes"]
    assert "floor" in capsys.readouterr().out
