"""Which nonet this is."""

from __future__ import annotations

from importlib import metadata

__all__ = ["package_version"]


def package_version() -> str:
    """The installed package's version; "source" where the code runs from a folder and no package is installed."""
    try:
        return metadata.version("nonet")
    except metadata.PackageNotFoundError:
        return "source"
