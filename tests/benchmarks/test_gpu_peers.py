"""The GPU comparison at tiny sizes on the CPU: every part runs, is kept, and is set against the published rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks_path import FOLDER

assert FOLDER.is_dir()

import gpu_peers  # noqa: E402
from gpu_parts.engine import the_mix  # noqa: E402
from gpu_parts.job import Job  # noqa: E402
from gpu_parts.published import CEILINGS, VLLM  # noqa: E402
from gpu_parts.table import lines, table  # noqa: E402

PARTS = ("ceilings", "mix", "decode", "prefill", "latency", "naive", "huggingface")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("peers")
    gpu_peers.measure(_job(out), PARTS)
    return out


def test_every_part_is_kept_with_what_is_needed_to_judge_it(measured: Path) -> None:
    for part in ("start", "memory", *PARTS):
        record = json.loads((measured / f"bf16-{part}.json").read_text())
        assert record["commit"]
        assert record["versions"]["torch"]
        assert record["device"]["cpu"]
        assert record["figures"]


def test_what_was_asked_was_generated(measured: Path) -> None:
    mixed = _figures(measured, "mix")
    assert [run["output_tokens"] for run in mixed["runs"]] == [mixed["output_tokens"]] * 2
    assert all(run["num_failed"] == 0 and run["steps"] > 0 for run in mixed["runs"])
    latency = _figures(measured, "latency")["rows"]["50"]
    assert latency["num_requests"] == 4
    assert latency["num_failed"] == 0
    assert latency["itl_s"]["max"] >= latency["itl_s"]["p50"] > 0
    naive = json.loads((measured / "bf16-naive.json").read_text())
    assert naive["config"]["batching"] == "static:size=2"
    assert naive["config"]["recording"] is True
    assert naive["config"]["kernels"] != "reference"
    assert naive["config"]["chunked_prefill"] is False
    assert _figures(measured, "huggingface")["rows"]["2"]["requests"] == 3


def test_time_of_a_step_leaves_the_prefill_out(measured: Path) -> None:
    row = _figures(measured, "decode")["rows"]["3"]
    assert row["tok_per_s"] == pytest.approx(3 * 5 / row["all_s"])
    assert row["ms_per_step"] == pytest.approx(1e3 * (row["all_s"] - row["first_s"]) / 4)


def test_rows_on_another_device_are_said_not_to_hold(measured: Path) -> None:
    shown = table(measured, "bf16")
    assert "DO NOT hold" in shown
    assert "decode 3 tok/s" in shown
    assert "nonet's mix over Hugging Face batch 2" in shown


def test_a_factor_above_one_means_ahead(tmp_path: Path) -> None:
    _keep(tmp_path, "decode", {"rows": {"1": {"tok_per_s": 306.8, "ms_per_step": 3.25}}})
    rate, step = (row.split() for row in table(tmp_path, "bf16").splitlines()[-2:])
    assert rate[-3:] == ["306.8", "153.4", "2.00"]
    assert step[-3:] == ["3.25", "6.5", "2.00"]


def test_the_floor_of_the_mix_is_by_the_ceilings_of_the_run(tmp_path: Path) -> None:
    """At the published ceilings it is the published floor; without ceilings there is none."""
    runs = [{"output_tokens_per_s": 1.0, "duration_s": 24.0, "steps": 1}]
    _keep(tmp_path, "mix", {"output_tokens": 143_016, "runs": runs})
    assert "floor" not in table(tmp_path, "bf16")
    rows = {name: {"measured": rate} for name, rate in CEILINGS.items()}
    found = {"device_name": "x", "published_rows_hold": False}
    for row in rows.values():
        row |= {"published": None, "deviation": None}
    _keep(tmp_path, "ceilings", {**found, "rows": rows})
    figures = {name: ours for name, ours, _, _ in lines(tmp_path, "bf16")}
    assert figures["mix floor s, by bfloat16"] == pytest.approx(12.0, abs=0.05)
    assert figures["mix over its floor run 0"] == pytest.approx(2.0, abs=0.01)


def test_published_rows_meet_the_names_of_ours(tmp_path: Path) -> None:
    """A misspelt name would silently leave a row without its peer."""
    for weights, rows in VLLM.items():
        names = ["decode", "mix", "prefill"]
        _keep(
            tmp_path,
            "mix",
            {
                "output_tokens": 1,
                "runs": [{"output_tokens_per_s": 1.0, "duration_s": 1.0, "steps": 1}] * 2,
            },
            weights,
        )
        _keep(
            tmp_path,
            "decode",
            {
                "rows": {
                    str(b): {"tok_per_s": 1.0, "ms_per_step": 1.0} for b in (1, 8, 32, 64, 128, 256)
                }
            },
            weights,
        )
        _keep(
            tmp_path,
            "prefill",
            {
                "rows": {
                    s: {"tok_per_s": 1.0, "ms": 1.0}
                    for s in ("1x128", "1x2048", "8x2048", "32x2048")
                }
            },
            weights,
        )
        met = {
            name
            for name, _, theirs, _ in lines(tmp_path, weights)
            if theirs is not None and name.split()[0] in names
        }
        assert met == set(rows)  # fmt: skip


def test_full_sizes_are_the_published_mix(tmp_path: Path) -> None:
    work = the_mix(_job(tmp_path, sizes="full"), 128256)
    assert (work.prompt_tokens, work.output_tokens) == (264_418, 143_016)


STAND_IN = '''
"""Answers as vLLM would, a token a request and call; what it was given goes to a file."""
import json, os, sys
from dataclasses import dataclass

__version__ = "stand-in"


class SamplingParams:
    def __init__(self, **given):
        self.max_tokens = given["max_tokens"]
        assert given["ignore_eos"] and given["temperature"] == 0.0


@dataclass
class Choice:
    token_ids: list


@dataclass
class Output:
    outputs: list


class LLM:
    def __init__(self, **options):
        assert "nonet" not in sys.modules  # vLLM's Python may not have it
        with open(os.environ["STAND_IN_LOG"], "a") as log:
            log.write(json.dumps(options) + "\\n")

    def generate(self, prompts, params, use_tqdm):
        lost = int(os.environ.get("STAND_IN_LOSES", "0"))
        return [Output([Choice([0] * (one.max_tokens - lost))]) for one in params]


class AsyncEngineArgs:
    def __init__(self, **options):
        LLM(**options)
'''
ASYNC_STAND_IN = """
from vllm import Choice, Output


