"""Tool-call parsers: what they find, however the text is cut; wild text; no evaluation."""

from __future__ import annotations

import json
import random
import string

import pytest

from nonet.server.parse import TOOL_FORMATS, detected_format
from nonet.server.parse.base import Arguments, CallBegin, Event, Said, ToolFormat
from nonet.server.parse.literals import LiteralError, NotYetError, read_literal

# What was found: strings are text, pairs are calls with the arguments read.
Found = list[str | tuple[str, object]]

HERMES: dict[str, Found] = {
    "": [],
    "Just text. <tool> 1 < 2": ["Just text. <tool> 1 < 2"],
    '<tool_call>\n{"name": "f", "arguments": {"a": [1, "}"]}}\n</tool_call>': [("f", {"a": [1, "}"]})],
    'I look.\n\n<tool_call>{"name": "f", "arguments": {}}</tool_call>\n': ["I look.", ("f", {})],
    '<tool_call>{"name":"f","arguments":{"x":1}}</tool_call>\n<tool_call>{"name":"g","arguments":{}}</tool_call>': [
        ("f", {"x": 1}), ("g", {}),
    ],
    '<tool_call>[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]</tool_call>': [
        ("f", {"a": 1}), ("g", {}),
    ],
    '<tool_call>{"arguments": {"late": true}, "id": 7, "name": "f"}</tool_call>': [("f", {"late": True})],
    '<tool_call>{"name": "f"}</tool_call>': [("f", {})],
    '<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"b\\"}"}</tool_call>': [("f", {"a": "b"})],
    '<tool_call>{"name": "f", "arguments": {"q": "a \\"</tool_call>\\" \\\\"}}</tool_call> done': [
        ("f", {"q": 'a "</tool_call>" \\'}), "done",
    ],
    '<tool_call>{"name": "f", "arguments": {"a": 1}} and then': [("f", {"a": 1}), "and then"],
    "<tool_call>\nnot json</tool_call>": ["<tool_call>\nnot json</tool_call>"],
    '<tool_call>{"x": 1}</tool_call>': ['<tool_call>{"x": 1}</tool_call>'],
    "<tool_call>": ["<tool_call>"],
    "a <tool_ca": ["a <tool_ca"],
    "  ": ["  "],
}  # fmt: skip
LLAMA3: dict[str, Found] = {
    '{"name": "f", "parameters": {"a": "b"}}': [("f", {"a": "b"})],
    '<|python_tag|>{"name": "f", "parameters": {"a": null}}': [("f", {"a": None})],
    '{"name": "f", "parameters": {}}; {"name": "g", "parameters": {"x": [2]}}': [
        ("f", {}),
        ("g", {"x": [2]}),
    ],
    '{"answer": 42}': ['{"answer": 42}'],
    'The call is {"name": "f", "parameters": {}}': ['The call is {"name": "f", "parameters": {}}'],
    "<|python_": ["<|python_"],
    '{"name": "f", "parameters": {"a": 1}}\nThat is it.': [("f", {"a": 1}), "That is it."],
}
MISTRAL: dict[str, Found] = {
    '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]': [("f", {"a": 1}), ("g", {})],
    '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}, "id": "abc123xyz"}]': [("f", {"a": 1})],
    'Yes. [TOOL_CALLS]f[ARGS]{"a": "}"}[TOOL_CALLS]g[ARGS]{}': ["Yes.", ("f", {"a": "}"}), ("g", {})],
    '[TOOL_CALLS]f[CALL_ID]abc[ARGS]{"a": 1}': [("f", {"a": 1})],
    "[TOOL_CALLS]": ["[TOOL_CALLS]"],
    "[TOOL_CALL": ["[TOOL_CALL"],
}  # fmt: skip
PYTHONIC: dict[str, Found] = {
    '[f(a=1, b="x)", c=[True, None], d={"k": (1.5, -2)}), g()]': [
        ("f", {"a": 1, "b": "x)", "c": [True, None], "d": {"k": [1.5, -2]}}), ("g", {}),
    ],
    "[f(a='it\\'s \\u00e9\\n')]": [("f", {"a": "it's é\n"})],
    "```tool_code\n[f(x=1)]\n```": [("f", {"x": 1})],
    '[{"name": "f", "arguments": {"a": 1}}]': [("f", {"a": 1})],
    "[1, 2, 3]": ["[1, 2, 3]"],
    "[see f(x)]": ["[see f(x)]"],
    "No call.": ["No call."],
    "[f(a=__import__('os'))]": [],
    "[f(a=1), g(b=open('x'))]": [("f", {"a": 1})],
    "[f(a=1": [],
}  # fmt: skip
CASES = [
    (name, text, found)
    for name, table in (
        ("hermes", HERMES), ("llama3", LLAMA3), ("mistral", MISTRAL), ("mistral_list", MISTRAL), ("pythonic", PYTHONIC),
    )
    for text, found in table.items()
]  # fmt: skip


