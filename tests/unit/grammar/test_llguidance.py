"""The compiler and its matchers: masks against brute force, ends, rollback, refusals, what is kept."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path

import pytest
from grammar_cases import EOS, EOT, VOCAB, compiler, ids, legal, tokenizer
from tests.real_models import real_model
from tests.unit.text.small_vocabularies import sentencepiece_metadata

from nonet.core.errors import InvalidRequestError
from nonet.core.grammar import Grammar
from nonet.grammar import GRAMMARS, llguidance
from nonet.grammar.base import GrammarCompiler, Matcher
from nonet.grammar.llguidance import LLGuidance
from nonet.grammar.vocabulary import TokenBytes
from nonet.text.gguf_vocab import vocabulary_from_gguf
from nonet.text.tokenizer import Tokenizer, load_tokenizer

LANGUAGES = {
    "choice": (Grammar("choice", '["no", "nothing", "true", "12", "a b"]'), ["no", "nothing", "true", "12", "a b"]),
    "regex": (Grammar("regex", "(no|true){1,2}[12]?"), [
        a + b + c for a in ("no", "true") for b in ("", "no", "true") for c in ("", "1", "2")
    ]),
    "lark": (Grammar("lark", 'start: "{" ("true" | "false") "}"'), ["{true}", "{false}"]),
    "gbnf": (Grammar("lark", 'root ::= "a" ("b" | "no")'), ["ab", "ano"]),
    "unicode": (Grammar("choice", '["é", "ê", "🙂"]'), ["é", "ê", "🙂"]),
    "schema": (Grammar("json_schema", '{"enum": ["no", true, 12]}'), ['"no"', "true", "12"]),
}  # fmt: skip


def by_brute_force(language: list[str], written: bytes) -> set[int]:
    """Every token is tried against every text of a finite language."""
    texts = [text.encode() for text in language]
    may_end = {EOS, EOT} if written in texts else set()
    return may_end | {
        token_id
        for token_id in range(VOCAB)
        if (token := tokenizer().token_bytes(token_id))
        and token_id not in tokenizer().special_ids
        and any(text.startswith(written + token) for text in texts)
    }


@pytest.mark.parametrize("name", sorted(LANGUAGES))
def test_masks_equal_brute_force(name: str) -> None:
    grammar, language = LANGUAGES[name]
    made_by = compiler()
    rng = random.Random(3)
    seen: set[bytes] = set()
    for _ in range(60):
        matcher, written = made_by.start(grammar), b""
        while True:
            found, expected = legal(made_by, matcher), by_brute_force(language, written)
            # Where only one text can follow, the model's own way to write it may be all that is left.
            assert found == expected or (len(found) == 1 and found <= expected), written
            seen.add(written)
            token_id = rng.choice(sorted(found))
            assert matcher.advance(token_id)
            if token_id in (EOS, EOT):
                break
            written += tokenizer().token_bytes(token_id)
        assert written.decode() in language
    assert len(seen) > len(language)


def test_the_end_is_legal_exactly_where_the_text_is_complete() -> None:
    made_by = compiler()
    matcher = made_by.start(Grammar("regex", "1{2}2?"))
    for token_id in ids("1"):
        assert not {EOS, EOT} & legal(made_by, matcher)
        assert not matcher.advance(EOS)
        assert matcher.advance(token_id)
    assert matcher.advance(ids("1")[0])
    assert {EOS, EOT} < legal(made_by, matcher)
    assert matcher.advance(ids("2")[0])
    assert legal(made_by, matcher) == {EOS, EOT}
    assert matcher.advance(EOT)
    assert not matcher.advance(EOT)
    assert not matcher.advance(ids("2")[0])
    assert matcher.error is None


@pytest.mark.parametrize("length", range(1, 9))
def test_rollback_is_as_if_nothing_had_happened(length: int) -> None:
    made_by = compiler()
    grammar = Grammar("json_schema", '{"type":"object","properties":{"a":{"enum":[12,true]}}}')
    text = [*ids('{"a": 12}'), EOS]
    for kept in range(len(text)):
        taken = text[kept : kept + length]
        matcher, fresh = made_by.start(grammar), made_by.start(grammar)
        for token_id in text[:kept]:
            assert matcher.advance(token_id)
            assert fresh.advance(token_id)
        legal(made_by, matcher)
        for token_id in taken:
            assert matcher.advance(token_id)
        matcher.rollback(len(taken))
        assert legal(made_by, matcher) == legal(made_by, fresh)
        assert all(matcher.advance(token_id) for token_id in text[kept:])


def test_an_illegal_token_changes_nothing() -> None:
    made_by = compiler()
    matcher = made_by.start(Grammar("choice", '["true", "no"]'))
    before = legal(made_by, matcher)
    assert not matcher.advance(ids("1")[0])
    assert not matcher.advance(VOCAB - 1)
    assert matcher.error is None
    assert legal(made_by, matcher) == before


def test_whitespace_is_bounded() -> None:
    made_by = compiler()
    schema = Grammar("json_schema", '{"type":"array","items":{"type":"integer"}}')

    def takes(text: str) -> bool:
        matcher = made_by.start(schema)
        return all(matcher.advance(token_id) for token_id in [*ids(text), EOS])

    assert all(takes(text) for text in ("[1,2]", "[1, 2]", "[\n  1,\n  2\n]", "[ 1 , 2 ]"))
    assert not any(
        takes(text) for text in ("[1,  2]", "[1,\n\n2]", "[1,\n" + " " * 33 + "2]", " [1]")
    )


def test_no_control_token_within_a_text() -> None:
    made_by = compiler()
    matcher = made_by.start(Grammar("regex", "(?s:.*)"))
    found = legal(made_by, matcher)
    assert ids("a")[0] in found
    assert tokenizer().special_ids & found == {EOS, EOT}
    assert found <= set(range(tokenizer().vocab_size))
    assert tokenizer().token_to_id("<tool_call>") in found


def test_a_named_control_token_can_be_asked_for() -> None:
    made_by = compiler()
    matcher = made_by.start(Grammar("lark", 'start: <|im_end|> "a"'))
    assert legal(made_by, matcher) == {EOT}


REFUSED = {
    "not JSON": (Grammar("json_schema", "{"), "not valid JSON"),
    "no schema": (Grammar("json_schema", "[]"), "must be an object"),
    "deep": (Grammar("json_schema", '{"items":' * 90_000 + "{}" + "}" * 90_000), "not valid JSON"),
    "deep lark": (Grammar("lark", "start: " + "(" * 30_000 + '"a"' + ")" * 30_000), "grammar"),
    "half a character": (Grammar("json_schema", '{"const": "\\ud800"}'), "cannot be used"),
    "unsatisfiable": (Grammar("json_schema", '{"type":"string","minLength":5,"maxLength":2}'), "minLength"),
    "remote": (Grammar("json_schema", '{"$ref": "https://example.com/a.json"}'), "example.com"),
    "regex": (Grammar("regex", "(a"), "unclosed group"),
    "look-ahead": (Grammar("regex", "a(?=b)"), "look-around"),
    "pattern": (Grammar("json_schema", '{"type": "string", "pattern": "(?<=a)b"}'), "look-around"),
    "empty choice": (Grammar("choice", "[]"), "list of texts"),
    "choice of numbers": (Grammar("choice", "[1]"), "list of texts"),
    "lark": (Grammar("lark", "start: b"), "cannot be used"),
    "a rule of itself alone": (Grammar("lark", "start: start"), "no output can satisfy it"),
    "no character": (Grammar("lark", r"start: /[^\x00-\x{10ffff}]/"), "no output can satisfy it"),
    "gbnf": (Grammar("lark", "root ::= ((("), "grammar"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_used_is_refused_with_a_sentence(name: str) -> None:
    grammar, says = REFUSED[name]
    made_by = compiler()
    with pytest.raises(InvalidRequestError, match=says) as caught:
        made_by.compile(grammar)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert not made_by.is_compiled(grammar)


def test_options_of_the_library_cannot_be_smuggled_in() -> None:
    schema = {"type": "object", "unevaluatedProperties": False, "x-guidance": {"lenient": True}}
    with pytest.raises(InvalidRequestError):
        compiler().compile(Grammar("json_schema", json.dumps(schema)))


def test_a_model_without_an_end_cannot_have_grammars() -> None:
    made_by = LLGuidance(tokenizer, VOCAB, (VOCAB + 3,))
    with pytest.raises(InvalidRequestError, match="end-of-sequence"):
        made_by.start(Grammar("regex", "a"))


def test_compiled_grammars_are_kept_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llguidance, "MAX_COMPILED", 3)
    made_by = compiler()
    grammars = [Grammar("regex", "a" * length) for length in range(1, 6)]
    for grammar in grammars:
        made_by.compile(grammar)
        made_by.compile(grammars[0])
    assert [made_by.is_compiled(grammar) for grammar in grammars] == [
        True,
        False,
        False,
        True,
        True,
    ]
    monkeypatch.setattr(llguidance, "MAX_COMPILED_CHARS", 6)
    made_by.compile(Grammar("regex", "b"))
    assert not made_by.is_compiled(grammars[4])


def test_threads_may_share_a_compiler() -> None:
    made_by = compiler(threads=2)
    grammar = Grammar("json_schema", '{"type":"array","items":{"type":"integer"}}')
    problems: list[str] = []

    def work() -> None:
        for _ in range(50):
            matcher = made_by.start(grammar)
            for token_id in ids("[12, 1]"):
                if token_id not in legal(made_by, matcher) or not matcher.advance(token_id):
                    problems.append("illegal")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_bytes_that_no_tokenizer_round_trips_are_found_by_the_longest_token() -> None:
    """A vocabulary that writes a space before every text."""
    piece = Tokenizer(vocabulary_from_gguf(sentencepiece_metadata()))
    view = TokenBytes(piece, piece.vocab_size, piece.eos_ids)
    for text in ("abc", "ab c", " a", "", "é>"):
        assert b"".join(view.tokens[i] for i in view(text)) == text.encode()
    assert view("abc") == [piece.token_to_id("abc")]


def test_the_catalogue() -> None:
    for name in GRAMMARS.names():
        made: GrammarCompiler = GRAMMARS.load(name)(tokenizer, VOCAB, (EOS,))
        matcher: Matcher = made.start(Grammar("regex", "a"))
        assert matcher.advance(ids("a")[0])


@pytest.mark.models
@pytest.mark.parametrize("name", ["smollm2", "qwen2.5-coder-0.5b", "gemma-3-270m"])
def test_real_vocabularies_write_what_their_tokenizer_writes(name: str) -> None:
    path: Path = real_model(name)
    real = load_tokenizer(path)
    made_by = LLGuidance(lambda: real, real.vocab_size, real.eos_ids)
    matcher = made_by.start(
        Grammar("json_schema", '{"type":"object","additionalProperties":{"type":"string"}}')
    )
    text = '{"name": "Zoë 🙂\\n", "city":\n    "東京"}'
    for token_id in real.encode(text, add_special=False):
        assert matcher.advance(token_id), real.token_text(token_id)
    assert matcher.advance(real.eos_ids[0])
