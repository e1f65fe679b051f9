"""What a result file holds, and what it must not hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nonet.bench.metrics import Limits, RequestTimes, summarise
from nonet.bench.offline import run_offline
from nonet.bench.report import Report, describe, make_report, write_report
from nonet.bench.workload import mix
from nonet.config.machine import Machine
from nonet.core.errors import ConfigError
from nonet.core.outputs import Completion, RequestOutput
from nonet.core.sampling_params import SamplingParams


def report(runs: int = 2) -> Report:
    limits = Limits(ttft_s=1.0)
    timelines = [
        [RequestTimes(index=0, due_s=0.0, sent_s=0.0, delivery_s=[0.5, 1.0 + run], output_tokens=2)]
        for run in range(runs)
    ]
    return make_report(
        kind="serve",
        command=["nonet", "bench", "serve", "--api-key", "s3cret", "--api-keys=s3cret", "--rate", "2"],
        machine=Machine.detect(),
        config={"dtype": "bfloat16"},
        workload=mix(4),
        arrivals="all at once",
        limits=limits,
        warm_up_requests=1,
        runs=[summarise(times, limits) for times in timelines],
        requests=timelines,
        notes=["a note"],
    )  # fmt: skip


def test_a_result_can_be_made_again(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "result.json"
    write_report(report(), file)
    found = json.loads(file.read_text())
    assert found["workload"]["sha256"] == mix(4).digest()
    assert found["workload"]["made_with"]["seed"] == 0
    assert found["libraries"]["nonet"]
    assert found["device"]["physical_cores"] >= 1
    assert found["requests"][1][0]["delivery_s"] == [0.5, 2.0]
    assert found["limits"]["ttft_s"] == 1.0
    assert found["output_tokens_per_s"] == {"median": 1.5, "least": 1.0, "most": 2.0}
    assert len(found["commit"] or "x" * 40) >= 40


def test_keys_stay_out(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    write_report(report(), file)
    assert "s3cret" not in file.read_text()
    assert json.loads(file.read_text())["command"][-1] == "2"


def test_the_terminal_shows_spread_and_notes() -> None:
    text = describe(report())
    for fragment in ("a note", "median 1.5, 1.0 to 2.0", "TTFT", "goodput", "sha256"):
        assert fragment in text


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        write_report(report(), tmp_path / "file" / "result.json")


class FakeLLM:
    """Generates what is asked, one request after the other, a second each."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.params: list[SamplingParams] = []

    def generate(self, prompts, params, *, on_progress=None):  # type: ignore[no-untyped-def]
        self.params = list(params)
        outputs = []
        for number, (prompt, one) in enumerate(zip(prompts, params, strict=True), start=1):
            self.now_s += 1.0
            made = Completion(index=0, token_ids=[7] * one.max_tokens, finish_reason="length")
            outputs.append(
                RequestOutput(request_id="", prompt=None, prompt_ids=list(prompt), outputs=[made])
            )
            on_progress(number, len(prompts))
        return outputs  # fmt: skip


def test_offline_counts_what_was_generated() -> None:
    llm, work = FakeLLM(), mix(5)
    summary, times = run_offline(llm, work, now=lambda: llm.now_s)
    assert summary.duration_s == pytest.approx(5.0)
    assert summary.output_tokens_per_s == pytest.approx(work.output_tokens / 5)
    assert summary.total_tokens_per_s == pytest.approx(
        (work.output_tokens + work.prompt_tokens) / 5
    )
    assert summary.ttft_s is None
    assert [one.delivery_s for one in times] == [[1.0], [2.0], [3.0], [4.0], [5.0]]
    assert all(one.ignore_eos and one.is_greedy for one in llm.params)
