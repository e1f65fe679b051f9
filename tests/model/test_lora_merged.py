"""Every row of a mixed batch equals its adapter merged into the weights by PEFT, computed by transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from nonet.core.outputs import RequestOutput
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from nonet.lora import checkpoint
from nonet.lora.adapter import Adapter, LayerShape
from nonet.lora.layers import AdapterLayers
from nonet.lora.settings import AdapterSettings
from tests.lora_cases import ALL, adapt, config
from tests.model.families import save
from tests.system.tiny_text import write_tokenizer

LONG = SamplingParams(temperature=0.0, max_tokens=48, ignore_eos=True)
Patch = Callable[[pytest.MonkeyPatch], None]
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=1)
ROOMY = {
    "num_blocks": 200,
    "max_model_len": 128,
    "max_num_seqs": 16,
    "max_tokens_per_step": 256,
    "dtype": "float32",
}
ADAPTERS = {
    "all": config(),
    "attention": config(r=2, target_modules=["q_proj", "v_proj"]),
    "rslora": config(r=8, use_rslora=True, target_modules="all-linear"),
    "pattern": config(target_modules=r"model\.layers\.[12]\.(self_attn\.k|mlp\.up)_proj"),
    "uneven": config(
        rank_pattern={"k_proj": 7, "layers.1.mlp.down_proj": 1},
        alpha_pattern={"v_proj": 3},
        layers_to_transform=[0, 1],
    ),
}


@dataclass
class Served:
    llm: LLM
    merged: dict[str | None, PreTrainedModel]


@pytest.fixture(scope="module", params=["llama-bias", "gemma3"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """An engine with all adapters, and the same models merged."""
    root = tmp_path_factory.mktemp(request.param)
    base = save(request.param, root / "base")
    write_tokenizer(root / "base")
    merged: dict[str | None, PreTrainedModel] = {None: base}
    for seed, (name, settings) in enumerate(ADAPTERS.items()):
        merged[name] = adapt(base, settings, root / name, seed)
    modules = tuple(f"{name}={root / name}" for name in ADAPTERS)
    with LLM(str(root / "base"), lora_modules=modules, max_loras=5, **ROOMY) as llm:
        yield Served(llm, merged)


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(2, 40, (count,), generator=generator).tolist()
    return [torch.randint(3, 199, (n,), generator=generator).tolist() for n in lengths]


def test_rows_of_a_mixed_batch_equal_merged_weights(served: Served) -> None:
    names: list[str | None] = [None, *ADAPTERS, "all", None, *reversed(ADAPTERS)]
    texts = prompts(len(names))
    outputs = served.llm.generate(texts, GREEDY, adapter=names)
    for name, output in zip(names, outputs, strict=True):
        assert_merged(served.merged[name], output)


def assert_merged(merged: PreTrainedModel, output: RequestOutput) -> None:
    """The merged model would have chosen each token, with the same log probability."""
    choice, prompt = output.outputs[0], output.prompt_ids
    with torch.no_grad():
        logits = merged(torch.tensor([prompt + choice.token_ids])).logits[0].float()
    expected = logits[len(prompt) - 1 : -1].log_softmax(-1)
    assert choice.token_ids == expected.argmax(-1).tolist()
    assert choice.logprobs is not None
    found = torch.tensor([row.logprob for row in choice.logprobs])
    chosen = expected[torch.arange(len(found)), choice.token_ids]
    assert (found - chosen).abs().max() < 1e-3


def test_adapters_change_the_answer(served: Served) -> None:
    """Guards the guard above: no two of these adapters agree by accident."""
    (prompt,) = prompts(1)
    outputs = served.llm.generate([prompt] * 6, GREEDY, adapter=[None, *ADAPTERS])
    first = [output.outputs[0].logprobs[0].logprob for output in outputs]  # type: ignore[index]
    assert min(b - a for a, b in pairwise(sorted(first))) > 2e-3


def test_a_prefix_is_never_shared_between_adapters(served: Served) -> None:
    """The same prompt again: equal adapters hit, others compute their own."""
    prompt = list(range(3, 60))
    names = [None, *ADAPTERS]
    first = served.llm.generate([prompt] * 6, GREEDY, adapter=names)
    assert [output.num_cached for output in first] == [0] * 6
    again = served.llm.generate([prompt] * 6, GREEDY, adapter=names)
    assert all(output.num_cached >= 16 for output in again)
    for one, other in zip(first, again, strict=True):
        assert one.outputs[0].token_ids == other.outputs[0].token_ids


@pytest.mark.parametrize(
    "changes",
    [
        {"kernels": "reference", "threads": 1},
        {"recording": False},
        {"max_tokens_per_step": 17, "max_num_seqs": 5},
        {"num_blocks": 12, "max_loras": 2},
        {"max_loras": 1, "prefix_cache": False},
    ],
    ids=["reference", "eager", "chunks", "preempted", "one slot"],
)
def test_tokens_do_not_depend_on_how_it_runs(tmp_path: Path, changes: dict[str, object]) -> None:
    base = save("llama", tmp_path / "base")
    write_tokenizer(tmp_path / "base")
    for seed, name in enumerate("abc"):
        adapt(base, config(target_modules=ALL), tmp_path / name, seed)
    modules = tuple(f"{name}={tmp_path / name}" for name in "abc")
    names: list[str | None] = ["a", "b", None, "c", "a", "c", "b", None, "b", "a", "c", "c"]
    answers = []
    for options in (ROOMY, {**ROOMY, **changes}):
        with LLM(str(tmp_path / "base"), lora_modules=modules, **options) as llm:
            outputs = llm.generate(prompts(len(names)), LONG, adapter=names)
            llm.engine.check_integrity()
            if "num_blocks" in changes and options is not ROOMY:
                assert llm.engine.stats().preemptions > 0
            answers.append([output.outputs[0].token_ids for output in outputs])
    assert answers[0] == answers[1]


def scale_inverted(patch: pytest.MonkeyPatch) -> None:
    right = AdapterSettings.scale_of
    patch.setattr(AdapterSettings, "scale_of", lambda self, module: 1 / right(self, module))


def rslora_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(AdapterSettings, "scale_of", lambda self, module: self.alpha / self.rank)


def first_factor_of_another_slot(patch: pytest.MonkeyPatch) -> None:
    right = AdapterLayers.store

    def store(self: AdapterLayers, adapter: Adapter, slot: int) -> None:
        right(self, adapter, slot)
        for factors in (linear.factors for linear in self._linears):
            factors.first[:2] = factors.first[:2].flip(0)

    patch.setattr(AdapterLayers, "store", store)


def keys_and_values_swapped(patch: pytest.MonkeyPatch) -> None:
    right = checkpoint._host_factors

    def swapped(
        path: Path, layer: LayerShape, pairs: Mapping[str, object], *rest: object
    ) -> object:
        names = layer.names
        if len(names) == 3:
            names = (names[0], names[2], names[1])
        return right(path, LayerShape(names, layer.outputs, layer.inputs), pairs, *rest)  # type: ignore[arg-type]

    patch.setattr(checkpoint, "_host_factors", swapped)


def leftovers_of_the_last_one_in_the_slot(patch: pytest.MonkeyPatch) -> None:
    """Where kernels read all that a slot holds, as they may."""
    right = AdapterLayers.store

    def store(self: AdapterLayers, adapter: Adapter, slot: int) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(torch.Tensor, "zero_", lambda tensor: tensor)
            right(self, adapter, slot)
        for factors in (linear.factors for linear in self._linears):
            assert factors.ranks is not None
            factors.ranks[slot - 1] = factors.rank

    patch.setattr(AdapterLayers, "store", store)


def last_term_left_out(patch: pytest.MonkeyPatch) -> None:
    right = AdapterLayers.store

    def store(self: AdapterLayers, adapter: Adapter, slot: int) -> None:
        right(self, adapter, slot)
        for factors in (linear.factors for linear in self._linears):
            assert factors.ranks is not None
            factors.ranks[slot - 1] = (factors.ranks[slot - 1] - 1).clamp(min=0)

    patch.setattr(AdapterLayers, "store", store)


MUTANTS: dict[str, Patch] = {
    mutant.__name__: mutant
    for mutant in (
        scale_inverted,
        rslora_ignored,
        first_factor_of_another_slot,
        keys_and_values_swapped,
        leftovers_of_the_last_one_in_the_slot,
        last_term_left_out,
    )
}


@pytest.mark.parametrize("name", ["none", *MUTANTS])
def test_mutants_differ_from_merged_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    base = save("llama", tmp_path / "base")
    write_tokenizer(tmp_path / "base")
    merged = {
        "one": adapt(base, config(r=8, use_rslora=True), tmp_path / "one", 1),
        "two": adapt(base, config(r=2, target_modules=["q_proj"]), tmp_path / "two", 2),
    }
    if name != "none":
        MUTANTS[name](monkeypatch)
    modules = tuple(f"{one}={tmp_path / one}" for one in merged)
    failed = 0
    with LLM(str(tmp_path / "base"), lora_modules=modules, max_loras=2, **ROOMY) as llm:
        for asked in (["one", "two"], ["two", "one"]):
            for output, adapter in zip(
                llm.generate(prompts(2), GREEDY, adapter=asked), asked, strict=True
            ):
                try:
                    assert_merged(merged[adapter], output)
                except AssertionError:
                    failed += 1
    if name.startswith("leftovers"):
        with LLM(str(tmp_path / "base"), lora_modules=modules, max_loras=1, **ROOMY) as llm:
            llm.generate(prompts(1), GREEDY, adapter="one")
            (output,) = llm.generate(prompts(1), GREEDY, adapter="two")
            try:
                assert_merged(merged["two"], output)
            except AssertionError:
                failed += 1
    assert (failed > 0) == (name != "none")
