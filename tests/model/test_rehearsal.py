"""What runs beside the loading to have kernels compiled: it happens where asked for, and leaves no trace."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nonet.config.resolved import Resolved
from nonet.core.buckets import buckets
from nonet.core.model_spec import ModelSpec
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine import assemble
from nonet.engine.llm import LLM
from nonet.engine.rehearsal import StandIn, steps_for
from nonet.kernels.ops import StepShape
from nonet.kernels.reference.ops import ReferenceOps
from tests.model.families import save

ROOM = {"num_blocks": 600, "max_model_len": 256, "max_num_seqs": 16, "max_tokens_per_step": 128}
PARAMS = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


Rehearsal = tuple[ModelSpec, list[StepShape]]


@pytest.fixture
def rehearsals(monkeypatch: pytest.MonkeyPatch) -> list[Rehearsal]:
    """The model and the steps of each, as if the reference kernels had to be compiled; they run instead."""
    monkeypatch.setattr(ReferenceOps, "compile_only", staticmethod(nullcontext))
    seen: list[Rehearsal] = []
    make = assemble._stand_in

    def watched(resolved: Resolved, spec: ModelSpec) -> StandIn:
        made = make(resolved, spec)
        steps: list[StepShape] = []
        seen.append((spec, steps))

        def forward(shape: StepShape) -> torch.Tensor:
            logits = made.forward(shape)
            assert logits.shape == (shape.num_rows, spec.vocab_size)
            steps.append(shape)
            return logits

        return replace(made, forward=forward)

    monkeypatch.setattr(assemble, "_stand_in", watched)
    return seen


def tokens(folder: Path, **options: object) -> list[int]:
    with LLM(str(folder), kernels="reference", device="cpu", **{**ROOM, **options}) as llm:
        llm.engine.add(Request(request_id="r", prompt_ids=[5, 6, 7, 8], params=PARAMS))
        made: list[int] = []
        while llm.engine.has_work:
            for delta in llm.engine.step():
                made += delta.token_ids
    return made


@pytest.mark.parametrize(("family", "layers"), [("llama", 1), ("gemma3", 2), ("mistral", 1)])
def test_one_layer_of_each_kind_and_the_model_is_as_without(
    family: str, layers: int, tmp_path: Path, rehearsals: list[Rehearsal]
) -> None:
    save(family, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReferenceOps, "compile_only", None)
        expected = tokens(tmp_path)
    assert not rehearsals
    assert tokens(tmp_path) == expected
    ((spec, steps),) = rehearsals
    assert spec.num_layers == layers
    assert len(steps) == 5  # what holds more sequences than the engine is left out
    assert {step.max_query_len for step in steps} >= {1, 100}


@pytest.mark.parametrize("most", [1, 3, 5, 8, 9, 15, 16, 20, 128, 200])
def test_decodes_are_rehearsed_at_sizes_that_steps_run_at(most: int) -> None:
    """Also where the engine holds fewer sequences than a usual step of few."""
    largest = StepShape(512, most, most, 512)
    steps = steps_for(largest)
    decodes = [step.num_seqs for step in steps if step == StepShape(*[step.num_seqs] * 3, 1)]
    assert set(decodes) <= set(buckets(most))
    assert len(set(decodes)) == len(decodes)
    assert {1, min(16, most), min(64, most), min(128, most)} == set(decodes)
    (beside,) = [step for step in steps if step.max_query_len == 2]
    assert beside.num_seqs == min(16, most)
    assert beside.num_seqs < beside.num_tokens <= 32


def test_no_step_is_larger_than_the_buffers() -> None:
    assert steps_for(StepShape(40, 2, 2, 40)) == [
        StepShape(1, 1, 1, 1),
        StepShape(2, 2, 2, 1),
        StepShape(16, 2, 2, 2),
    ]


def test_it_needs_the_room_of_the_cache_that_comes_later(
    tmp_path: Path, rehearsals: list[Rehearsal]
) -> None:
    save("llama", tmp_path)
    assert len(tokens(tmp_path, num_blocks=2, max_model_len=32)) == 8
    assert not rehearsals


def test_a_failure_is_logged_and_the_model_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> StandIn:
        raise MemoryError("no room")

    monkeypatch.setattr(ReferenceOps, "compile_only", staticmethod(nullcontext))
    monkeypatch.setattr(assemble, "_stand_in", fail)
    save("llama", tmp_path)
    with caplog.at_level(logging.WARNING, logger="nonet.engine"):
        assert len(tokens(tmp_path)) == 8
    assert "rehearsal_failed" in caplog.text
    assert "no room" in caplog.text
