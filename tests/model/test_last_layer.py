"""In the last layer only tokens whose logits are wanted go on once keys and values are stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from nonet.kernels.ops import AttentionInputs, PackedLinear
from nonet.kernels.reference.ops import ReferenceOps
from nonet.layers.forward_step import ForwardStep
from tests.model.families import SIZES, save, save_words

EACH_LAYER = 4  # products: q, k and v; what leaves attention; gate and up; down
PROMPTS = [[(7 * place + 3 * number) % 190 for place in range(40 + number)] for number in range(3)]


@pytest.fixture
def rows_seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each product of a layer was given, in order."""
    seen: list[int] = []
    plain = ReferenceOps.linear

    def counted(self: ReferenceOps, x: torch.Tensor, weight: PackedLinear) -> torch.Tensor:
        if weight.weight.shape[0] != SIZES["vocab_size"]:  # the output head
            seen.append(x.shape[0])
        return plain(self, x, weight)

    monkeypatch.setattr(ReferenceOps, "linear", counted)
    return seen


def generated(folder: Path, prompts: list[list[int]], **options: object) -> list[list[int]]:
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    given = {"kernels": "reference", "dtype": "float32", "device": "cpu", "num_blocks": 160}
    with LLM(str(folder), **(given | options)) as llm:
        return [list(one.outputs[0].token_ids) for one in llm.generate(prompts, params)]


def by_step(seen: list[int], num_layers: int) -> list[list[int]]:
    """Rows of the last layer's products, step by step; those before must have had all rows of the step."""
    size = EACH_LAYER * num_layers
    steps = [seen[at : at + size] for at in range(0, len(seen), size)]
    for step in steps:
        assert len(set(step[: size - EACH_LAYER + 1])) == 1
    return [step[-EACH_LAYER:] for step in steps]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_only_what_is_sampled_goes_on(family: str, tmp_path: Path, rows_seen: list[int]) -> None:
    oracle = save(family, tmp_path)
    save_words(tmp_path)
    found = generated(tmp_path, PROMPTS, max_tokens_per_step=200)
    for prompt, ours in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            for _ in range(4):
                best = oracle(ids).logits[:, -1:].argmax(-1)
                ids = torch.cat((ids, best), dim=1)
        assert ours == ids[0, len(prompt) :].tolist()
    first, *decodes = by_step(rows_seen, oracle.config.num_hidden_layers)
    tokens = sum(map(len, PROMPTS))
    assert first == [tokens, 3, 3, 3]
    assert decodes == [[3, 3, 3, 3]] * 3


def test_a_piece_that_samples_nothing_keeps_one_row(tmp_path: Path, rows_seen: list[int]) -> None:
    oracle = save("llama", tmp_path)
    save_words(tmp_path)
    pieces = generated(tmp_path, PROMPTS[:1], max_tokens_per_step=16)
    steps = by_step(rows_seen, oracle.config.num_hidden_layers)
    assert steps[:3] == [[16, 1, 1, 1], [16, 1, 1, 1], [8, 1, 1, 1]]
    assert pieces == generated(tmp_path, PROMPTS[:1], max_tokens_per_step=200)


def test_what_looks_at_every_token_gets_every_token(tmp_path: Path, rows_seen: list[int]) -> None:
    oracle = save("llama", tmp_path)
    save_words(tmp_path)
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    with LLM(str(tmp_path), kernels="reference", dtype="float32", device="cpu", num_blocks=160) as llm:  # fmt: skip
        (output,) = llm.generate([PROMPTS[0]], params)
    assert by_step(rows_seen, oracle.config.num_hidden_layers)[0] == [40] * 4
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == 40


def test_as_many_rows_as_tokens_are_not_all_of_them_where_they_pad() -> None:
    """A graph for 6 tokens of 2 sequences may have room for 6 rows of which 4 are wanted."""
    ints = torch.zeros(6, dtype=torch.int32)
    inputs = AttentionInputs(
        positions=ints, query_start=ints[:3], kv_len=ints[:2], block_table=ints.view(2, 3), slots=ints,
        max_query_len=3, max_kv_len=8,
    )  # fmt: skip
    step = ForwardStep(token_ids=ints, rows=ints, inputs=(inputs,), caches=())
    assert not step.wants_all
    assert replace(step, inputs=(replace(inputs, max_query_len=1),)).wants_all
    assert not replace(step, rows=ints[:4], inputs=(replace(inputs, max_query_len=1),)).wants_all


@pytest.mark.parametrize("kernels", ["reference", "native", "padded"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_pieces_make_no_difference(family: str, kernels: str, tmp_path: Path) -> None:
    """A step may sample nothing, which native kernels replay with no row at all."""
    save(family, tmp_path)
    save_words(tmp_path)
    whole = generated(tmp_path, PROMPTS, kernels=kernels, max_tokens_per_step=200)
    assert generated(tmp_path, PROMPTS, kernels=kernels, max_tokens_per_step=16) == whole
    assert whole == generated(tmp_path, PROMPTS, kernels="reference", max_tokens_per_step=200)
