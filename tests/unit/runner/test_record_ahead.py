"""Recording ahead: on buffers that hold nothing but padding, and never at the cost of what is served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.model.families import save, save_words

from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from nonet.kernels.ops import StepShape
from nonet.runner.batch import StepBuffers
from nonet.runner.runner import Runner

PARAMS = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)


class Recorder:
    """Runs steps as they are; notes what the buffers held when it was asked to record."""

    def __init__(self, runner: Runner, buffers: StepBuffers) -> None:
        self.num_replays = 0
        self.left = 2
        self.error: Exception | None = None
        self.seen: list[dict[str, set[int]]] = []
        self._runner, self._buffers = runner, buffers

    def replay(self, shape: StepShape) -> torch.Tensor:
        model = self._runner._model
        return model.forward(self._buffers.step(shape))[: shape.num_rows]

    def record_ahead(self) -> bool:
        if self.error is not None:
            raise self.error
        views = self._buffers._there
        held = {
            "token_ids": views.token_ids, "positions": views.positions, "adapters": views.adapters,
            "rows": views.rows, "query_start": views.query_start,
        }  # fmt: skip
        held |= {f"slots {group}": slots for group, slots in enumerate(views.slots)}
        held |= {f"kv_len {group}": length for group, length in enumerate(views.kv_len)}
        self.seen.append({name: set(view.tolist()) for name, view in held.items()})
        assert not self._buffers.adapters.in_use
        self.left -= 1
        return self.left > 0


@pytest.fixture(params=["llama", "gemma3"])
def llm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LLM]:
    save(request.param, tmp_path)
    save_words(tmp_path)
    with LLM(str(tmp_path), kernels="reference", device="cpu", num_blocks=160) as made:
        yield made


def ran(llm: LLM) -> list[int]:
    llm.engine.add(Request(request_id="r", prompt_ids=list(range(5, 40)), params=PARAMS))
    tokens: list[int] = []
    while llm.engine.has_work:
        for delta in llm.engine.step():
            tokens += delta.token_ids
    return tokens


def recorder(llm: LLM) -> Recorder:
    runner = llm.engine.parts.executor.runner
    made = Recorder(runner, runner._buffers)
    runner.recording = made
    return made


def test_it_sees_padding_alone_and_leaves_no_trace(llm: LLM) -> None:
    expected = ran(llm)
    made = recorder(llm)
    made._buffers.adapters.in_use = True
    made._buffers._here.adapters.fill_(1)
    assert ran(llm) == expected
    assert llm.engine.use_idle()
    assert not llm.engine.use_idle()
    groups = len(llm.resolved.groups)
    assert len(made.seen) == 2
    for held in made.seen:
        assert all(held[f"slots {group}"] == {-1} for group in range(groups))
        names = ("token_ids", "positions", "adapters", "rows", "query_start")
        assert all(held[name] == {0} for name in names)
        assert all(held[f"kv_len {group}"] == {0} for group in range(groups))
    assert ran(llm) == expected


def test_what_does_not_fit_is_left(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    expected = ran(llm)
    made = recorder(llm)
    made.error = torch.OutOfMemoryError("the neighbour has it")
    assert not llm.engine.use_idle()
    assert "record_ahead_failed" in caplog.text
    assert ran(llm) == expected


def test_nothing_is_recorded_where_nothing_can_be(llm: LLM) -> None:
    llm.engine.parts.executor.runner.recording = None
    assert not llm.engine.use_idle()