class AsyncLLM:
    @classmethod
    def from_engine_args(cls, args):
        return cls()

    async def generate(self, prompt, params, request_id):
        for count in range(1, params.max_tokens + 1):
            yield Output([Choice([0] * count)])

    def shutdown(self):
        pass
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A command that starts a Python with something that answers to the name of vLLM."""
    package = tmp_path / "site" / "vllm"
    (package / "v1" / "engine").mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    for inner in ("v1", "v1/engine"):
        (package / inner / "__init__.py").write_text("")
    (package / "v1" / "engine" / "async_llm.py").write_text(ASYNC_STAND_IN)
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "log"))
    return f"env PYTHONPATH={tmp_path / 'site'} {sys.executable}"


def test_vllm_gets_the_same_work_and_a_column_beside_ours(stand_in: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    gpu_peers.measure(_job(out), ["vllm", "vllm-latency"], stand_in)
    figures = _figures(out, "vllm")
    assert figures["versions"]["vllm"] == "stand-in"
    work = the_mix(_job(out), 512)
    assert figures["mix"]["output_tokens"] == work.output_tokens
    assert list(figures["decode"]["rows"]) == ["1", "3"]
    assert list(figures["prefill"]["rows"]) == ["1x8", "2x32"]
    row = _figures(out, "vllm-latency")["rows"]["50"]
    assert (row["num_requests"], row["num_failed"]) == (4, 0)
    sent = [one["sent_s"] - one["due_s"] for one in row["requests"]]
    assert all(late >= 0 for late in sent)
    throughput, latency = (json.loads(line) for line in (tmp_path / "log").read_text().splitlines())
    assert throughput["enable_prefix_caching"] is False
    assert "max_num_batched_tokens" not in throughput  # its default for all at once
    assert latency["max_num_batched_tokens"] == 8192
    _keep(out, "decode", {"rows": {"1": {"tok_per_s": 306.8, "ms_per_step": 3.25}}})
    (line,) = (row for row in table(out, "bf16").splitlines() if row.startswith("decode 1 tok/s"))
    theirs = figures["decode"]["rows"]["1"]["tok_per_s"]
    assert line.split()[-4:] == ["153.4", "2.00", f"{theirs:,.6g}", f"{306.8 / theirs:.2f}"]
    (alone,) = (row for row in table(out, "bf16").splitlines() if row.startswith("decode 3 tok/s"))
    assert alone.split()[-1] == f"{figures['decode']['rows']['3']['tok_per_s']:,.6g}"


def test_vllm_that_loses_tokens_is_no_result(
    stand_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_LOSES", "1")
    with pytest.raises(RuntimeError, match="ended with 1; what it had measured is in"):
        gpu_peers.measure(_job(tmp_path / "out"), ["vllm"], stand_in)
    assert not (tmp_path / "out" / "bf16-vllm.json").exists()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (["--parts", "vllm"], "need --vllm COMMAND"),
        (["--parts", "decod"], "no part 'decod'"),
        (["--set", "overlap"], "write OPTION=VALUE"),
    ],
)
def test_bad_arguments_are_explained(
    argument: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        gpu_peers.main(["--out", str(tmp_path), *argument])
    assert message in capsys.readouterr().err


def test_a_part_past_the_budget_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--out", str(tmp_path), "--parts", "mix", "--budget-s", "0"]
    assert gpu_peers.main(given) == 1
    assert "not complete: mix" in capsys.readouterr().out


def test_a_part_that_outlasts_the_budget_is_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--out", str(tmp_path), "--parts", "mix", "--sizes", "tiny", "--shape", "tiny"]
    assert gpu_peers.main([*given, "--device", "cpu", "--budget-s", "0.2"]) == 1
    shown = capsys.readouterr()
    assert "stopped at the end of the budget" in shown.err
    assert "not complete: mix" in shown.out


def _job(out: Path, sizes: str = "tiny") -> Job:
    return Job(shape="tiny", weights="bf16", device="cpu", sizes=sizes, out=str(out), commit="test")


def _figures(out: Path, part: str) -> Any:
    return json.loads((out / f"bf16-{part}.json").read_text())["figures"]


def _keep(out: Path, part: str, figures: dict[str, object], weights: str = "bf16") -> None:
    (out / f"{weights}-{part}.json").write_text(json.dumps({"figures": figures}))
