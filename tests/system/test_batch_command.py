"""`nonet batch` against a server with the scripted engine: a file in, progress, files out, cancel, lists, mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nonet.cli import batch as batch_verbs
from nonet.cli.main import run
from tests.system.batch_cases import chat_body, chat_lines, line, start_keeping
from tests.system.fake_engine import FakeConfig
from tests.system.harness import RunningServer

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = start_keeping(
        tmp_path_factory.mktemp("command"),
        FakeConfig(step_s=0.001, max_num_seqs=16),
        api_keys=("one", "two"),
    )
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log.read_text()


@pytest.fixture
def command(
    server: RunningServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Runs one verb; its code and what it printed."""
    monkeypatch.setattr(batch_verbs, "POLL_S", 0.02)

    def ran(*words: str, key: str = "one") -> tuple[int, str, str]:
        code = run(["batch", *words, "--url", server.url, "--api-key", key])
        out, err = capsys.readouterr()
        return code, out, err

    return ran


def written(folder: Path, lines: list[str], name: str = 'über "all".jsonl') -> str:
    path = folder / name
    path.write_text("".join(f"{text}\n" for text in lines))
    return str(path)


def test_from_a_file_to_its_answers(command: Command, tmp_path: Path) -> None:
    lines = [*chat_lines(20), line("wrong", chat_body("x", max_tokens=0))]
    code, out, err = command("submit", written(tmp_path, lines), "--wait")
    assert (code, err) == (0, "")
    batch_id = out.split()[0]
    assert out == f"{batch_id} completed: 20/21 done, 1 failed\n"
    code, out, _ = command("fetch", batch_id, "--folder", str(tmp_path / "new" / "folder"))
    output, errors = (Path(name) for name in out.split())
    assert code == 0
    answers = [json.loads(text) for text in output.read_text().splitlines()]
    assert {one["custom_id"] for one in answers} == {f"line-{n}" for n in range(20)}
    assert all(one["response"]["body"]["choices"] for one in answers)
    assert [json.loads(text)["custom_id"] for text in errors.read_text().splitlines()] == ["wrong"]
    assert {file.name for file in output.parent.iterdir()} == {output.name, errors.name}


def test_cancelled_and_listed(command: Command, tmp_path: Path) -> None:
    given = written(tmp_path, chat_lines(50, max_tokens=3000))
    code, out, _ = command("submit", given, "--json")
    batch_id = json.loads(out)["id"]
    assert code == 0
    code, out, err = command("fetch", batch_id)
    assert (code, out) == (2, "")
    assert "come when it has ended" in err
    code, out, _ = command("cancel", batch_id)
    assert (code, out.strip()) in {(0, "cancelling"), (0, "cancelled")}
    code, out, _ = command("wait", batch_id, "--json")
    assert (code, json.loads(out)["status"]) == (1, "cancelled")

    other = command("submit", given, "--json")[1]
    second = json.loads(other)["id"]
    command("cancel", second)
    rows = command("list", "--limit", "2")[1].splitlines()
    assert rows[0].split() == ["batch", "status", "done", "failed", "made"]
    assert [row.split()[0] for row in rows[1:]] == [second, batch_id]
    assert [one["id"] for one in json.loads(command("list", "--json")[1])][:2] == [second, batch_id]
    code, out, err = command("list", key="two")
    assert (code, out, err) == (0, "", "there are no batches\n")


def test_lists_go_on_over_pages(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nonet.cli.batch_client.PAGE", 2)
    given = written(tmp_path, chat_lines(1))
    ids = [command("submit", given, "--wait")[1].split()[0] for _ in range(5)]
    shown = [row.split()[0] for row in command("list", "--limit", "5")[1].splitlines()[1:]]
    assert shown == ids[::-1]


def test_a_file_the_server_refuses(command: Command, tmp_path: Path) -> None:
    twice = [line("a", chat_body("x")), line("a", chat_body("y"))]
    code, out, err = command("submit", written(tmp_path, twice), "--wait")
    assert code == 1
    assert "failed: 0/0 done" in out
    assert err.startswith("line 2: ")


def test_what_cannot_be_done(command: Command, tmp_path: Path) -> None:
    good = written(tmp_path, chat_lines(1))
    large = written(tmp_path, [line("a", chat_body("x" * 20_000_000))], "large")
    for words, key, fragment in (
        (("wait", "batch_none"), "one", "no batch 'batch_none'"),
        (("cancel", "../files"), "one", "404"),
        (("submit", good), "wrong", "401"),
        (("submit", large), "wrong", "401"),  # refused before all of it was sent
        (("submit", written(tmp_path, ["no JSON"], "other")), "one", "is no request of a batch"),
    ):
        code, out, err = command(*words, key=key)
        assert (code, out) == (2, "")
        assert fragment in err
        assert err.count("\n") == 1
