"""Grammars in the whole engine, on real weights: batches, preemption, drafts, compiling beside running requests."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import threading
from collections.abc import Iterator

import jsonschema
import msgspec
import pytest

from nonet.core.errors import InvalidRequestError
from nonet.core.grammar import Grammar
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.core.step import StepResult
from nonet.engine.llm import LLM
from nonet.grammar.llguidance import LLGuidance
from nonet.runner.executor import LocalExecutor
from nonet.runner.runner import LaunchedStep
from tests.real_models import real_model

pytestmark = pytest.mark.models

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["old", "young"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
GRAMMARS = [
    Grammar("json_schema", json.dumps(PERSON)),
    Grammar("choice", '["yes", "no", "perhaps"]'),
    Grammar("regex", r"[A-Z][a-z]{2,9}( [A-Z][a-z]{2,9}){0,2}\."),
    None,
    Grammar("lark", 'start: "<" WORD ("," WORD){0,3} ">"\nWORD: /[a-z]{1,8}/'),
]
ASK = [{"role": "user", "content": "Describe a person."}]
NUMBER = 10


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(str(real_model("smollm2")), memory_gib=0.3, max_model_len=1024) as made:
        yield made


def wanted(llm: LLM) -> list[tuple[list[int], SamplingParams]]:
    prompt = llm._reader.chat_ids(ASK)
    return [
        (
            prompt,
            SamplingParams(
                grammar=GRAMMARS[i % len(GRAMMARS)], seed=i, max_tokens=40, temperature=0.7 + i % 3
            ),
        )
        for i in range(NUMBER)
    ]


def generate(llm: LLM, asked: list[tuple[list[int], SamplingParams]]) -> list[list[int]]:
    outputs = llm.generate([prompt for prompt, _ in asked], [params for _, params in asked])
    for output, (_, params) in zip(outputs, asked, strict=True):
        one = output.outputs[0]
        assert one.finish_reason in ("stop", "length"), one.error
        if one.finish_reason == "stop" and params.grammar is not None:
            check(params.grammar, one.text)
    return [output.outputs[0].token_ids for output in outputs]


def check(grammar: Grammar, text: str) -> None:
    match grammar.kind:
        case "json_schema":
            jsonschema.validate(json.loads(text), json.loads(grammar.text))
        case "choice":
            assert text in json.loads(grammar.text)
        case "regex":
            assert re.fullmatch(grammar.text, text)
        case "lark":
            assert re.fullmatch("<[a-z]{1,8}(,[a-z]{1,8}){0,3}>", text)


@pytest.fixture(scope="module")
def expected(llm: LLM) -> list[list[int]]:
    return [generate(llm, [one])[0] for one in wanted(llm)]


def test_a_mixed_batch_equals_each_alone(llm: LLM, expected: list[list[int]]) -> None:
    assert generate(llm, wanted(llm)) == expected


def test_running_ahead_changes_nothing(llm: LLM, expected: list[list[int]]) -> None:
    """The next step's forward pass is launched before the tokens that the masks are made of were read."""
    parts = llm.engine.parts
    llm.engine.parts = dataclasses.replace(parts, depth=1)
    before = llm.engine.times.overlapped_steps
    try:
        assert generate(llm, wanted(llm)) == expected
    finally:
        llm.engine.parts = parts
    assert llm.engine.times.overlapped_steps - before > 30


def test_an_answer_finishes_in_time(llm: LLM) -> None:
    """Eighteen texts at least in 60 tokens: too few for the model's own words."""
    asked = "Write a JSON list of the numbers from one to twenty in words."
    prompt = llm._reader.chat_ids([{"role": "user", "content": asked}])
    texts = {"type": "array", "items": {"type": "string"}, "minItems": 18}
    grammar = Grammar("json_schema", json.dumps(texts))
    ways = [
        SamplingParams(grammar=grammar, temperature=0.0, max_tokens=60, finish_in_time=in_time)
        for in_time in (False, True)
    ]
    cut, whole = (one.outputs[0] for one in llm.generate([prompt, prompt], ways))
    assert (cut.finish_reason, whole.finish_reason) == ("length", "stop")
    check(grammar, whole.text)
    assert whole.token_ids[:12] == cut.token_ids[:12]
    assert len(whole.token_ids) <= 60


