"""The grammar library: not imported before the first grammar, and refused by name where it is missing."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
import threading
import time

import pytest
from grammar_cases import VOCAB, compiler, legal

from nonet.core.errors import InvalidRequestError, OverloadedError
from nonet.core.grammar import Grammar
from nonet.engine.preparations import Preparations, Task
from nonet.grammar import GRAMMARS
from nonet.grammar.base import GrammarCompiler
from nonet.grammar.deferred import DeferredCompiler
from nonet.sampling.processors.grammar import GrammarMask
from nonet.server.grammar import GrammarGate

WORDS = Grammar("choice", '["no", "true"]')


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> DeferredCompiler:
    """The compiler of a machine without the package."""
    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.delitem(sys.modules, "nonet.grammar.llguidance", raising=False)

    def make() -> GrammarCompiler:
        made: GrammarCompiler = GRAMMARS.load("llguidance")(None, VOCAB, (1,))
        return made

    return DeferredCompiler(make)


def test_server_and_engine_start_without_the_library() -> None:
    code = (
        "import sys; sys.modules['llguidance'] = None; "
        "import nonet.server.run, nonet.engine.assemble; "
        "from nonet.grammar.deferred import default_compiler; default_compiler(None, 8, (1,))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


async def test_a_missing_package_is_named(missing: DeferredCompiler) -> None:
    gate = GrammarGate(missing)
    try:
        with pytest.raises(InvalidRequestError, match=r"pip install llguidance") as raised:
            await gate.made(lambda: WORDS, "response_format")
    finally:
        gate.close()
    assert raised.value.param == "response_format"
    assert not missing.is_compiled(WORDS)


def test_a_missing_package_ends_the_request_alone(missing: DeferredCompiler) -> None:
    preparations = Preparations()
    preparations.start("r", [Task("compiling", lambda: missing.compile(WORDS))])
    preparations.wait(5)
    (ended,) = preparations.finished()
    preparations.close()
    assert ended.error is not None
    assert "'llguidance', which is not installed" in ended.error
    GrammarMask(VOCAB, missing)  # an engine's sampler is made all the same


def test_another_missing_module_is_no_users_fault() -> None:
    def make() -> GrammarCompiler:
        raise ModuleNotFoundError("No module named 'nonet.lost'", name="nonet.lost")

    with pytest.raises(ModuleNotFoundError):
        DeferredCompiler(make).load()


def test_it_stands_for_what_is_made_once() -> None:
    made: list[GrammarCompiler] = []

    def make() -> GrammarCompiler:
        made.append(compiler())
        return made[-1]

    deferred = DeferredCompiler(make)
    assert not deferred.is_compiled(WORDS)
    assert made == []
    deferred.load()
    deferred.compile(WORDS)
    assert deferred.is_compiled(WORDS)
    assert legal(made[0], deferred.start(WORDS)) == legal(made[0], made[0].start(WORDS))
    assert len(made) == 1


class _Slow:
    """A compiler that keeps a regular expression until it may end: it computes, or waits as if others did."""

    def __init__(self, computes: bool = True) -> None:
        self.may_end = threading.Event()
        self._computes = computes

    def load(self) -> None: ...

    def compile(self, grammar: Grammar) -> None:
        end = time.monotonic() + 20
        while grammar.kind == "regex" and not self.may_end.is_set():
            assert time.monotonic() < end
            if self._computes:
                hashlib.sha256(bytes(1 << 20))  # without Python's lock, as the library does
            else:
                self.may_end.wait(0.01)


async def test_a_grammar_that_is_late_does_not_hold_up_others() -> None:
    slow = _Slow()
    gate = GrammarGate(slow, limit_s=0.05)  # type: ignore[arg-type]
    late = Grammar("regex", "a")
    try:
        for _ in range(2):
            with pytest.raises(InvalidRequestError, match=r"longer than 0\.05 s"):
                await gate.made(lambda: late, "guided_regex")
            assert await gate.made(lambda: WORDS, "guided_choice") == WORDS
        with pytest.raises(InvalidRequestError, match=r"longer than 0\.05 s"):
            await gate.made(lambda: late, "guided_regex")
        waiting = asyncio.ensure_future(gate.made(lambda: WORDS, "guided_choice"))
        await asyncio.sleep(0.05)
        assert not waiting.done(), "three that are late are too many"
        slow.may_end.set()
        assert await waiting == WORDS
        async with asyncio.timeout(60):
            while gate._num_late:
                await asyncio.sleep(0.01)
    finally:
        slow.may_end.set()
        gate.close()


@pytest.mark.skipif(sys.platform != "linux", reason="no clock of another thread's work")
async def test_a_busy_machine_does_not_make_a_grammar_late() -> None:
    slow = _Slow(computes=False)
    gate = GrammarGate(slow, limit_s=0.1)  # type: ignore[arg-type]
    asyncio.get_running_loop().call_later(0.4, slow.may_end.set)
    try:
        assert await gate.made(lambda: Grammar("regex", "a"), "guided_regex") is not None
    finally:
        gate.close()


@pytest.mark.skipif(sys.platform != "linux", reason="no clock of another thread's work")
async def test_a_grammar_that_never_gets_to_compute_is_nobodys_fault() -> None:
    slow = _Slow(computes=False)
    gate = GrammarGate(slow, limit_s=0.02)  # type: ignore[arg-type]
    try:
        with pytest.raises(OverloadedError):
            await gate.made(lambda: Grammar("regex", "a"), "guided_regex")
        assert await gate.made(lambda: WORDS, "guided_choice") == WORDS
    finally:
        slow.may_end.set()
        gate.close()
