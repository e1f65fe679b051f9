"""Adapters over HTTP: loaded, listed, asked for by name, unloaded; bad ones and bad paths are refused with a reason."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from tests.lora_cases import adapt, config
from tests.model.families import save
from tests.system.harness import RunningServer, start_server, wait_until
from tests.system.tiny_text import write_tokenizer

PROMPT = "a nonet is an ensemble of nine"
EXTRA = {"ignore_eos": True, "return_token_ids": True}


@dataclass
class Place:
    """A model, directories of adapters over it, and the merged models."""

    root: Path
    merged: dict[str, PreTrainedModel]

    @property
    def options(self) -> dict[str, object]:
        return {
            "model": str(self.root / "base"),
            "served_name": "base",
            "dtype": "float32",
            "num_blocks": 64,
            "max_model_len": 128,
            "lora_dir": str(self.root / "adapters"),
            "max_loras": 2,
            "max_lora_rank": 8,
            "max_cpu_loras": 3,
        }

    def tokens(self, name: str, prompt: str = PROMPT, count: int = 8) -> list[int]:
        ids = list(prompt.encode())
        for _ in range(count):
            with torch.no_grad():
                logits = self.merged[name](torch.tensor([ids])).logits[0, -1]
            ids.append(int(logits.argmax()))
        return ids[len(prompt) :]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("lora")
    base = save("llama", root / "base")
    write_tokenizer(root / "base")
    merged = {"base": base}
    for seed, name in enumerate(("one", "two", "deep/three")):
        merged[name] = adapt(base, config(r=8), root / "adapters" / name, seed)
    adapt(base, config(r=8), root / "outside", 9)
    os.symlink(root / "outside", root / "adapters" / "link")
    (root / "adapters" / "half").mkdir()
    shutil.copy(root / "adapters/one/adapter_config.json", root / "adapters/half")
    os.symlink(
        root / "outside/adapter_model.safetensors", root / "adapters/half/adapter_model.safetensors"
    )
    return Place(root, merged)


@pytest.fixture(scope="module")
def server(place: Place) -> Iterator[RunningServer]:
    running = start_server(place.root, options=place.options)
    yield running
    assert running.stop() == 0


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made
        for model in made.models.list().data:
            if model.id != "base":
                assert unload(server, model.id).status_code == 200


def load(server: RunningServer, name: str, path: str, **more: object) -> httpx.Response:
    body = {"lora_name": name, "lora_path": path, **more}
    return server.post("/v1/load_lora_adapter", body)


def unload(server: RunningServer, name: str) -> httpx.Response:
    return server.post("/v1/unload_lora_adapter", {"lora_name": name})


def ask(client: openai.OpenAI, model: str, prompt: str = PROMPT) -> list[int]:
    answer = client.completions.create(
        model=model, prompt=prompt, max_tokens=8, temperature=0, extra_body=EXTRA
    )
    assert answer.model == model
    choice = answer.choices[0].model_extra
    assert choice is not None
    return list(choice["token_ids"])


def test_load_ask_list_unload(server: RunningServer, client: openai.OpenAI, place: Place) -> None:
    assert [model.id for model in client.models.list().data] == ["base"]
    answer = load(server, "sql", "one")
    assert answer.status_code == 200
    assert answer.text == "Success: LoRA adapter 'sql' added successfully."
    cards = {model.id: model.model_extra for model in client.models.list().data}
    assert cards["base"]["parent"] is None
    assert cards["sql"]["parent"] == "base"
    assert client.models.retrieve("sql").id == "sql"
    assert ask(client, "sql") == place.tokens("one")
    assert ask(client, "base") == place.tokens("base")
    streamed = client.completions.create(
        model="sql", prompt=PROMPT, max_tokens=8, temperature=0, stream=True, extra_body=EXTRA
    )
    assert {chunk.model for chunk in streamed} == {"sql"}
    assert unload(server, "sql").text == "Success: LoRA adapter 'sql' removed successfully."
    with pytest.raises(
        openai.NotFoundError, match="no model 'sql' is served here; this server has 'base'"
    ):
        ask(client, "sql")


def test_three_adapters_through_two_slots(
    server: RunningServer, client: openai.OpenAI, place: Place
) -> None:
    for name in ("one", "two", "deep/three"):
        assert load(server, name, name).status_code == 200
    names = ["one", "two", "deep/three", "base"] * 5
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda name: ask(client, name), names))
    assert found == [place.tokens(name) for name in names]
    assert "max_cpu_loras is 3" in load(server, "four", "one").json()["error"]["message"]


def test_a_name_may_get_another_content(
    server: RunningServer, client: openai.OpenAI, place: Place
) -> None:
    """And never the KV of the old one."""
    assert load(server, "it", "one").status_code == 200
    prompt = PROMPT * 3
    assert ask(client, "it", prompt) == place.tokens("one", prompt)
    assert "loaded already" in load(server, "it", "two").json()["error"]["message"]
    assert load(server, "it", "two", load_inplace=True).status_code == 200
    assert ask(client, "it", prompt) == place.tokens("two", prompt)


BAD_PATHS = [
    "..", "../outside", "/", "", ".", "nowhere", "one/adapter_config.json", "link", "half", "one\0", "~",
    "one/../../outside", "a" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("path", BAD_PATHS)
def test_paths_stay_below_the_directory(server: RunningServer, place: Place, path: str) -> None:
    for given in (path, str(place.root / "outside")):
        answer = load(server, "bad", given)
        assert answer.status_code == 400, given
        error = answer.json()["error"]
        if given not in ("", "."):  # the directory itself holds no adapter
            assert "below the server's lora_dir" in error["message"]
            assert error["param"] == "lora_path"
    assert str(place.root) not in load(server, "bad", path).text.replace(
        "adapters", ""
    ) or path in ("", ".")


@pytest.mark.parametrize("path", ["one", "./one", "deep/../one", "absolute"])
def test_other_spellings_of_a_good_path(
    server: RunningServer, client: openai.OpenAI, place: Place, path: str
) -> None:
    given = str(place.root / "adapters" / "one") if path == "absolute" else path
    assert load(server, "good", given).status_code == 200


Spoil = Callable[[Path], None]


def settings(**changes: object) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return spoil


def tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        found = load_file(file)
        change(found)
        save_file(found, file)

    return spoil


K = "base_model.model.model.layers.1.self_attn.k_proj.lora_A.weight"
BAD_ADAPTERS: dict[str, tuple[Spoil, str]] = {
    "dora": (settings(use_dora=True), "DoRA"),
    "rank": (settings(r=4), "with rank 4"),
    "high rank": (settings(r=64), "max_lora_rank is 8; start with max_lora_rank 64"),
    "missing": (tensors(lambda found: found.__delitem__(K)), "k_proj has no lora_A"),
    "shape": (tensors(lambda found: found.update({K: torch.ones(8, 7)})), "must be (8, 48)"),
    "nan": (tensors(lambda found: found[K].fill_(torch.nan)), "not finite"),
    "huge": (lambda folder: os.truncate(folder / "adapter_model.safetensors", 1 << 40), "more than an adapter"),
    "cut": (lambda folder: os.truncate(folder / "adapter_model.safetensors", 2000), "truncated or corrupt"),
    "no file": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "safetensors files only"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_ADAPTERS)
def test_bad_adapters_are_refused(server: RunningServer, place: Place, kind: str) -> None:
    spoil, says = BAD_ADAPTERS[kind]
    folder = place.root / "adapters" / f"bad-{kind}"
    shutil.copytree(place.root / "adapters" / "one", folder)
    spoil(folder)
    answer = load(server, "bad", folder.name)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]
    assert server.get("/v1/models/bad").status_code == 404


def test_names_and_bodies_are_checked(server: RunningServer) -> None:
    for name in ("", "base", "a\n", " a", "x" * 300):
        answer = load(server, name, "one")
        assert answer.status_code == 400, name
        assert answer.json()["error"]["param"] == "lora_name"
    assert load(server, "a", "one", base_model_name="other").status_code == 400
    assert server.post("/v1/load_lora_adapter", {"lora_name": "a"}).status_code == 400
    assert unload(server, "unknown").status_code == 404


def test_nothing_is_loaded_unless_the_operator_says_where(
    place: Place, start_one: Callable[..., RunningServer]
) -> None:
    """Adapters of the start are served, and the routes are closed."""
    options = {key: value for key, value in place.options.items() if key != "lora_dir"}
    running = start_one(options=options | {"lora_modules": [f"sql={place.root / 'adapters/one'}"]})
    for answer in (load(running, "a", "one"), unload(running, "sql")):
        assert answer.status_code == 400
        assert "start the server with lora_dir" in answer.json()["error"]["message"]
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        assert ask(client, "sql") == place.tokens("one")


def test_beside_an_admin_socket_adapters_come_and_go_there_only(
    place: Place, start_one: Callable[..., RunningServer], tmp_path: Path
) -> None:
    gateway = {"admin": f"unix:{tmp_path / 'admin.sock'}"}
    running = start_one(options=place.options, gateway=gateway)
    transport = httpx.HTTPTransport(uds=str(tmp_path / "admin.sock"))
    with httpx.Client(transport=transport, base_url="http://localhost", timeout=60) as admin:
        assert admin.get("/adapters").json() == {"object": "list", "data": []}
        body = {"lora_name": "deep/three", "lora_path": "deep/three"}
        assert admin.post("/adapters", json=body).status_code == 200
        assert admin.post("/adapters", json={**body, "lora_path": "../outside"}).status_code == 400
        (found,) = admin.get("/adapters").json()["data"]
        assert (found["name"], found["rank"]) == ("deep/three", 8)
        for answer in (load(running, "sql", "one"), unload(running, "deep/three")):
            assert answer.status_code == 400
            assert "on its admin socket only" in answer.json()["error"]["message"]
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
            assert ask(client, "deep/three") == place.tokens("deep/three")
        assert admin.delete("/adapters/deep/three").status_code == 200
        assert admin.delete("/adapters/deep/three").status_code == 404
        assert admin.get("/adapters").json()["data"] == []


def test_adapters_survive_the_engine(place: Place, start_one: Callable[..., RunningServer]) -> None:
    running = start_one(options=place.options)
    assert load(running, "sql", "one").status_code == 200
    os.kill(running.engine_pid(), signal.SIGKILL)
    wait_until(lambda: not running.is_ready())
    wait_until(running.is_ready)
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        assert ask(client, "sql") == place.tokens("one")
