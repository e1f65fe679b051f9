"""Batches and what goes wrong: a request that kills the engine, a key that is gone, a file that is large."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import openai

from nonet.store.database import open_for_reading
from tests.system.batch_cases import chat_body, chat_lines, ended, keeping, line, make, rows, waited
from tests.system.fake_engine import FakeConfig
from tests.system.harness import RunningServer

MIB = 2**20
StartOne = Callable[..., RunningServer]


def test_a_request_that_kills_the_engine_fails_alone(start_one: StartOne, tmp_path: Path) -> None:
    server = start_one(FakeConfig(max_num_seqs=8), gateway=keeping(tmp_path))
    lines = [*chat_lines(20), line("poison", chat_body("DIE-NOW")), line("last", chat_body("x"))]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        done = ended(client, make(client, lines).id, 60)
        output, errors = rows(client, done.output_file_id), rows(client, done.error_file_id)
    assert len(output) == 21
    assert [row["custom_id"] for row in errors] == ["poison"]
    assert "several engine failures" in errors[0]["response"]["body"]["error"]["message"]
    assert server.metric("nonet_engine_deaths_total") == 2


def test_lines_of_a_revoked_key_are_refused(start_one: StartOne, tmp_path: Path) -> None:
    gateway = keeping(tmp_path)
    server = start_one(FakeConfig(step_s=0.001), gateway=gateway, api_keys=("old",))
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="old") as client:
        batch_id = make(client, chat_lines(10, max_tokens=3000)).id
        waited(lambda: client.batches.retrieve(batch_id).status, lambda s: s == "in_progress")
    assert server.stop() == 0  # which drops what runs
    start_one(FakeConfig(step_s=0.001), gateway=gateway, api_keys=("new",))

    def batch() -> tuple[str, str | None, str | None]:
        query = "SELECT status, output_file_id, error_file_id FROM batches"
        with closing(open_for_reading(tmp_path / "data" / "nonet.db")) as connection:
            return connection.execute(query).fetchone()

    _, output, errors = waited(batch, lambda found: found[0] == "completed")
    assert output is None
    text = (tmp_path / "data" / "files" / str(errors)).read_text().splitlines()
    assert [json.loads(row)["response"]["status_code"] for row in text] == [401] * 10


def test_a_large_file_is_never_in_memory(start_one: StartOne, tmp_path: Path) -> None:
    server = start_one(gateway=keeping(tmp_path))
    large = tmp_path / "large.jsonl"
    text = line("n", chat_body("x" * (64 * 1024)))
    with large.open("w") as file:
        for number in range(64 * 16):
            file.write(text.replace('"n"', f'"{number}"', 1) + "\n")
    before = peak_bytes(server)
    with large.open("rb") as file:
        form = {"purpose": "batch"}
        answer = httpx.post(f"{server.url}/v1/files", data=form, files={"file": file}, timeout=60)
    made = answer.json()
    assert made["bytes"] == large.stat().st_size > 64 * MIB
    fields = {"input_file_id": made["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
    batch = server.post("/v1/batches", fields).json()
    found = waited(
        lambda: server.get(f"/v1/batches/{batch['id']}").json(), lambda b: b["status"] == "failed"
    )
    assert found["errors"]["data"][0]["code"] == "mismatched_url"
    size = 0
    with httpx.stream("GET", f"{server.url}/v1/files/{made['id']}/content") as content:
        for chunk in content.iter_raw():
            size += len(chunk)
    assert size == made["bytes"]
    assert peak_bytes(server) - before < 24 * MIB


def peak_bytes(server: RunningServer) -> int:
    """The most memory that the server has had."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
