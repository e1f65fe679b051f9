"""What a result must carry to be judged later: commit, device, versions of libraries."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path

from nonet.config.machine import Machine

__all__ = ["device_facts", "library_versions", "source_commit"]

LIBRARIES = (
    "nonet",
    "torch",
    "numpy",
    "tokenizers",
    "msgspec",
    "safetensors",
    "transformers",
    "triton",
    "uvicorn",
)


def device_facts(machine: Machine) -> dict[str, str | int | None]:
    """The machine by name and size."""
    return {
        "cpu": machine.cpu_name,
        "physical_cores": machine.physical_cores,
        "memory_bytes": machine.memory_bytes,
        "gpu": machine.gpu_name,
    }


def source_commit() -> str | None:
    """The commit of the source tree that runs, "-dirty" with uncommitted changes; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    command += ["--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def library_versions() -> dict[str, str]:
    """Those that are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
