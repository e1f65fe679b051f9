"""Chat templates: what messages become, what is refused, and that rendering is quick and safe from threads."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from small_vocabularies import byte_level_metadata, sentencepiece_metadata

from nonet.core.errors import (
    ConfigError,
    InvalidRequestError,
    ModelFileError,
    UnsupportedModelError,
)
from nonet.text.chat_template import TEMPLATE_KWARGS, ChatTemplate
from nonet.text.gguf_vocab import vocabulary_from_gguf
from nonet.text.tokenizer import Tokenizer

USER = {"role": "user", "content": "hello"}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def render(source: str, messages=(USER,), **kwargs) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(list(messages), **kwargs)


def test_roles_contents_and_the_generation_prompt() -> None:
    assert render(CHATML) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert render(CHATML, add_generation_prompt=False) == "<|im_start|>user\nhello<|im_end|>\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}{{ eos_token }}|", "<s>|"),
        ("{% if x %}\n  a\n{% endif %}\n  {% set y = 1 %}\nb\n", "b"),
        ("{{ {'a': '<é&\\'>', 'b': [1, none]} | tojson }}", '{"a": "<é&\'>", "b": [1, null]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}", '{\n "a": 2,\n "b": 1\n}'),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}", "[1,2]"),
        ("{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 3 %}{% break %}{% endif %}{{ i }}"
         "{% endfor %}", "013"),
        ("a{% generation %}{{ messages[0].content }}{% endgeneration %}b", "ahellob"),
        ("{% set ns = namespace(n=1) %}{% for i in range(3) %}{% set ns.n = ns.n * 2 %}{% endfor %}{{ ns.n }}", "8"),
        ("{% macro f(x, y='d') %}<{{ x }}{{ y }}>{% endmacro %}{{ f('a') }}{{ f('b', y='c') }}", "<ad><bc>"),
        ("{% macro f() %}({{ caller() }}){% endmacro %}{% call f() %}in{% endcall %}", "(in)"),
        ("{{ messages[0]['content'].split('l')[-1] }}{{ messages[-1].content.upper() }}", "oHELLO"),
        ("{{ messages | map(attribute='content') | join('+') }}{{ messages | length }}", "hello1"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{% for k, v in messages[0] | items %}{{ k }}={{ v }};{% endfor %}", "role=user;content=hello;"),
        ("{% for k, v in messages[0].items() %}{{ loop.index0 }}{{ k }}{% if not loop.last %},{% endif %}{% endfor %}",
         "0role,1content"),
        ("{% for m in messages if m.role == 'system' %}x{% else %}none{% endfor %}", "none"),
        ("{{ 'a' ~ 1 ~ none }}{{ 'ab' * 2 }}{{ [1] + [2] }}{{ (1, 2) + (3,) }}", "a1Noneabab[1, 2](1, 2, 3)"),
        ("{{ '%s-%d' % ('a', 3) }}{{ '{}:{:>3}'.format('b', 1) }}{{ '%s' | format('c') }}", "a-3b:  1c"),
        ("{{ ', '.join(['a', 'b']) }}{{ 'x-y'.replace('-', '+') }}{{ ' a '.strip() }}{{ 'ab'[1:] }}", "a, bx+yab"),
        ("{{ messages[1:] | length }}{{ messages[::-1][0].role }}{{ nothing is defined }}{{ 1 if 0 }}", "0userFalse"),
        ("{% filter upper %}a{% endfilter %}{% with x = 2 %}{{ x }}{% endwith %}{% set y %}z{% endset %}{{y}}", "A2z"),
        ("{{ 'a\nb' | indent(2) }}{{ '<' | safe }}{{ '<' | e }}{{ 'A' | lower | capitalize | trim }}", "a\n  b<&lt;A"),
        ("{{ dict(a=1).a }}{{ {'x': 1}.get('y', 'd') }}{{ [3, 1] | sort | first }}{{ [1, 2] | sum }}", "1d13"),
        ("{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 3 }}{{ 1.5 + 1 }}{{ -3 | abs }}{{ '4' | int + 1 }}", "3382.535"),
        ("{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}", "123"),
        ("{{ raise_exception is defined }}{{ strftime_now('%Y') | length }}", "True4"),
        ("{% block a %}in{% endblock %}{{ self.a() }}", "inin"),
    ],
)  # fmt: skip
def test_what_templates_use(source: str, expected: str) -> None:
    assert render(source) == expected


def test_a_template_can_refuse_messages() -> None:
    with pytest.raises(InvalidRequestError, match="roles must alternate") as caught:
        render("{{ raise_exception('roles must alternate') }}")
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ messages[0].role.name.first }}", "no attribute"),
        ("{{ messages[5].content }}", "list"),
        ("{{ 'a' + 1 }}", "cannot take"),
        ("{{ 1 / 0 }}", "zero"),
        ("{{ nothing | tojson }}", "undefined"),
        ("{{ [1, 'a'] | sort }}", "cannot take"),
    ],
)
def test_what_a_template_cannot_do_with_the_messages_is_a_request_error(
    source: str, message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        render(source)


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ a", "{% for x %}{% endfor %}", "{{ x | nofilter }}", "{% do x %}"]
)
def test_a_broken_template_is_a_model_file_error(source: str) -> None:
    with pytest.raises(ModelFileError, match="chat template"):
        ChatTemplate(source)


PARTS = {
    "role": "user",
    "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
}


def test_text_parts_are_joined_for_templates_that_take_text() -> None:
    assert "one\ntwo<" in render(CHATML, [PARTS])
    with pytest.raises(
        InvalidRequestError, match=r"messages\[1\]\.content has a part of type 'image_url'"
    ):
        render(
            CHATML,
            [USER, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        )


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endfor %}",
        "{% for m in messages %}{% set c = m['content'] %}{% for p in c|list %}[{{p.text}}]{% endfor %}{% endfor %}",
    ],
)
def test_text_parts_stay_for_templates_that_walk_through_them(source: str) -> None:
    assert render(source, [PARTS]) == "[one][two]"


def test_arguments_of_tool_calls_are_handed_over_as_objects() -> None:
    source = "{% for c in messages[0].tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}"
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": [1, "ü"]}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert render(source, [message]) == '{"a": [1, "ü"]}'
    assert call["function"]["arguments"] == '{"a": [1, "ü"]}', "the caller's message is not changed"
    call["function"]["arguments"] = "{broken"
    with pytest.raises(InvalidRequestError, match=r"messages\[0\]\.tool_calls"):
        render(source, [message])


def test_only_listed_variables_can_be_set() -> None:
    source = "{{ enable_thinking }}{{ documents | length }}"
    assert render(source, template_kwargs={"enable_thinking": False, "documents": [{}]}) == "False1"
    for name in ("messages", "bos_token", "tokenize", "chat_template", "range", "__class__"):
        assert name not in TEMPLATE_KWARGS
        with pytest.raises(InvalidRequestError, match=name) as caught:
            render(source, template_kwargs={name: 1})
        assert caught.value.param == "chat_template_kwargs"


def test_messages_must_be_plain_data() -> None:
    for bad in (object(), {1, 2}, b"bytes", lambda: 1):
        with pytest.raises(InvalidRequestError, match="JSON"):
            render(CHATML, [{"role": "user", "content": bad}])
    with pytest.raises(InvalidRequestError, match="not an object"):
        render(CHATML, ["hello"])
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(InvalidRequestError, match="nested too deeply"):
        render(CHATML, [{"role": "user", "content": nested}])


def test_the_model_s_own_template_a_file_or_a_refusal(tmp_path: Path) -> None:
    chat = Tokenizer(vocabulary_from_gguf(byte_level_metadata()))
    base = Tokenizer(vocabulary_from_gguf(sentencepiece_metadata()))
    assert ChatTemplate.from_tokenizer(chat).render([USER]) == "hello"
    with pytest.raises(UnsupportedModelError, match="no chat template"):
        ChatTemplate.from_tokenizer(base)
    path = tmp_path / "mine.jinja"
    path.write_text("{{ bos_token }}é{{ messages[0].content }}", "utf-8")
    assert ChatTemplate.from_tokenizer(base, path).render([USER]) == "<s>éhello"
    path.write_bytes(b"\xff\xfe")
    for bad in (path, tmp_path / "missing.jinja"):
        with pytest.raises(ConfigError, match="cannot be read"):
            ChatTemplate.from_tokenizer(base, bad)


def test_a_normal_chat_renders_in_less_than_a_millisecond() -> None:
    template = ChatTemplate(CHATML)
    messages = [USER, {"role": "assistant", "content": "hi"}] * 4

    def once() -> float:
        start = time.process_time()
        template.render(messages)
        return time.process_time() - start

    assert min(once() for _ in range(50)) < 1e-3


def test_threads_render_apart() -> None:
    template = ChatTemplate("{% set ns = namespace(s='') %}{% for m in messages %}{% set ns.s = ns.s ~ m.content %}"
                            "{% endfor %}{{ ns.s }}")  # fmt: skip
    chats = [[{"role": "user", "content": f"{number},"}] * 50 for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(template.render, chats))
    assert found == [f"{number}," * 50 for number in range(40)]
