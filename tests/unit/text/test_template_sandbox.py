"""Hostile chat templates: nothing gets out of the sandbox, and nothing runs on or grows without bound."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from nonet.core.errors import InvalidRequestError, ModelFileError, UserError
from nonet.text.chat_template import ChatTemplate
from nonet.text.template_budget import Budget, TemplateLimitError, TemplateLimits

QUICK = TemplateLimits(max_seconds=0.2)
GROW = "{% set ns = namespace(v=START) %}{% for i in range(60) %}{% set ns.v = STEP %}{% endfor %}{{ END }}"


def grow(start: str, step: str, end: str = "ns.v") -> str:
    return GROW.replace("START", start).replace("STEP", step).replace("END", end)


def render(source: str) -> str:
    return ChatTemplate(source, limits=QUICK).render([{"role": "user", "content": "hi"}])


RUNAWAYS = {
    "huge range": "{% for i in range(10**9) %}{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loop test": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "endless macro": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "endless block": "{% block a %}{{ self.a() }}{% endblock %}",
    "endless loop call": "{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "doubling macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "repeated text": "{{ 'a' * 1000000000 }}",
    "repeated text, turned": "{{ 1000000000 * 'a' }}",
    "repeated list": "{{ [1] * 10**9 }}",
    "doubled text": grow("'aaaa'", "ns.v ~ ns.v"),
    "added text": grow("'aaaa'", "ns.v + ns.v"),
    "added lists": grow("[1]", "ns.v + ns.v"),
    "added tuples": grow("(1, 1)", "ns.v + ns.v"),
    "shared lists, printed": grow("['a']", "[ns.v, ns.v]"),
    "shared maps, as JSON": grow("'a'", "{'a': ns.v, 'b': ns.v}", "ns.v | tojson"),
    "shared dict(), compared": grow("'a'", "dict(a=ns.v, b=ns.v)", "ns.v == ns.v"),
    "shared tuples, formatted": grow("'a'", "(ns.v, ns.v)", "'%s' % (ns.v,)"),
    "shared lists, by filter": grow("['a']", "[ns.v, ns.v] | list", "ns.v | string"),
    "joined": "{{ range(99999) | join('a' * 100000) }}",
    "joined by method": "{{ ('a' * 100000).join(range(9999) | map('string')) }}",
    "replaced": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "replaced by method": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replaced nothing": "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
    "padded": "{{ 'a' | center(10**9) }}",
    "padded by method": "{{ 'a'.ljust(1000000000) }}",
    "zero-filled": "{{ 'a'.zfill(10**9) }}",
    "indented": "{{ ('\n' * 100000) | indent('x' * 100000) }}",
    "indented JSON": "{{ [1] | tojson(indent=10**9) }}",
    "wide format": "{{ '{:1000000000}'.format(1) }}",
    "computed width": "{{ '{:{}}'.format(1, 10**9) }}",
    "wide percent": "{{ '%1000000000d' % 1 }}",
    "computed percent": "{{ '%*d' % (10**9, 1) }}",
    "percent filter": "{{ '%1000000000d' | format(1) }}",
    "big power": "{{ 10 ** (10 ** 8) }}",
    "squared number": grow("3", "ns.v * ns.v"),
    "big hexadecimal": "{{ ('f' * 10000000) | int(0, 16) }}",
    "sum of lists": "{{ [[1], [2]] | sum(start=[]) }}",
    "list of characters": "{{ ('a' * 16000000) | list }}",
    "sorted characters": "{{ ('a' * 16000000) | sort }}",
    "split to pieces": "{{ ('a ' * 8000000).split() }}",
    "split by text": "{{ ('a,' * 8000000).split(',') }}",
    "slices": "{% set s = 'a' * 16000000 %}{% for i in range(999) %}{% set t = s[1:] %}{% endfor %}",
    "searches": "{% set s = 'a' * 16000000 %}" + "{{ 'b' in s }}" * 8000,
    "long output": "{% for i in range(99999) %}" + "a" * 1000 + "{% endfor %}",
    "long block": "{% set x %}{% for i in range(99999) %}"
    + "a" * 1000
    + "{% endfor %}{% endset %}",
    "many blocks": "{% for i in range(99999) %}{% set x %}{{ 'a' * 1000000 }}{% endset %}{% endfor %}",
    "deep list, printed": grow("[]", "[ns.v]").replace("range(60)", "range(9999)"),
    "deep list, as JSON": grow("[]", "[ns.v]", "ns.v | tojson").replace("range(60)", "range(9999)"),
}


@pytest.mark.parametrize("name", RUNAWAYS)
def test_a_runaway_template_is_stopped(name: str) -> None:
    start = time.process_time()
    with pytest.raises(InvalidRequestError):
        render(RUNAWAYS[name])
    assert time.process_time() - start < 5


ESCAPES = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "classes by item": "{{ ''['__class__']['__mro__'] }}",
    "classes by filter": "{{ [''] | map(attribute='__class__.__mro__') | list }}",
    "attr filter": "{{ '' | attr('__class__') }}",
    "attr by map": "{{ [''] | map('attr', '__class__') | list }}",
    "cycler": "{{ cycler.__init__.__globals__.os }}",
    "joiner": "{{ joiner('a').__init__.__globals__ }}",
    "lipsum": "{{ lipsum.__globals__['os'].popen('id') }}",
    "function": "{{ raise_exception.__globals__ }}",
    "namespace class": "{{ namespace.__init__.__globals__ }}",
    "namespace variable": "{% set ns = namespace(__class__=1) %}{{ ns }}",
    "namespace assignment": "{% set ns = namespace() %}{% set ns._x = 1 %}{{ ns._x }}",
    "dict class": "{{ dict.__base__ }}",
    "macro": "{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}",
    "macro environment": "{% macro f() %}{% endmacro %}{{ f._environment }}",
    "loop": "{% for x in [1] %}{{ loop._iterable }}{{ loop.__init__.__globals__ }}{% endfor %}",
    "self": "{{ self._TemplateReference__context }}{{ self.__init__.__globals__ }}",
    "undefined": "{{ nothing.__init__.__globals__ }}",
    "undefined logger": "{{ nothing._fail_with_undefined_error.__globals__ }}",
    "generator": "{{ ([1] | map('string')).gi_frame.f_globals }}",
    "format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "format item": "{{ '{0[__class__]}'.format('') }}",
    "format map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "format by map": "{{ ['{0.__class__}'] | map('format', '') | list }}",
    "format method": "{{ ''.format.__self__ }}{{ ''.format.__wrapped__ }}{{ ''.format._run }}",
    "context": "{{ self }}{{ environment }}{{ context }}{{ budget }}".replace("{{ self }}", ""),
    "append": "{{ messages.append(1) }}",
    "clear": "{{ messages[0].clear() }}",
    "update": "{{ messages[0].update({'a': 1}) }}",
    "encode": "{{ 'a'.encode() }}",
    "translate": "{{ 'a'.translate({97: 'b'}) }}",
    "call a type": "{{ ''.__class__() }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os }}",
    "from import": "{% from 'os' import system %}",
    "extends": "{% extends 'x' %}",
    "autoescape": "{% autoescape true %}{{ '<' }}{% endautoescape %}",
    "strftime": "{{ strftime_now('%1000000000d') }}",
}


@pytest.mark.parametrize("name", ESCAPES)
def test_nothing_gets_out(name: str) -> None:
    messages = [{"role": "user", "content": "hi"}]
    try:
        found = ChatTemplate(ESCAPES[name], limits=QUICK).render(messages)
    except UserError:
        found = ""
    assert found.strip("[]") in ("", "Undefined"), found
    assert messages == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{{ " + "-" * 20000 + "1 }}",
        "{% if 1 %}" * 500 + "{% endif %}" * 500,
        "{{ a" + ".a" * 20000 + " }}",
        "{{ 1" + "+1" * 20000 + " }}",
        "{{ 1" + "|abs" * 20000 + " }}",
        "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    ],
    ids=["parentheses", "signs", "ifs", "dots", "sums", "filters", "lists"],
)
def test_deeply_nested_templates_are_refused(source: str) -> None:
    with pytest.raises(ModelFileError, match="chat template"):
        ChatTemplate(source)


def test_an_oversized_template_is_refused_unread() -> None:
    with pytest.raises(ModelFileError, match="characters"):
        ChatTemplate("{% broken" * 100_000)


def test_endless_recursion_is_survived_in_a_thread_too() -> None:
    errors: list[BaseException] = []

    def run() -> None:
        for name in ("endless macro", "endless block", "endless loop call"):
            try:
                render(RUNAWAYS[name])
            except InvalidRequestError as error:
                errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert len(errors) == 3


def test_long_conversations_stay_within_the_budget() -> None:
    messages = [{"role": "user", "content": "some words " * 100}] * 2000
    source = (
        "{% set ns = namespace(out='', all=[]) %}{% for m in messages %}{% set ns.all = ns.all + [m] %}"
        "{{ m.content | trim }}{% endfor %}{{ ns.all | length }}"
    )
    found = ChatTemplate(source).render(messages)
    assert found.endswith("2000")
    assert len(found) == 2000 * (len("some words ") * 100 - 1) + 4


def test_a_shared_value_is_weighed_as_often_as_it_shows() -> None:
    budget = Budget(TemplateLimits(max_value_chars=1000))
    value: object = "a" * 10
    weights = []
    for _ in range(5):
        value = [value, value]
        weights.append(budget.weigh(value))
    assert all(later > 2 * earlier for earlier, later in itertools.pairwise(weights))
    with pytest.raises(TemplateLimitError, match="1000"):
        budget.weigh([value] * 20)


def test_without_accounting_the_same_template_would_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: a sandbox that does not count finishes only when the loops do."""
    source = "{% for i in range(1500) %}{% for j in range(1500) %}{% endfor %}{% endfor %}done"
    template = ChatTemplate(source, limits=TemplateLimits(max_seconds=0.02))
    with pytest.raises(InvalidRequestError, match=r"more than 0\.02 s"):
        template.render([])
    monkeypatch.setattr(Budget, "tick", lambda self: None)
    assert template.render([]) == "done"
