"""Anthropic's messages and tools to what a chat template takes, without a server."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nonet.core.errors import InvalidRequestError
from nonet.server.anthropic.conversation import (
    asked_tools,
    continued_text,
    template_messages,
    tool_use,
)
from nonet.server.anthropic.schemas import MessagesRequest

USER = {"role": "user", "content": "hi"}


def body(**fields: Any) -> MessagesRequest:
    return msgspec.convert(
        {"model": "m", "max_tokens": 1, "messages": [USER], **fields}, MessagesRequest
    )


def plain(**fields: Any) -> list[dict[str, Any]]:
    given = body(**fields)
    return template_messages(given.system, given.messages)


def text(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": one} for one in texts]


def test_text_blocks_are_joined_and_the_system_prompt_leads() -> None:
    assert plain(system=text("a", "b"), messages=[{"role": "user", "content": text("c", "d")}]) == [
        {"role": "system", "content": "a\nb"},
        {"role": "user", "content": "c\nd"},
    ]
    assert plain(system="a")[0] == {"role": "system", "content": "a"}
    assert plain(system="") == [USER]


def test_neighbours_of_one_role_become_one_turn() -> None:
    said = [
        USER,
        USER,
        {"role": "assistant", "content": "x"},
        {"role": "assistant", "content": text("y")},
        USER,
    ]
    assert plain(messages=said) == [
        {"role": "user", "content": "hi\nhi"},
        {"role": "assistant", "content": "x\ny"},
        {"role": "user", "content": "hi"},
    ]


def test_calls_and_results_of_tools() -> None:
    call = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 10**30}}
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": text("42", "43")}
    failed = {"type": "tool_result", "tool_use_id": "t2", "content": "no", "is_error": True}
    said = [
        USER,
        {"role": "assistant", "content": [thought, *text("let me see"), call]},
        {"role": "user", "content": [*text("go on"), result, failed]},
    ]
    assert plain(messages=said)[1:] == [
        {
            "role": "assistant",
            "content": "let me see",
            "reasoning_content": "hm",
            "tool_calls": [
                {
                    "id": "t1",
                    "type": "function",
                    "function": {"name": "f", "arguments": {"a": 10**30}},
                }
            ],
        },
        {"role": "tool", "content": "42\n43", "tool_call_id": "t1"},
        {"role": "tool", "content": "Error: no", "tool_call_id": "t2"},
        {"role": "user", "content": "go on"},
    ]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "boss", "content": "x"}],
        [{"role": "user", "content": "\udfff"}],
        [{"role": "user", "content": [{"type": "image"}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}],
        [{"role": "user", "content": [{"type": "tool_result"}]}],
        [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "1"}]}],
        [{"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f"}]}],
        [{"role": "user", "content": text("x") * 1025}],
    ],
)
def test_bad_messages(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        plain(messages=messages)
    assert caught.value.param == "messages"


def test_a_last_assistant_message_is_continued() -> None:
    assert continued_text(body().messages) is None
    begun = body(messages=[USER, {"role": "assistant", "content": text("The", "answer is")}])
    assert continued_text(begun.messages) == "The\nanswer is"
    for content in ("", "x ", [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]):
        given = body(messages=[USER, {"role": "assistant", "content": content}])
        with pytest.raises(InvalidRequestError):
            continued_text(given.messages)


def test_tools() -> None:
    tool = {
        "name": "f",
        "description": "d",
        "input_schema": {"type": "object"},
        "cache_control": None,
    }
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    assert asked_tools(body(tools=[tool])) == [{"type": "function", "function": function}]
    assert tool_use(body(tools=[tool], tool_choice={"type": "none"})) is None
    assert tool_use(body(tools=[])) is None
    for wrong in (
        {"type": "web_search_20250305", "name": "web_search"},
        {"name": "f"},
        {"input_schema": {}},
    ):
        with pytest.raises(InvalidRequestError):
            asked_tools(body(tools=[wrong]))


def test_tool_choice() -> None:
    tools = [{"name": name, "input_schema": {"type": "object"}} for name in ("f", "g")]
    one_call = {"disable_parallel_tool_use": True}
    for choice, names, is_required, allows_many in (
        (None, ["f", "g"], False, True),
        ({"type": "auto", **one_call}, ["f", "g"], False, False),
        ({"type": "any"}, ["f", "g"], True, True),
        ({"type": "tool", "name": "g", **one_call}, ["g"], True, False),
    ):
        use = tool_use(body(tools=tools, tool_choice=choice))
        assert use is not None
        assert [tool.name for tool in use.tools] == names
        assert (use.is_required, use.allows_many) == (is_required, allows_many)
    for wrong in ({"type": "some"}, {"type": "tool"}, {"type": "tool", "name": "h"}):
        with pytest.raises(InvalidRequestError):
            tool_use(body(tools=tools, tool_choice=wrong))
    with pytest.raises(InvalidRequestError):
        tool_use(body(tool_choice={"type": "any"}))
