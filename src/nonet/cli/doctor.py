"""`nonet doctor`: what this machine offers, what is missing, and what to do about it."""

from __future__ import annotations

import platform
import shutil
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from nonet.cli.flags import JsonFlag, configured
from nonet.cli.terminal import print_json, table
from nonet.config.load import Loaded
from nonet.config.machine import Machine
from nonet.config.memory import show_bytes

__all__ = ["Check", "command"]

# Instruction sets that decide which kernels run, and how fast.
FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_bf16",
    "amx_int8",
    "bf16",
    "i8mm",
)

NATIVE = "from nonet.kernels.native import native_available as a; ok, why = a(); print(why); exit(not ok)"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; only "fail" makes the command fail."""

    name: str
    state: Literal["ok", "note", "fail"]
    detail: str


def doctor(loaded: Loaded, *, json: JsonFlag = False) -> int:
    """Check what this machine offers."""
    checks = examine(loaded)
    if json:
        print_json([asdict(check) for check in checks])
    else:
        print(table([(check.state, check.name, check.detail) for check in checks]))
    return int(any(check.state == "fail" for check in checks))


command = configured(doctor, "server")


def examine(loaded: Loaded) -> list[Check]:
    """All checks, most basic first."""
    machine = Machine.detect()
    flags = [flag for flag in FLAGS if flag in machine.cpu_flags]
    memory = (
        f"{show_bytes(machine.available_bytes)} of {show_bytes(machine.memory_bytes)} available"
    )
    return [
        _python(),
        _torch(machine),
        Check("CPU", "ok", f"{machine.cpu_name}: {' '.join(flags) or 'no vector sets known'}"),
        Check(
            "cores", "ok", f"{machine.physical_cores} physical, {machine.logical_cpus} logical, for this process"
        ),
        Check("memory", "ok" if machine.available_bytes > 1 << 30 else "note", memory),
        _gpu(machine),
        Check(
            "compiler",
            "ok" if machine.compiler else "note",
            machine.compiler or "none: install g++ or clang++ for the native kernels",
        ),
        _native(machine),
        *_cache(),
        _port(loaded.config.server.host, loaded.config.server.port),
    ]  # fmt: skip


def _python() -> Check:
    return Check("Python", "ok", f"{platform.python_version()} at {sys.executable}")


def _torch(machine: Machine) -> Check:
    if machine.torch_version is None:
        return Check("torch", "fail", "not installed; install nonet with its dependencies")
    build = f"CUDA {machine.torch_cuda}" if machine.torch_cuda else "CPU only"
    return Check("torch", "ok", f"{machine.torch_version}, {build}")


def _gpu(machine: Machine) -> Check:
    if not machine.nvidia_driver:
        return Check("GPU", "note", "no NVIDIA driver")
    free = "" if machine.gpu_free_bytes is None else f", {show_bytes(machine.gpu_free_bytes)} free"
    if machine.torch_cuda is None:
        return Check("GPU", "note", f"{machine.gpu_name}{free}, but torch is built without CUDA")
    return Check("GPU", "ok", f"{machine.gpu_name}{free}")


def _native(machine: Machine) -> Check:
    """Builds them if need be, in a process of its own because they need torch."""
    if machine.native_missing is not None:
        return Check("native kernels", "note", machine.native_missing)
    answer = subprocess.run(
        [sys.executable, "-c", NATIVE], capture_output=True, text=True, timeout=600, check=False
    )
    lines = (answer.stdout or answer.stderr).strip().splitlines() or ["no answer"]
    return Check("native kernels", "fail" if answer.returncode else "ok", lines[-1])


def _cache() -> list[Check]:
    from nonet.weights.packaged import cache_directory

    folder = Path(cache_directory())
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = show_bytes(shutil.disk_usage(existing).free)
    return [Check("cache", "ok", f"{folder}, {free} free on disk")]


def _port(host: str, port: int) -> Check:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            detail = f"{host}:{port} cannot be used: {error.strerror}; give another --port"
            return Check("port", "note", detail)
    return Check("port", "ok", f"{host}:{port} is free")
