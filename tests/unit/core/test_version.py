"""Code that runs from a folder has no version to look up, and must run all the same."""

from __future__ import annotations

from importlib import metadata

import pytest

from nonet.core.version import package_version


def test_installed() -> None:
    assert package_version() == metadata.version("nonet")


def test_from_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert package_version() == "source"
