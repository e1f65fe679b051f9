"""Tools and choices as clients give them, what prompts say of them, and the grammars that hold models to them."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.grammar.grammar_cases import EOS, VOCAB, tokenizer

from nonet.core.errors import InvalidRequestError, UnknownNameError
from nonet.grammar.llguidance import LLGuidance
from nonet.server.parse import TOOL_FORMATS
from nonet.server.tools import ToolSupport, ToolUse, checked_tools
from nonet.text.chat_template import ChatTemplate

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"$ref": "#/$defs/days"}},
            "required": ["city"],
            "additionalProperties": False,
            "$defs": {"days": {"enum": [1, 2]}},
        },
    },
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "time.now"}}
STRICT = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
PARIS = ("get_weather", '{"city": "Paris", "days": 2}')
CLOCK = ("time.now", "{}")
KNOWS = ChatTemplate("{{ tools }}{% for m in messages %}{{ m.tool_calls }}<tool_call>{% endfor %}")
PLAIN = ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    return {
        "type": "allowed_tools",
        "allowed_tools": {"mode": mode, "tools": [named(n) for n in names]},
    }


CHOICES: list[tuple[object, bool, list[str]]] = [
    (None, False, ["get_weather", "time.now"]),
    ("auto", False, ["get_weather", "time.now"]),
    ("required", True, ["get_weather", "time.now"]),
    (named("time.now"), True, ["time.now"]),
    (allowed("auto", "time.now"), False, ["time.now"]),
    (allowed("required", "time.now", "get_weather"), True, ["get_weather", "time.now"]),
]


@pytest.mark.parametrize(("choice", "is_required", "names"), CHOICES)
def test_choices(choice: Any, is_required: bool, names: list[str]) -> None:
    use = checked_tools([WEATHER, NOW], choice)
    assert use is not None
    assert (use.is_required, [tool.name for tool in use.tools]) == (is_required, names)
    assert use.definitions == [WEATHER, NOW], "the prompt does not change with the choice"
    assert use.allows_many == (choice != named("time.now"))  # which is one call of it
    assert use.needs_grammar == is_required


def test_no_tools_and_no_choice() -> None:
    assert checked_tools(None, None) is None
    assert checked_tools([], "auto") is None
    assert checked_tools([NOW], "none") is None


MISTAKES: dict[str, tuple[Any, Any, str]] = {
    "required without tools": ([], "required", "tool_choice"),
    "unknown name": ([NOW], named("f"), "tool_choice"),
    "unknown mode": ([NOW], "sometimes", "tool_choice"),
    "mode of allowed tools": ([NOW], allowed("none", "time.now"), "tool_choice"),
    "nothing allowed": ([NOW], allowed("auto"), "tool_choice"),
    "choice without a name": ([NOW], {"type": "function", "function": {}}, "tool_choice"),
    "other kind": ([{"type": "web_search"}], None, "tools"),
    "no name": ([{"type": "function", "function": {}}], None, "tools"),
    "space in a name": ([named("a b")], None, "tools"),
    "quote in a name": ([named('a"b')], None, "tools"),
    "long name": ([named("a" * 513)], None, "tools"),
    "same name": ([NOW, NOW], None, "tools"),
    "parameters": ([{"type": "function", "function": {"name": "f", "parameters": []}}], None, "tools"),
    "description": ([{"type": "function", "function": {"name": "f", "description": 1}}], None, "tools"),
    "surrogate": ([{"type": "function", "function": {"name": "f", "description": "\ud800"}}], None, "tools"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(MISTAKES))
def test_mistakes(name: str) -> None:
    tools, choice, param = MISTAKES[name]
    with pytest.raises(InvalidRequestError) as caught:
        checked_tools(tools, choice)
    assert caught.value.param == param


def support(format_name: str, template: ChatTemplate | None = PLAIN) -> ToolSupport:
    return ToolSupport(tokenizer(), template, format_name)


def takes(made: ToolSupport, use: ToolUse, text: str, answer: str | None = None) -> bool:
    grammar = made.grammar(use, answer)
    assert grammar is not None
    matcher = LLGuidance(tokenizer, VOCAB, tokenizer().eos_ids).start(grammar)
    ids = [*tokenizer().encode(text, add_special=False), EOS]
    return all(matcher.advance(token_id) for token_id in ids)


@pytest.mark.parametrize("format_name", TOOL_FORMATS.names())
def test_grammars_take_what_was_promised_and_nothing_else(format_name: str) -> None:
    made = support(format_name)
    written = TOOL_FORMATS.build(format_name).frame.written
    one, two = written([PARIS]), written([PARIS, CLOCK])
    wrong = written([("get_weather", '{"city": "Paris", "days": 3}')])
    required, single, strict = (
        checked_tools([WEATHER, NOW], "required"),
        checked_tools([WEATHER, NOW], "required", False),
        checked_tools([STRICT, NOW], "auto"),
    )
    assert required is not None and single is not None and strict is not None  # noqa: PT018
    expected = {
        one: (True, True, True),
        two: (True, False, True),
        wrong: (False, False, False),
        "Hello.": (False, False, True),
        "": (False, False, True),
        written([("other", "{}")]): (False, False, False),
    }
    for text, verdicts in expected.items():
        found = tuple(takes(made, use, text) for use in (required, single, strict))
        assert found == verdicts, text
    if not TOOL_FORMATS.build(format_name).frame.at_start:
        assert takes(made, strict, "I look.\n" + one + " And?")
        assert takes(made, strict, '{"a": 1}', '{"properties": {"a": {"type": "integer"}}}')
        assert takes(made, strict, one, '{"properties": {"a": {"type": "integer"}}}')
        assert not takes(made, strict, "Hello.", '{"type": "object"}')
    else:
        with pytest.raises(InvalidRequestError, match="JSON themselves"):
            made.grammar(strict, "{}")


def test_auto_promises_nothing_unless_asked() -> None:
    made = support("hermes")
    for tools, many in (([WEATHER], None), ([WEATHER], True)):
        use = checked_tools(tools, "auto", many)
        assert use is not None
        assert made.grammar(use) is None
    for tools, many in (([STRICT], None), ([WEATHER], False)):
        use = checked_tools(tools, "auto", many)
        assert use is not None
        assert made.grammar(use) is not None


def test_a_sign_that_is_a_control_token_is_asked_for_as_one() -> None:
    """<tool_call> of this vocabulary is an ordinary token; <|im_end|> is not."""
    use = checked_tools([NOW], "required")
    assert use is not None
    made = support("hermes")
    assert not made.shows_control_tokens
    assert f"<[{tokenizer().token_to_id('<|im_end|>')}]>" not in (made.grammar(use) or use).text  # type: ignore[union-attr]
    made._tokenizer = _Special()  # type: ignore[assignment]
    assert made.shows_control_tokens
    grammar = made.grammar(use)
    assert grammar is not None
    assert "<[7]>" in grammar.text
    assert '"<tool_call>' not in grammar.text


class _Special:
    special_ids = frozenset({7})

    def token_text(self, token_id: int) -> str:
        return "<tool_call>"


HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}},
    ]},
    {"role": "tool", "content": "Rain.", "tool_call_id": "1"},
]  # fmt: skip


def test_a_template_that_knows_tools_is_left_to_it() -> None:
    use = checked_tools([WEATHER], "auto")
    made = ToolSupport(tokenizer(), KNOWS)
    assert made.name == "hermes"
    assert made.template_tools(use) == [WEATHER]
    assert made.template_tools(None) is None
    assert made.plain_history(HISTORY, use) == HISTORY


def test_a_template_without_tools_gets_them_as_text() -> None:
    use = checked_tools([WEATHER, NOW], "auto")
    made = ToolSupport(tokenizer(), PLAIN)
    assert made.template_tools(use) is None
    system, user, assistant, result = made.plain_history(HISTORY, use)
    assert system["role"] == "system"
    assert '"name": "get_weather"' in system["content"]
    assert '"name": "time.now"' in system["content"]
    assert '<tool_call>\n{"name": "function-name", "arguments": ' in system["content"]
    assert user == HISTORY[0]
    assert assistant == {
        "role": "assistant",
        "content": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
    }
    assert result == {"role": "user", "content": "<tool_response>\nRain.\n</tool_response>"}
    with_system = [{"role": "system", "content": "Be brief."}, *HISTORY]
    assert made.plain_history(with_system, use)[0]["content"].startswith(
        "Be brief.\n\nYou may call"
    )
    assert made.plain_history(with_system, None)[0] == with_system[0]


def test_a_format_by_name() -> None:
    assert ToolSupport(tokenizer(), KNOWS, "llama3").name == "llama3"
    assert ToolSupport(tokenizer(), None).name == "hermes"
    with pytest.raises(UnknownNameError, match="Did you mean 'hermes'"):
        ToolSupport(tokenizer(), KNOWS, "hermess")
