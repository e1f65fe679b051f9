"""The official OpenAI client over files and batches: every endpoint, mistakes, cancel, tenants, and what is billed."""

from __future__ import annotations

import asyncio
import http.client
import json
import stat
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.data.openai.validation import validate
from tests.system.batch_cases import (
    CHAT,
    chat_body,
    chat_lines,
    ended,
    line,
    make,
    rows,
    start_keeping,
    upload,
    waited,
)
from tests.system.fake_engine import FakeConfig
from tests.system.harness import PATIENCE_S, RunningServer, start_server

BROKEN_OFF = b'--b\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\nabc'
SLOW = {"max_tokens": 3000}  # of steps that take a millisecond: longer than any test


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("batches")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    running = start_keeping(
        folder,
        FakeConfig(step_s=0.001, max_num_seqs=16),
        api_keys=("one", "two"),
        max_body_bytes=100_000,
    )
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log.read_text()


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="one", max_retries=0) as made:
        yield made


def raw(server: RunningServer, method: str, path: str, **fields: Any) -> httpx.Response:
    headers = {"authorization": "Bearer one", **fields.pop("headers", {})}
    return httpx.request(method, server.url + path, headers=headers, timeout=PATIENCE_S, **fields)


def spent(server: RunningServer, **fields: str) -> list[dict[str, Any]]:
    return raw(server, "GET", "/v1/usage", params=fields).json()["data"]


def test_files(client: openai.OpenAI, server: RunningServer, folder: Path) -> None:
    content = b'{"a": 1}\n' * 3
    made = client.files.create(file=("../../é.jsonl", content), purpose="batch")
    assert (made.bytes, made.filename, made.purpose) == (27, "../../é.jsonl", "batch")
    kept = folder / "data" / "files" / made.id
    assert kept.read_bytes() == content
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).content == content
    validate("OpenAIFile", raw(server, "GET", f"/v1/files/{made.id}").json())
    validate("ListFilesResponse", raw(server, "GET", "/v1/files").json())

    later = client.files.create(
        file=("b", b"x"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert later.expires_at == later.created_at + 3600
    assert [f.id for f in client.files.list(limit=1)][:2] == [later.id, made.id]  # two pages
    assert [f.id for f in client.files.list(order="asc", after=made.id)] == [later.id]
    assert list(client.files.list(purpose="batch_output", after=later.id)) == []

    validate("DeleteFileResponse", raw(server, "DELETE", f"/v1/files/{made.id}").json())
    assert not kept.exists()
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)


@pytest.mark.parametrize(
    ("fields", "files", "fragment"),
    [
        ({"purpose": "vision"}, {"file": ("a", b"x")}, "purpose is 'vision'"),
        ({}, {"file": ("a", b"x")}, "purpose is missing"),
        ({"purpose": "batch"}, {"other": ("a", b"x")}, "no field 'file'"),
        ({"purpose": "batch" * 2000}, {"file": ("a", b"x")}, "over 4096 bytes"),
        (
            {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "5"},
            {"file": ("a", b"x")},
            "give 3600 to 2592000",
        ),
    ],
)  # fmt: skip
def test_wrong_forms(
    server: RunningServer, fields: dict[str, str], files: Any, fragment: str
) -> None:
    answer = raw(server, "POST", "/v1/files", data=fields, files=files)
    assert answer.status_code == 400
    assert fragment in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"{}", "application/json"),
        (b"--b\r\n", "multipart/form-data"),
        (b"--b\r\nx", "multipart/form-data; boundary=b"),
        (b"--c--\r\n", "multipart/form-data; boundary=b"),
        (BROKEN_OFF, "multipart/form-data; boundary=b"),
        (b"", "multipart/form-data; boundary=b"),
    ],
)  # fmt: skip
def test_malformed_forms_leave_nothing(
    server: RunningServer, folder: Path, content: bytes, kind: str
) -> None:
    answer = raw(server, "POST", "/v1/files", content=content, headers={"content-type": kind})
    assert answer.status_code == 400, answer.text
    assert not list((folder / "data" / "files").glob("*.part"))


