"""Outputs that are complete at max_tokens: the way to the end, when it is taken, and wrong variants of both."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import jsonschema
import pytest
import torch
from grammar_cases import EOS, EOT, VOCAB, compiler, ids, legal, sampler_with, sequence, tokenizer

from nonet.core.errors import InvalidRequestError
from nonet.core.grammar import Grammar
from nonet.core.sampling_params import SamplingParams
from nonet.grammar.base import Matcher
from nonet.sampling.processors import grammar as processor
from nonet.sampling.sampler import Sampler
from nonet.sampling.samples import SampleRow

ANYTHING = {"type": "object"}
PEOPLE = {
    "type": "object",
    "properties": {
        "people": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string", "minLength": 3}, "age": {"type": "integer"}},
                "required": ["name", "age"],
            },
        },
        "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
    "required": ["people", "next"],
}  # fmt: skip
PATTERNS = {
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
    "path": "iglu:[a-zA-Z0-9_.-]+/[a-zA-Z0-9_-]+/[a-zA-Z0-9_-]+/[0-9]+-[0-9]+-[0-9]+",
    "count": "(ab){7}c|x{30}",
}


def schema(made_of: object) -> Grammar:
    return Grammar("json_schema", json.dumps(made_of))


GRAMMARS = {
    "anything": schema(ANYTHING),
    "people": schema(PEOPLE),
    "time": schema({"type": "string", "format": "date-time"}),
    **{name: schema({"type": "string", "pattern": f"^({one})$"}) for name, one in PATTERNS.items()},
    "regex": Grammar("regex", "(no|12)+;"),
    "gbnf": Grammar("lark", 'root ::= "{" item ("," item)* "}"\nitem ::= [a-z]+'),
}


def text_of(token_ids: list[int]) -> str:
    return b"".join(tokenizer().token_bytes(i) for i in token_ids).decode()


def way(matcher: Matcher, most: int) -> list[int]:
    """Tokens of the quickest way, as they are asked for one by one."""
    made_by, found = compiler(), list[int]()
    while len(found) < most and (not found or found[-1] not in (EOS, EOT)):
        words = processor.np.zeros((1, -(-VOCAB // 32)), processor.np.int32)
        made_by.fill([(matcher, 0)], words)
        token_id = matcher.soonest(words[0])
        assert token_id in legal(made_by, matcher)
        assert matcher.advance(token_id)
        found.append(token_id)
    return found


@pytest.mark.parametrize("name", GRAMMARS)
@pytest.mark.parametrize("begun", ["", "half"])
def test_the_way_is_as_long_as_it_is_said_to_be(name: str, begun: str) -> None:
    matcher = compiler().start(GRAMMARS[name])
    before = run(sampler_with(sequence(GRAMMARS[name], seed=3)), 6)[:4] if begun else []
    assert all(matcher.advance(token_id) for token_id in before if token_id not in (EOS, EOT))
    promised = matcher.tokens_to_end(200)
    assert promised is not None
    assert matcher.tokens_to_end(promised) == promised  # nothing moved
    assert matcher.tokens_to_end(promised - 1) is None
    found = way(matcher, 200)
    assert found[-1] in (EOS, EOT)
    assert len(found) <= promised
    if name in PATTERNS and not begun:
        assert re.fullmatch(PATTERNS[name], json.loads(text_of(found[:-1])))


def test_ways_are_short() -> None:
    texts = {name: text_of(way(compiler().start(one), 200)[:-1]) for name, one in GRAMMARS.items()}
    assert texts["anything"] == "{}"
    assert json.loads(texts["people"])["next"] is None
    assert len(json.loads(texts["people"])["people"]) == 1
    assert len(texts["path"]) == len('"iglu:1/1/1/1-1-1"')
    assert len(texts["gbnf"]) == len("{a}")


def test_no_way_is_promised_where_none_was_found() -> None:
    far = compiler().start(Grammar("regex", "(no){300}"))
    assert far.tokens_to_end(200) is None
    assert far.tokens_to_end(700) is not None
    # Only "q" ends it, which stands for all other letters after this many of them alone.
    hidden = compiler().start(Grammar("regex", "[a-z]*zzqzzqzzq;"))
    assert hidden.tokens_to_end(2000) is None


def run(sampler: Sampler, steps: int, seed: int = 0, first: int = 1) -> list[int]:
    """Tokens by random logits, which end hardly anything."""
    outputs: list[int] = []
    while len(outputs) < steps and (not outputs or outputs[-1] not in (EOS, EOT)):
        raw = torch.randn(
            1, VOCAB, generator=torch.Generator().manual_seed(seed * 1000 + first + len(outputs))
        )
        (one,) = sampler.sample(raw, [SampleRow(0, first + len(outputs))])
        assert one.error is None
        outputs.append(one.token_id)
        sampler.append(0, [one.token_id])
    return outputs


@pytest.mark.parametrize("budget", [32, 100])
@pytest.mark.parametrize("name", ["anything", "people", "regex", "gbnf", "path"])
def test_outputs_finish_in_time(name: str, budget: int) -> None:
    if name in ("people", "path"):
        budget *= 2  # nothing shorter than 48 tokens satisfies it
    cut = 0
    for seed in range(4):
        outputs = {}
        for in_time in (False, True):
            params = {"max_tokens": budget, "finish_in_time": in_time}
            sampler = sampler_with(sequence(GRAMMARS[name], seed=seed, **params))
            outputs[in_time] = run(sampler, budget, seed)
        assert outputs[True][-1] in (EOS, EOT)
        if name in ("anything", "people"):
            value = json.loads(text_of(outputs[True][:-1]))
            jsonschema.validate(value, ANYTHING if name == "anything" else PEOPLE)
        if outputs[False][-1] not in (EOS, EOT):
            cut += 1
            pairs = enumerate(zip(*outputs.values(), strict=False))
            shared = next(i for i, (a, b) in pairs if a != b)
            assert shared >= budget // 4  # free until it must close
        elif len(outputs[False]) < budget // 4:
            assert outputs[True] == outputs[False]
    assert cut > 0 or name in ("regex", "gbnf")


def distributions(known: list[int], drafts: list[int], together: bool) -> torch.Tensor:
    """Of the position after `known` and of those after each draft: verified in one step, or reached one by one."""
    params = {"max_tokens": 64, "finish_in_time": True}
    raw = torch.randn(len(drafts) + 1, VOCAB, generator=torch.Generator().manual_seed(9))
    at = 1 + len(known)
    if together:
        sampler = sampler_with(sequence(GRAMMARS["people"], known, **params))
        rows = [SampleRow(0, at + i, tuple(drafts[:i])) for i in range(len(drafts) + 1)]
        first = sampler.final_probabilities(raw.clone(), rows)
        assert torch.equal(sampler.final_probabilities(raw.clone(), rows), first)
        return first
    found = []
    sampler = sampler_with(sequence(GRAMMARS["people"], **params))
    for token_id in known:
        sampler.append(0, [token_id])
    for i in range(len(drafts) + 1):
        found.append(sampler.final_probabilities(raw[i : i + 1].clone(), [SampleRow(0, at + i)])[0])
        sampler.append(0, drafts[i : i + 1])
    return torch.stack(found)


def verify_drafts() -> None:
    """Across the look at which an output begins to close, with drafts on the way out and drafts that leave it."""
    params = {"max_tokens": 64, "finish_in_time": True}
    outputs = run(sampler_with(sequence(GRAMMARS["people"], seed=1, **params)), 64, seed=1)
    for known in range(0, len(outputs) - 6, 3):
        drafts = outputs[known : known + 5]
        spoilt = [*drafts[:2], *ids('"'), *drafts[3:]]
        for one in (drafts, spoilt):
            expected = distributions(outputs[:known], one, together=False)
            found = distributions(outputs[:known], one, together=True)
            # What follows an illegal draft says nothing.
            ends = next((i for i in range(len(one)) if expected[i, one[i]] == 0), len(one))
            assert torch.equal(found[: ends + 1], expected[: ends + 1]), known


def test_drafts_and_preemptions_change_nothing() -> None:
    verify_drafts()


def closing_not_undone(patch: pytest.MonkeyPatch) -> None:
    def undo(self: processor._Walk, length: int) -> None:
        if len(self._taken) > length:
            self.place.matcher.rollback(len(self._taken) - length)
            self.place.count(length - len(self._taken))
            del self._taken[length:]

    patch.setattr(processor._Walk, "_undo_to", undo)


def count_not_undone(patch: pytest.MonkeyPatch) -> None:
    right = processor._Place.count
    patch.setattr(processor._Place, "count", lambda self, n: right(self, max(0, n)))


def drafts_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(processor._Walk, "is_closing", property(lambda self: self._was_closing[0]))


@pytest.mark.parametrize("mutant", [closing_not_undone, count_not_undone, drafts_not_looked_at])
def test_the_check_of_drafts_rejects(
    mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)
    with pytest.raises((AssertionError, IndexError)):
        verify_drafts()


@pytest.mark.parametrize("spare", [0, -200])
def test_the_check_of_ends_rejects_an_end_that_is_begun_too_late(
    spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "_spare", lambda num_tokens: spare)
    with pytest.raises(AssertionError):
        test_outputs_finish_in_time("people", 100)


def test_it_needs_a_limit() -> None:
    with pytest.raises(InvalidRequestError, match="finish_in_time needs max_tokens"):
        SamplingParams(finish_in_time=True).verify(VOCAB)
    SamplingParams(finish_in_time=True, max_tokens=4).verify(VOCAB)
