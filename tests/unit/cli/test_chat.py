"""`nonet chat --url`: history, commands, keys and errors, against a server that answers from a script."""

from __future__ import annotations

import io

import pytest

from nonet.cli.main import run


def talk(monkeypatch: pytest.MonkeyPatch, lines: str, *arguments: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    return run(["chat", *arguments])


def test_history_grows_and_can_be_forgotten(server, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    lines = "one\n\ntwo\n/new\nthree\n/quit\nnever sent\n"
    code = talk(
        monkeypatch, lines, "--url", server.url, "--system", "be brief", "--temperature", "0.5"
    )
    assert code == 0
    assert capsys.readouterr().out == "word1 end\nword2 end\nword3 end\n"
    system = {"role": "system", "content": "be brief"}
    asked = [body["messages"] for body in server.bodies]
    assert asked[0] == [system, {"role": "user", "content": "one"}]
    assert asked[1][1:] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "word1 end"},
        {"role": "user", "content": "two"},
    ]
    assert asked[2] == [system, {"role": "user", "content": "three"}]
    assert [body["temperature"] for body in server.bodies] == [0.5] * 3
    assert "top_p" not in server.bodies[0]
    assert server.bodies[0]["model"] == "tiny"


def test_the_key_is_sent(server, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    assert talk(monkeypatch, "", "--url", server.url, "--api-key", "k") == 0
    assert server.keys == ["Bearer k"]


def test_a_failed_answer_does_not_end_the_conversation(server, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    server.fail_with = "the engine died"
    assert talk(monkeypatch, "one\ntwo\n", "--url", server.url) == 0
    assert capsys.readouterr().err.count("the engine died") == 2
    assert server.bodies[1]["messages"] == [{"role": "user", "content": "two"}]


def test_an_unknown_model_is_refused(server, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    assert talk(monkeypatch, "one\n", "--url", server.url, "--served-name", "other") == 2
    assert "it serves tiny" in capsys.readouterr().err
