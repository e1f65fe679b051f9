"""cache_control in a body: which beginnings of the conversation it marks, for how long, and what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.system.tiny_text import CHAT_TEMPLATE

from nonet.core.errors import InvalidRequestError
from nonet.server.anthropic.breakpoints import marks_of
from nonet.server.anthropic.conversation import asked_tools, template_messages
from nonet.server.anthropic.schemas import MessagesRequest
from nonet.server.prompt_cache import common_length
from nonet.text.chat_template import ChatTemplate

FIVE = {"type": "ephemeral"}
HOUR = {"type": "ephemeral", "ttl": "1h"}
USER = {"role": "user", "content": "hello"}
TOOLS_FIRST = "{% for tool in tools or [] %}{{ tool.function.name }};{% endfor %}" + CHAT_TEMPLATE


def body(**fields: Any) -> MessagesRequest:
    return msgspec.convert(
        {"model": "m", "max_tokens": 1, "messages": [USER], **fields}, MessagesRequest
    )


def block(text: str, control: dict[str, str] | None = None) -> dict[str, Any]:
    return {"type": "text", "text": text, "cache_control": control}


def tool(name: str, control: dict[str, str] | None = None) -> dict[str, Any]:
    return {"name": name, "input_schema": {}, "cache_control": control}


def kept(given: MessagesRequest, source: str = CHAT_TEMPLATE) -> list[str]:
    """The beginning of the prompt that each mark keeps."""
    template = ChatTemplate(source)
    whole = template.render(
        template_messages(given.system, given.messages), tools=asked_tools(given)
    )
    cuts = [
        template.render(mark.messages, tools=mark.tools, add_generation_prompt=False)
        for mark in marks_of(given)
    ]
    return [whole[: common_length(whole, cut)] for cut in cuts]


def test_no_cache_control_no_mark() -> None:
    assert marks_of(body(system=[block("s")], tools=[tool("f")])) == []


def test_system_prompts_are_kept_as_far_as_their_block() -> None:
    given = body(system=[block("one", FIVE), block("two"), block("three", FIVE)])
    assert kept(given) == [
        "<|start|>system\none",
        "<|start|>system\none\ntwo\nthree<|end|>\n<|start|>user\n",
    ]


@pytest.mark.parametrize("first", ["hello", "0", "1", ""])
def test_the_message_that_follows_is_not_kept(first: str) -> None:
    given = body(system=[block("s", FIVE)], messages=[{"role": "user", "content": first}])
    assert kept(given) == ["<|start|>system\ns<|end|>\n<|start|>user\n"]


def test_messages_are_kept_as_far_as_their_block() -> None:
    said = [
        {"role": "user", "content": [block("a", FIVE), block("b")]},
        {"role": "assistant", "content": [block("c", FIVE)]},
        {"role": "user", "content": [block("d", FIVE)]},
    ]
    turns = "<|start|>user\na\nb<|end|>\n<|start|>assistant\nc<|end|>\n"
    assert kept(body(messages=said)) == [
        "<|start|>user\na",
        turns,
        turns + "<|start|>user\nd<|end|>\n",
    ]


def test_all_of_it_is_kept_with_a_mark_on_the_body() -> None:
    given = body(system="s", cache_control=FIVE)
    assert kept(given) == ["<|start|>system\ns<|end|>\n<|start|>user\nhello<|end|>\n"]


def test_tools_are_where_the_template_writes_them() -> None:
    given = body(system="s", tools=[tool("f", FIVE), tool("g", FIVE)])
    first, second = kept(given, TOOLS_FIRST)
    assert first == "f;"
    assert second == "f;g;<|start|>system\ns<|end|>\n<|start|>user\n"


def test_results_of_tools_can_carry_one() -> None:
    result = {"type": "tool_result", "tool_use_id": "t", "content": "42", "cache_control": FIVE}
    said = [
        USER,
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}],
        },
        {"role": "user", "content": [result, block("go on")]},
    ]
    (text,) = kept(body(messages=said))
    assert text.endswith("tool\n42<|end|>\n")


def test_lifetimes() -> None:
    given = body(
        tools=[tool("f", HOUR)], system=[block("s", HOUR)], cache_control={**FIVE, "ttl": "5m"}
    )
    assert [mark.ttl_s for mark in marks_of(given)] == [3600.0, 3600.0, 300.0]


@pytest.mark.parametrize(
    "fields",
    [
        {"system": [block("s", FIVE)] * 5},
        {"system": [block("s", FIVE)] * 4, "cache_control": FIVE},
        {"system": [block("s", FIVE)], "cache_control": HOUR},
        {"system": [block("s", {"type": "for ever"})]},
        {"system": [block("s", {"type": "ephemeral", "ttl": "2h"})]},
        {"tools": [tool("f", {"ttl": "5m"})]},
        {"tools": [{**tool("f"), "cache_control": "yes"}]},
    ],
)
def test_what_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        marks_of(body(**fields))
    assert caught.value.param == "cache_control"
