"""`nonet version`: the version of nonet and of what it runs on."""

from __future__ import annotations

import platform
from importlib import metadata

from nonet.cli.flags import JsonFlag
from nonet.cli.terminal import print_json
from nonet.core.version import package_version

__all__ = ["command", "version_text"]


def command(*, json: JsonFlag = False) -> int:
    """Print the version."""
    if json:
        found = {"nonet": version_text(), "python": platform.python_version()}
        print_json(found | {"torch": metadata.version("torch")})
    else:
        print(version_text())
    return 0


def version_text() -> str:
    return package_version()
