"""Adapters in a whole engine: 64 through 4 slots, over quantised weights, and no trace of them where none is used."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
import torch

from nonet.core.errors import InvalidRequestError
from nonet.core.outputs import RequestOutput
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from nonet.lora.pool import AdapterPool
from nonet.quant.formats import WEIGHT_FORMATS
from nonet.quant.formats.base import StoredMatrix
from tests.lora_cases import adapt, config, write_many
from tests.model.families import save
from tests.model.test_lora_merged import assert_merged, prompts
from tests.system.tiny_text import write_tokenizer

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=1)
ROOMY = {
    "num_blocks": 300,
    "max_model_len": 128,
    "max_num_seqs": 16,
    "max_tokens_per_step": 128,
    "dtype": "float32",
}
NUM_ADAPTERS = 64


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and 64 adapters over it."""
    root = tmp_path_factory.mktemp("many")
    base = save("llama", root / "base")
    write_tokenizer(root / "base")
    write_many(base, config(r=2), [root / f"a{number}" for number in range(NUM_ADAPTERS)])
    return root


def modules(root: Path, count: int = NUM_ADAPTERS) -> tuple[str, ...]:
    return tuple(f"a{number}={root / f'a{number}'}" for number in range(count))


def pool_of(llm: LLM) -> AdapterPool:
    pool = llm.engine.parts.commands
    assert isinstance(pool, AdapterPool)
    return pool


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def test_64_adapters_through_4_slots(many: Path) -> None:
    """Twice round all of them in shuffled order, among requests without one: as with a slot for each."""
    names: list[str | None] = [f"a{number}" for number in range(NUM_ADAPTERS)] * 2 + [None] * 12
    random.Random(1).shuffle(names)
    texts = prompts(len(names))
    answers = []
    for num_slots in (NUM_ADAPTERS, 4):
        options = {**ROOMY, "max_loras": num_slots, "max_lora_rank": 2}
        with LLM(str(many / "base"), lora_modules=modules(many), **options) as llm:
            answers.append(tokens(llm.generate(texts, GREEDY, adapter=names)))
            llm.engine.check_integrity()
            loads = pool_of(llm).num_loads
            assert loads == NUM_ADAPTERS if num_slots == NUM_ADAPTERS else loads > NUM_ADAPTERS
    assert answers[0] == answers[1]
    assert len({tuple(answer) for answer in answers[0]}) > NUM_ADAPTERS


def test_aborts_leave_no_pin(many: Path) -> None:
    """Requests come and go at random steps; what is left is equal to an undisturbed run, and no slot stays pinned."""
    rng = random.Random(2)
    options = {**ROOMY, "max_loras": 2, "max_lora_rank": 2, "num_blocks": 40}
    names = [f"a{number}" for number in range(8)]
    texts = prompts(40)
    with LLM(str(many / "base"), lora_modules=modules(many, 8), **options) as llm:
        asked = [rng.choice(names) for _ in texts]
        expected = tokens(llm.generate(texts, GREEDY, adapter=asked))
        found: dict[str, list[int]] = {}
        gone: set[str] = set()
        ids = {adapter.name: adapter.adapter_id for adapter in llm.adapters}
        for number, text in enumerate(texts):
            request = Request(
                request_id=f"r{number}",
                prompt_ids=text,
                params=GREEDY,
                adapter_id=ids[asked[number]],
            )
            llm.engine.add(request)
            found[request.request_id] = []
            for _ in range(rng.randrange(3)):
                for delta in llm.engine.step():
                    found[delta.request_id] += delta.token_ids
            if rng.random() < 0.4:
                victim = f"r{rng.randrange(number + 1)}"
                if len(found[victim]) < GREEDY.max_tokens:
                    gone.add(victim)
                    llm.engine.abort([victim])
        while llm.engine.has_work:
            for delta in llm.engine.step():
                found[delta.request_id] += delta.token_ids
        llm.engine.check_integrity()
        pool = pool_of(llm)
        assert not any(pool._slots.is_pinned(adapter_id) for adapter_id in ids.values())
        for name in names:
            llm.unload_adapter(name)
        assert pool.num_in_memory == 0, "an aborted request still counts as a user"
    assert gone
    for number, answer in enumerate(expected):
        if f"r{number}" not in gone:
            assert found[f"r{number}"] == answer


