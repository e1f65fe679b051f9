"""The ledger over HTTP: every way to be answered is booked once and alike, and a kill loses nothing acknowledged."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from nonet.cli.main import run
from tests.system.fake_engine import FakeConfig
from tests.system.harness import RunningServer, start_server, wait_until

CHAT = "/v1/chat/completions"
INPUT, CACHED, OUTPUT = Decimal("0.00000025"), Decimal("0.000000025"), Decimal("0.000001")


def ledger_options(folder: Path, *layers: str) -> dict[str, object]:
    prices = {"fake": {"input_cost_per_token": 2.5e-7, "output_cost_per_token": 1e-6}}
    (folder / "prices.json").write_text(json.dumps(prices))
    return {
        "gateway": ["ledger", *layers],
        "data_dir": str(folder / "data"),
        "price_table": str(folder / "prices.json"),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ledger")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    running = start_server(
        folder,
        FakeConfig(step_s=0.002),
        gateway=ledger_options(folder, "exact_cache"),
        api_keys=("key-one", "key-two"),
    )
    yield running
    assert running.stop() == 0


def auth(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def body(text: str, **fields: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": text}], "max_tokens": 5, "temperature": 0, **fields,
    }  # fmt: skip


def usage(server: RunningServer, key: str, **fields: str) -> dict[str, Any]:
    answer = httpx.get(f"{server.url}/v1/usage", params=fields, headers=auth(key))
    assert answer.status_code == 200, answer.text
    return answer.json()


def priced(used: dict[str, Any]) -> Decimal:
    cached = used["prompt_tokens_details"]["cached_tokens"]
    plain = used["prompt_tokens"] - cached
    return plain * INPUT + cached * CACHED + used["completion_tokens"] * OUTPUT


def test_every_way_is_booked_alike(server: RunningServer) -> None:
    expected = Decimal(0)
    requests = output = 0

    whole = server.post(CHAT, body("one"), **auth("key-one"))
    expected += priced(whole.json()["usage"])
    assert Decimal(whole.headers["x-nonet-cost"]) == expected
    assert whole.headers["x-nonet-tier"] == "standard"
    requests, output = 1, 5

    streamed = body("two", stream=True, stream_options={"include_usage": True}, n=2)
    events = server.post(CHAT, streamed, **auth("key-one")).text.splitlines()
    last = json.loads([line for line in events if line.startswith("data: {")][-1][6:])
    expected += priced(last["usage"])
    requests, output = requests + 1, output + 10

    text = {"prompt": ["three", "four"], "max_tokens": 3}
    expected += priced(server.post("/v1/completions", text, **auth("key-one")).json()["usage"])
    requests, output = requests + 1, output + 6

    for question in (body("one"), body("one"), streamed, streamed):
        hit = server.post(CHAT, question, **auth("key-one"))
        assert hit.headers["x-nonet-cache"] == "exact"
        assert hit.headers["x-nonet-cost"] == "0"
        requests += 1
        output += 10 if "n" in question else 5

    refused = server.post(CHAT, body("x" * 5000), **auth("key-one"))
    assert refused.status_code == 400

    found = usage(server, "key-one", by="cache,finish")
    assert sum(line["requests"] for line in found["data"]) == requests
    assert sum(line["output_tokens"] for line in found["data"]) == output
    assert sum(Decimal(line["cost"]) for line in found["data"]) == expected
    saved = {line["technique"]: line for line in found["savings"]}
    assert saved["exact_cache"]["requests"] == 4
    assert saved["exact_cache"]["output_tokens"] == 30
    assert Decimal(saved["exact_cache"]["money"]) > 0
    assert Decimal(saved["prefix_cache"]["money"]) > 0
    assert usage(server, "key-two") == {"object": "list", "data": [], "savings": []}


def test_who_leaves_pays_for_what_was_delivered(server: RunningServer) -> None:
    question = body("leaving", max_tokens=2000, stream=True, temperature=1)
    with httpx.stream("POST", server.url + CHAT, json=question, headers=auth("key-two")) as answer:
        lines = answer.iter_lines()
        for _ in range(8):
            next(lines)

    def aborted() -> bool:
        return bool(usage(server, "key-two", by="finish")["data"])

    wait_until(aborted)
    (line,) = usage(server, "key-two", by="finish")["data"]
    assert line["finish"] == "abort"
    assert 2 <= line["output_tokens"] < 2000
    full = (line["prompt_tokens"] - line["cached_tokens"]) * INPUT
    full += line["cached_tokens"] * CACHED + line["output_tokens"] * OUTPUT
    assert Decimal(line["cost"]) == full


def test_questions_to_the_ledger(server: RunningServer) -> None:
    for fields, param in (({"by": "colour"}, "by"), ({"start": "yesterday"}, "start")):
        answer = httpx.get(f"{server.url}/v1/usage", params=fields, headers=auth("key-one"))
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
    assert usage(server, "key-one", start="2100-01-01")["data"] == []
    assert usage(server, "key-one", end="1999-01-01T00:00:00Z")["data"] == []


def test_the_command_line_reads_it_while_the_server_runs(
    server: RunningServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(folder / "data")
    before = usage(server, "key-one")["data"]
    assert run(["usage", "report", data, "--json", "--by", "tenant"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert sum(line["requests"] for line in report["usage"]) >= sum(x["requests"] for x in before)
    assert run(["usage", "report", data]) == 0
    assert "exact_cache" in capsys.readouterr().out
    assert run(["usage", "export", data]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len({row["request_id"] for row in rows}) == len(rows)
    assert "key-one" not in json.dumps(rows)
    assert sum(Decimal(row["cost"]) for row in rows) == sum(
        Decimal(line["cost"]) for line in report["usage"]
    )


def test_a_server_without_a_ledger_says_so(start_one: Callable[..., RunningServer]) -> None:
    answer = start_one().get("/v1/usage")
    assert answer.status_code == 404
    assert "--gateway ledger" in answer.text


def test_a_kill_loses_nothing_that_was_acknowledged(
    start_one: Callable[..., RunningServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = start_one(FakeConfig(step_s=0.001), gateway=ledger_options(tmp_path))
    acknowledged: list[str] = []
    engine = server.engine_pid()

    def ask_on(number: int) -> None:
        with httpx.Client(base_url=server.url) as client:
            for turn in range(10_000):
                question = body(f"{number} {turn}", stream=turn % 2 == 0)
                try:
                    answer = client.post(CHAT, json=question)
                except httpx.HTTPError:
                    return
                if answer.status_code != 200:
                    return
                text = answer.text
                line = next(x for x in text.splitlines() if '"id"' in x)
                if not question["stream"] or text.endswith("data: [DONE]\n\n"):
                    acknowledged.append(json.loads(line.removeprefix("data: "))["id"])

    threads = [threading.Thread(target=ask_on, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(acknowledged) >= 100)
    os.kill(server.process.pid, signal.SIGKILL)
    for thread in threads:
        thread.join(30)
    server.close()
    wait_until(lambda: not Path(f"/proc/{engine}").exists())
    assert run(["usage", "export", str(tmp_path / "data")]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    booked = [row["request_id"].rpartition("-")[0] for row in rows]
    assert len(set(booked)) == len(booked)
    assert set(acknowledged) <= set(booked)
    assert len(acknowledged) >= 100
