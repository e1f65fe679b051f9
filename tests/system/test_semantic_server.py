"""The semantic cache over HTTP: headers, streams, both dialects, the ledger, the admin's routes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.semantic_fakes import write_encoder
from tests.system.fake_engine import FakeConfig
from tests.system.harness import RunningServer, start_server

CHAT = "/v1/chat/completions"
QUESTION = "How do I reset my password?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("semantic")
    write_encoder(folder / "encoder")
    return folder


def started(folder: Path) -> RunningServer:
    return start_server(
        folder,
        FakeConfig(step_s=0.001),
        gateway={
            "gateway": [f"semantic_cache:delta=0.3,shadow=0.000001,embedder={folder / 'encoder'}", "ledger"],
            "data_dir": str(folder / "data"),
            "admin": f"unix:{folder / 'admin.sock'}",
        },
        api_keys=("one", "two"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    running = started(folder)
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def admin(server: RunningServer, folder: Path) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(uds=str(folder / "admin.sock"))
    with httpx.Client(transport=transport, base_url="http://localhost") as client:
        yield client


def ask(
    server: RunningServer, text: str = QUESTION, key: str = "one", **more: Any
) -> httpx.Response:
    body = {
        "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 6, **more,
    }  # fmt: skip
    answer = server.post(CHAT, body, authorization=f"Bearer {key}")
    assert answer.status_code == 200, answer.text
    return answer


def prove(server: RunningServer, **more: Any) -> httpx.Response:
    for _ in range(60):
        answer = ask(server, **more)
        if answer.headers["x-nonet-cache"] == "semantic":
            return answer
        assert answer.headers["x-nonet-cache"] == "miss"
    raise AssertionError("no hit")


def test_a_hit_says_so_and_equals_the_answer(server: RunningServer) -> None:
    fresh = ask(server).json()
    answer = prove(server)
    assert float(answer.headers["x-nonet-similarity"]) > 0.99
    assert answer.json()["choices"] == fresh["choices"]
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert answer.json()["usage"][name] == fresh["usage"][name]
    assert answer.json()["id"] != fresh["id"]


def test_a_hit_streams(server: RunningServer) -> None:
    """What was answered as a whole is replayed as a stream, and read by the official client."""
    whole = prove(server, max_tokens=7)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="one", max_retries=0) as client:
        stream = client.chat.completions.with_raw_response.create(
            model=whole.json()["model"],
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0,
            max_tokens=7,
            stream=True,
        )
        assert stream.headers["x-nonet-cache"] == "semantic"
        chunks = list(stream.parse())
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.json()["choices"][0]["message"]["content"]
    assert len(chunks) > 3


def test_the_other_dialect_has_partitions_of_its_own(server: RunningServer) -> None:
    prove(server)
    body = {
        "model": ask(server).json()["model"], "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0, "max_tokens": 6,
    }  # fmt: skip
    outcomes = []
    for _ in range(40):
        answer = server.post("/v1/messages", body, authorization="Bearer one")
        assert answer.status_code == 200, answer.text
        outcomes.append(answer.headers["x-nonet-cache"])
    assert outcomes[0] == "miss"
    assert outcomes[-1] == "semantic"


def test_another_key_is_another_tenant(server: RunningServer) -> None:
    prove(server)
    assert ask(server, key="two").headers["x-nonet-cache"] == "miss"
    assert ask(server).headers["x-nonet-cache"] == "semantic"


def test_completions_pass_by(server: RunningServer) -> None:
    body = {"prompt": QUESTION, "temperature": 0, "max_tokens": 3}
    for _ in range(2):
        answer = server.post("/v1/completions", body, authorization="Bearer one")
        assert answer.headers["x-nonet-cache"] == "bypass"


def test_the_ledger_and_the_admin(server: RunningServer, admin: httpx.Client) -> None:
    prove(server, max_tokens=8)
    used = server.get("/v1/usage", authorization="Bearer one").json()
    assert "semantic_cache" in str(used)
    shown = admin.get("/cache").json()
    assert shown["semantic"]["partitions"]["serving"] >= 1
    assert shown["entries"] == shown["semantic"]["entries"] > 0
    dry = admin.post("/cache/purge", json={"dry_run": True}).json()
    assert dry == {"entries": shown["entries"], "dry_run": True}
    assert admin.post("/cache/purge", json={}).json()["entries"] == shown["entries"]
    assert admin.get("/cache").json()["entries"] == 0
    assert ask(server, max_tokens=8).headers["x-nonet-cache"] == "miss"