@pytest.mark.parametrize("kernels", ["reference", "native"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_without_an_adapter_have_the_same_bits(many: Path, kernels: str, dtype: str) -> None:
    """Off means off: also after steps with adapters, and beside slots that hold some."""
    options = {**ROOMY, "kernels": kernels, "dtype": dtype, "threads": 1, "prefix_cache": False}
    texts = prompts(6)
    answers = []
    with LLM(str(many / "base"), **options) as llm:
        answers.append(llm.generate(texts, GREEDY))
    with LLM(str(many / "base"), lora_modules=modules(many, 3), **options) as llm:
        answers.append(llm.generate(texts, GREEDY))
        llm.generate(texts, GREEDY, adapter=["a0", "a1", "a2", None, "a0", None])
        answers.append(llm.generate(texts, GREEDY))
    plain = [
        [(row.token_id, row.logprob) for row in out.outputs[0].logprobs or ()] for out in answers[0]
    ]
    for other in answers[1:]:
        assert plain == [
            [(row.token_id, row.logprob) for row in out.outputs[0].logprobs or ()] for out in other
        ]


@pytest.mark.parametrize("weight_format", ["int8", "int4"])
@pytest.mark.parametrize("kernels", ["reference", "native"])
def test_adapters_over_a_quantised_base(tmp_path: Path, kernels: str, weight_format: str) -> None:
    """What is added is exact, the base is what its codes say: PEFT merges into the dequantised weights."""
    base = save("llama", tmp_path / "base")
    write_tokenizer(tmp_path / "base")
    held = copy.deepcopy(base)
    rounding = WEIGHT_FORMATS.build(weight_format)
    with torch.no_grad():
        for name, parameter in held.named_parameters():
            if parameter.dim() == 2:
                stored = StoredMatrix(lambda parameter=parameter: parameter.data, lambda: None)  # type: ignore[misc]
                role = "linear" if "layers" in name else "embedding"
                parameter.copy_(rounding.convert(stored, role).dequantize())
    merged = {None: held, "one": adapt(held, config(r=8), tmp_path / "one", 1)}
    options = {**ROOMY, "kernels": kernels, "weight_format": weight_format, "threads": 1}
    with LLM(str(tmp_path / "base"), lora_modules=(f"one={tmp_path / 'one'}",), **options) as llm:
        names = ["one", None, "one"]
        for name, output in zip(
            names, llm.generate(prompts(3), GREEDY, adapter=names), strict=True
        ):
            assert_merged(merged[name], output)


def test_an_adapter_of_further_layers_comes_while_serving(tmp_path: Path) -> None:
    """Layers that no adapter touches are left out of recordings, so those are made anew then."""
    base = save("llama", tmp_path / "base")
    write_tokenizer(tmp_path / "base")
    narrow = config(target_modules=["q_proj", "v_proj"])
    merged = {
        None: base,
        "narrow": adapt(base, narrow, tmp_path / "narrow", 1),
        "wide": adapt(base, config(), tmp_path / "wide", 2),
    }
    modules = (f"narrow={tmp_path / 'narrow'}", f"wide={tmp_path / 'wide'}")
    with LLM(str(tmp_path / "base"), lora_modules=modules, **ROOMY) as llm:
        for names in (["narrow", None], [None, "narrow", "wide"], ["narrow"], [None]):
            outputs = llm.generate(prompts(len(names)), GREEDY, adapter=names)
            for name, output in zip(names, outputs, strict=True):
                assert_merged(merged[name], output)
        stats = llm.engine.stats()
        is_recorded = "recorded" in llm.engine.info.attention
        assert stats.recorded_steps == (stats.steps if is_recorded else 0)


def test_a_wrong_name_or_number_of_adapters_is_said(many: Path) -> None:
    with LLM(str(many / "base"), lora_modules=modules(many, 1), **ROOMY) as llm:
        with pytest.raises(InvalidRequestError, match="no adapter 'b' is loaded; loaded: a0"):
            llm.generate(prompts(1), GREEDY, adapter="b")
        with pytest.raises(InvalidRequestError, match="2 adapters were given for 1 prompts"):
            llm.generate(prompts(1), GREEDY, adapter=["a0", "a0"])
        with pytest.raises(InvalidRequestError, match="loaded already"):
            llm.load_adapter("a0", many / "a1")
        llm.load_adapter("late", many / "a1")
        (late,) = llm.generate(prompts(1), GREEDY, adapter="late")
        assert late.finished
        llm.unload_adapter("late")
        assert [adapter.name for adapter in llm.adapters] == ["a0"]