def run(name: str, pieces: list[str]) -> list[Event]:
    parser = TOOL_FORMATS.build(name).parser()
    return [event for piece in pieces for event in parser.feed(piece)] + parser.finish()


def merged(events: list[Event]) -> Found:
    found: Found = []
    arguments: list[str] = []
    for event in events:
        match event:
            case Said(text=text):
                assert text
                if found and isinstance(found[-1], str):
                    found[-1] += text
                else:
                    found.append(text)
            case CallBegin(name=called):
                arguments.append("")
                found.append((called, len(arguments) - 1))
            case Arguments(text=text):
                assert isinstance(found[-1], tuple), "arguments without a call"
                arguments[-1] += text
    return [
        one if isinstance(one, str) else (one[0], json.loads(arguments[int(str(one[1]))]))
        for one in found
    ]


def cut(text: str, rng: random.Random) -> list[str]:
    places = sorted(rng.sample(range(len(text) + 1), min(len(text), rng.randrange(12))))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize(
    ("name", "text", "found"), CASES, ids=[f"{n}-{t[:40]}" for n, t, _ in CASES]
)
def test_what_is_found_does_not_depend_on_the_cuts(name: str, text: str, found: Found) -> None:
    assert merged(run(name, [text])) == found
    assert merged(run(name, list(text))) == found
    rng = random.Random(text)
    for _ in range(30):
        assert merged(run(name, cut(text, rng))) == found


@pytest.mark.parametrize("name", TOOL_FORMATS.names())
def test_a_frame_is_read_back(name: str) -> None:
    made: ToolFormat = TOOL_FORMATS.build(name)
    calls = [("a.b_c-1", '{"x": {"y": [1, "é"]}}'), ("g", "{}"), ("g", '{"n": null}')]
    for number in (1, 2, 3):
        text = made.frame.written(calls[:number])
        expected = [(called, json.loads(arguments)) for called, arguments in calls[:number]]
        assert merged(run(name, list(text))) == expected
        assert (made.frame.opening + made.frame.head).startswith(made.frame.sign)


@pytest.mark.parametrize("name", TOOL_FORMATS.names())
def test_arguments_stream_before_they_are_complete(name: str) -> None:
    made: ToolFormat = TOOL_FORMATS.build(name)
    text = made.frame.written([("f", '{"a": "' + "long " * 50 + '"}')])
    parser = made.parser()
    begun = [event for char in text[:150] for event in parser.feed(char)]
    assert begun[0] == CallBegin("f")
    assert len(begun) > 20


@pytest.mark.parametrize("name", TOOL_FORMATS.names())
def test_wild_text_neither_breaks_nor_vanishes(name: str) -> None:
    rng = random.Random(5)
    bits = [
        "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", '{"name": "f"', '"arguments": ',
        "{", "}", "[", "]", '"', "\\", ",", ":", " ", "\n", "f(", ")", "=", "1", "null", "\udcff", "é", "\\ud800",
    ]  # fmt: skip
    for _ in range(400):
        text = "".join(rng.choice(bits) for _ in range(rng.randrange(30)))
        whole = run(name, [text])
        for event in whole:
            assert isinstance(event, (Said, CallBegin, Arguments))
        if not any(isinstance(event, CallBegin) for event in whole) and name not in ("pythonic",):
            assert "".join(event.text for event in whole if isinstance(event, Said)) == text
    for size in (5, 40):
        text = "".join(rng.choice(string.ascii_letters + " .,") for _ in range(size))
        assert merged(run(name, list(text))) == [text]


def test_deep_nesting_is_no_danger() -> None:
    for text in ("[" * 5000, "(" * 5000, "{'a':" * 5000, "-" * 5000, "1" * 5000, "1e999,", "nan,"):
        with pytest.raises(LiteralError):
            read_literal(text + " ", 0)
    with pytest.raises(NotYetError):
        read_literal("['a", 0)
    deep = '<tool_call>{"name": "f", "arguments": ' + '{"a":' * 30_000
    assert run("hermes", [deep])[0] == CallBegin("f")


TEMPLATES = {
    "{{ '<tool_call>' }}": "hermes",
    "{{ '[TOOL_CALLS]' + call.name + '[ARGS]' }}": "mistral",
    "{{ '[TOOL_CALLS] [' }}": "mistral_list",
    "{{ '<|python_tag|>' }}": "llama3",
    "{{ '<start_of_turn>' }}": "pythonic",
    "{{ messages }}": "hermes",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_template_tells_the_format(template: str) -> None:
    assert detected_format(template) == TEMPLATES[template]