def test_a_file_over_the_limit_is_refused_unread(server: RunningServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    connection.putrequest("POST", "/v1/files")
    for name, value in (
        ("authorization", "Bearer one"),
        ("content-type", "multipart/form-data; boundary=b"),
        ("content-length", str(10**9)),
    ):
        connection.putheader(name, value)
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize(
    "file_id",
    ["..", "../nonet.db", "%2e%2e%2fnonet.db", "/etc/passwd", "file-" + "0" * 32, "a%00b", "file-１"],
)  # fmt: skip
def test_ids_are_no_paths(server: RunningServer, file_id: str) -> None:
    for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content", f"/v1/batches/{file_id}"):
        assert raw(server, "GET", path).status_code == 404


def test_a_batch_of_chats(client: openai.OpenAI, server: RunningServer) -> None:
    before = spent(server, by="tier")
    wrong = [
        line("wrong-type", chat_body("x", temperature="hot")),
        line("stream", chat_body("x", stream=True)),
    ]
    hasty = line("priority", chat_body("p", service_tier="priority"))
    lines = [*chat_lines(40, temperature=0), *wrong, hasty]
    made = make(client, lines, metadata={"run": "1"})
    assert made.status in ("validating", "in_progress")
    done = ended(client, made.id)
    assert (done.status, done.metadata) == ("completed", {"run": "1"})
    validate("Batch", raw(server, "GET", f"/v1/batches/{made.id}").json())
    assert done.request_counts is not None
    assert (done.request_counts.total, done.request_counts.completed) == (43, 41)
    assert None not in (done.in_progress_at, done.finalizing_at, done.completed_at)

    output, errors = rows(client, done.output_file_id), rows(client, done.error_file_id)
    assert [row["custom_id"] for row in output] == [f"line-{n}" for n in range(40)] + ["priority"]
    assert len({row["id"] for row in output}) == 41
    for number in (0, 39):
        alone = raw(server, "POST", CHAT, json=chat_body(f"question {number}", temperature=0))
        body = output[number]["response"]["body"]
        validate("CreateChatCompletionResponse", body)
        assert body["choices"] == alone.json()["choices"]
        assert "service_tier" not in output[40]["response"]["body"]
    assert [(e["custom_id"], e["response"]["status_code"]) for e in errors] == [
        ("wrong-type", 400),
        ("stream", 400),
    ]
    assert errors[0]["response"]["body"]["error"]["param"] == "temperature"

    used = [row["response"]["body"]["usage"] for row in output]
    (booked,) = [line for line in spent(server, by="tier") if line["tier"] == "batch"]
    earlier = [line for line in before if line["tier"] == "batch"]
    assert booked["requests"] - sum(line["requests"] for line in earlier) == 41
    cost = Decimal(booked["cost"]) - sum(Decimal(line["cost"]) for line in earlier)
    assert cost == sum(half_price(usage) for usage in used)
    assert done.usage is not None
    assert done.usage.output_tokens == sum(usage["completion_tokens"] for usage in used)
    assert done.usage.input_tokens == sum(usage["prompt_tokens"] for usage in used)


def half_price(usage: dict[str, Any]) -> Decimal:
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    plain = usage["prompt_tokens"] - cached
    full = plain * Decimal("2.5e-7") + cached * Decimal("2.5e-8")
    return (full + usage["completion_tokens"] * Decimal("1e-6")) / 2


ENDPOINTS = {
    "/v1/completions": ({"prompt": ["a", "b"], "max_tokens": 3}, "CreateCompletionResponse"),
    "/v1/embeddings": ({"model": "fake", "input": ["a", "b"]}, "CreateEmbeddingResponse"),
    "/v1/responses": ({"input": "hello", "max_output_tokens": 16}, "Response"),
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_other_endpoints(client: openai.OpenAI, endpoint: str) -> None:
    body, schema = ENDPOINTS[endpoint]
    lines = [line(f"n{n}", body, endpoint) for n in range(3)]
    done = ended(client, make(client, lines, endpoint).id)
    assert done.status == "completed"
    assert done.error_file_id is None
    output = rows(client, done.output_file_id)
    assert len(output) == 3
    validate(schema, output[0]["response"]["body"])


def test_wrong_input_files(client: openai.OpenAI, server: RunningServer) -> None:
    lines = [
        line("a", {}),
        "{not json",
        line("a", {}),
        line("b", {}, "/v1/embeddings"),
        line("c", {}, method="GET"),
        line("d", []),
        line("", {}),
        json.dumps({"custom_id": "e", "method": "POST", "url": CHAT}),
        "",
        line("HALF", {}).replace("HALF", "\\ud800"),
    ]
    done = ended(client, make(client, lines).id)
    assert done.status == "failed"
    assert done.failed_at
    assert done.errors is not None
    found = [(error.line, error.code) for error in done.errors.data or []]
    assert found == [
        (2, "invalid_json_line"), (3, "duplicate_custom_id"), (4, "mismatched_url"), (5, "invalid_method"),
        (6, "invalid_request"), (7, "invalid_request"), (8, "invalid_request"), (10, found[-1][1]),
    ]  # fmt: skip
    validate("Batch", raw(server, "GET", f"/v1/batches/{done.id}").json())
    client.files.delete(done.input_file_id)  # nobody holds it any more

    empty = ended(client, make(client, ["", "  "]).id)
    assert (empty.errors.data or [])[0].code == "empty_file"
    long = ended(client, make(client, [line("a", {}), line("b", chat_body("x" * 100_000))]).id)
    assert [error.code for error in long.errors.data] == ["request_too_large"]


def test_wrong_batches(client: openai.OpenAI, server: RunningServer) -> None:
    file_id = upload(client, chat_lines(1))
    good = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    for change, param in (
        ({"endpoint": "/v1/files"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "now", "seconds": 4000}}, "output_expires_after"),
    ):
        answer = raw(server, "POST", "/v1/batches", json={**good, **change})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    missing = {**good, "input_file_id": "file-1"}
    assert raw(server, "POST", "/v1/batches", json=missing).status_code == 404
    done = ended(client, client.batches.create(**good).id)
    again = raw(server, "POST", "/v1/batches", json={**good, "input_file_id": done.output_file_id})
    assert again.json()["error"]["param"] == "input_file_id"


def test_cancel(client: openai.OpenAI, server: RunningServer) -> None:
    quick = [line(f"quick-{n}", chat_body(f"q{n}")) for n in range(5)]
    made = make(client, quick + chat_lines(60, **SLOW))
    waited(lambda: client.batches.retrieve(made.id), lambda b: b.request_counts.completed >= 5)
    with pytest.raises(openai.BadRequestError, match="cancel the batch first"):
        client.files.delete(made.input_file_id)
    before = spent(server)[0]["requests"]
    assert client.batches.cancel(made.id).status in ("cancelling", "cancelled")
    done = ended(client, made.id)
    assert done.status == "cancelled"
    assert None not in (done.cancelling_at, done.cancelled_at)
    assert (done.request_counts.completed, done.request_counts.failed) == (5, 60)
    output, errors = rows(client, done.output_file_id), rows(client, done.error_file_id)
    assert {row["custom_id"] for row in output} == {f"quick-{n}" for n in range(5)}
    assert {row["custom_id"] for row in errors} == {f"line-{n}" for n in range(60)}
    assert {row["error"]["code"] for row in errors} == {"batch_cancelled"}
    waited(server_is_idle(server), bool)
    assert spent(server)[0]["requests"] == before  # what was dropped costs nothing
    with pytest.raises(openai.BadRequestError, match="cannot be cancelled"):
        client.batches.cancel(made.id)
    validate("Batch", raw(server, "GET", f"/v1/batches/{made.id}").json())


def server_is_idle(server: RunningServer) -> Any:
    server.headers = {"authorization": "Bearer one"}
    return server.is_empty


def test_batches_leave_room_for_others(client: openai.OpenAI, server: RunningServer) -> None:
    made = make(client, chat_lines(60, **SLOW))
    counts = waited(
        lambda: server_is_idle(server) and server.metric("nonet_running_sequences"),
        lambda n: n >= 14,
    )
    assert counts == 14  # an eighth of the sixteen is kept free
    assert server.metric("nonet_waiting_requests") == 0
    assert raw(server, "POST", CHAT, json=chat_body("me")).status_code == 200
    client.batches.cancel(made.id)
    assert ended(client, made.id).output_file_id is None


def test_lists_in_pages(client: openai.OpenAI, server: RunningServer) -> None:
    ids = [make(client, chat_lines(1)).id for _ in range(3)]
    for batch_id in ids:
        ended(client, batch_id)
    assert [batch.id for batch in client.batches.list(limit=2)][:3] == ids[::-1]
    page = client.batches.list(limit=2, after=ids[2])
    assert (page.data[0].id, page.has_more) == (ids[1], True)
    validate("ListBatchesResponse", raw(server, "GET", "/v1/batches?limit=2").json())
    for query in ("limit=0", "limit=101", "limit=x"):
        assert raw(server, "GET", f"/v1/batches?{query}").status_code == 400
    assert raw(server, "GET", "/v1/batches?after=batch_1").status_code == 404


def test_tenants_are_apart(client: openai.OpenAI, server: RunningServer) -> None:
    done = ended(client, make(client, chat_lines(1)).id)
    other = openai.OpenAI(base_url=f"{server.url}/v1", api_key="two", max_retries=0)
    for attempt in (
        lambda: other.batches.retrieve(done.id),
        lambda: other.batches.cancel(done.id),
        lambda: other.files.content(done.input_file_id),
        lambda: other.files.delete(done.output_file_id or ""),
        lambda: other.batches.create(
            input_file_id=done.input_file_id, endpoint=CHAT, completion_window="24h"
        ),
    ):
        with pytest.raises(openai.NotFoundError):
            attempt()
    assert list(other.batches.list()) == []
    assert list(other.files.list()) == []


async def test_the_async_client(server: RunningServer) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="one") as client:
        content = "\n".join(chat_lines(5)).encode()  # without a last newline
        file = await client.files.create(file=("in.jsonl", content), purpose="batch")
        made = await client.batches.create(
            input_file_id=file.id, endpoint=CHAT, completion_window="24h"
        )
        while (done := await client.batches.retrieve(made.id)).status != "completed":
            await asyncio.sleep(0.02)
        text = (await client.files.content(done.output_file_id or "")).text
        assert len(text.splitlines()) == 5
        assert made.id in [batch.id async for batch in client.batches.list()]


def test_without_a_folder_there_are_no_batches(tmp_path: Path) -> None:
    server = start_server(tmp_path)
    try:
        for path in ("/v1/files", "/v1/batches", "/v1/messages/batches"):
            answer = server.get(path)
            assert answer.status_code == 404
            assert "--data-dir" in answer.text
    finally:
        server.close()