def test_preemption_changes_nothing(expected: list[list[int]]) -> None:
    """Blocks for a few sequences only, so that others give theirs up in the middle of an output."""
    with LLM(
        str(real_model("smollm2")), num_blocks=12, max_model_len=128, prefix_cache=False
    ) as small:
        assert generate(small, wanted(small)) == expected
        assert small.engine.stats().preemptions > 0


def test_drafts_change_nothing(
    llm: LLM, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step proposes what is known to follow, spoilt now and then: legal and illegal drafts, also past the end."""
    asked = wanted(llm)
    rng = random.Random(4)
    numbers: dict[int, int] = {}  # sequence: which output it is
    lengths: dict[int, int] = {}
    accepted: list[int] = []

    def collect(self: LocalExecutor, step: LaunchedStep) -> StepResult:
        result = self.runner.collect(step)
        rows = []
        for row in result.rows:
            number = numbers.setdefault(row.seq_id, len(numbers))
            lengths[number] = lengths.get(number, 0) + len(row.token_ids)
            accepted.append(row.num_accepted)
            coming = expected[number][lengths[number] : lengths[number] + rng.randrange(5)]
            if coming and rng.random() < 0.4:
                coming[rng.randrange(len(coming))] = rng.randrange(49152)
            rows.append(msgspec.structs.replace(row, drafts=tuple(coming)))
        return msgspec.structs.replace(result, rows=rows)

    monkeypatch.setattr(LocalExecutor, "collect", collect)
    found = [generate(llm, [one])[0] for one in asked]
    assert found == expected
    assert sum(accepted) > 50


def test_compiling_stalls_nobody(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    right = LLGuidance.compile

    def slow(self: LLGuidance, grammar: Grammar) -> None:
        assert gate.wait(20)
        right(self, grammar)

    monkeypatch.setattr(LLGuidance, "compile", slow)
    engine = llm.engine
    for name, grammar in (("slow", Grammar("regex", "ab{3}")), ("quick", None)):
        params = SamplingParams(max_tokens=8, ignore_eos=grammar is None, grammar=grammar)
        engine.add(
            Request(request_id=name, prompt_ids=[5, 6], params=params, eos_ids=llm.spec.eos_ids)
        )
    ended: dict[str, str | None] = {}
    while "slow" not in ended:
        for delta in engine.step():
            if delta.finish_reason is not None:
                ended[delta.request_id] = delta.error or delta.finish_reason
        if ended:
            gate.set()
    assert ended == {"quick": "length", "slow": "stop"}
    assert list(ended) == ["quick", "slow"]


def test_a_bad_grammar_ends_its_request_alone(llm: LLM) -> None:
    good, bad = (
        SamplingParams(max_tokens=4, grammar=Grammar("regex", r)) for r in ("[ab]{2}", "(")
    )
    outputs = llm.generate([[5, 6], [5, 6]], [bad, good])
    assert outputs[0].outputs[0].finish_reason == "error"
    assert "the grammar cannot be used" in (outputs[0].outputs[0].error or "")
    assert outputs[1].outputs[0].finish_reason == "stop"
    assert re.fullmatch("[ab]{2}", outputs[1].outputs[0].text)
    llm.engine.check_integrity()


@pytest.mark.parametrize("field", ["ignore_eos", "min_tokens"])
def test_an_end_that_the_grammar_decides_cannot_be_decided_twice(llm: LLM, field: str) -> None:
    params = msgspec.structs.replace(SamplingParams(grammar=GRAMMARS[1]), **{field: 1})
    with pytest.raises(InvalidRequestError, match="where the output ends") as caught:
        llm.generate([[5, 6]], params)
    assert caught.value.param == field
