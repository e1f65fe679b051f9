"""Hub ids: which files are asked for, and a plain error where no hub answers."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest

from nonet.core.errors import DownloadError
from nonet.weights.hub import fetch_from_hub


def test_weights_and_tokenizer_only_at_the_revision(monkeypatch, tmp_path):
    asked = {}

    def snapshot(repo_id, *, revision, allow_patterns, ignore_patterns):
        asked.update(repo_id=repo_id, revision=revision)
        asked.update(allow=allow_patterns, ignore=ignore_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert fetch_from_hub("org/name", "abc") == Path(tmp_path)
    assert (asked["repo_id"], asked["revision"]) == ("org/name", "abc")

    def wanted(name):
        return any(fnmatch(name, p) for p in asked["allow"]) and not any(
            fnmatch(name, p) for p in asked["ignore"]
        )

    for name in ("model-00001-of-00002.safetensors", "config.json", "tokenizer.json", "a.jinja"):
        assert wanted(name)
    for name in ("pytorch_model.bin", "modeling_x.py", "original/params.json", "x.pth", "m.gguf"):
        assert not wanted(name)
    assert not wanted("consolidated.safetensors")


def test_no_hub_is_a_plain_error(monkeypatch):
    def snapshot(repo_id, **options):
        raise ConnectionError("nobody answers\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(DownloadError, match=r"'org/name' at revision 'r'.*nobody answers\. If no"):
        fetch_from_hub("org/name", "r")


def test_a_malformed_id_is_a_plain_error():
    with pytest.raises(DownloadError, match="not a hub id"):
        fetch_from_hub("org/--bad..id", None)
