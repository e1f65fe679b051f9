"""Facts about this machine that automatic choices rest on: cores, memory, CPU, driver, compiler."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

__all__ = ["Machine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What this process may use; limits of its control group and CPU affinity are already applied."""

    architecture: str  # "x86_64", "aarch64", ...
    cpu_name: str
    cpu_flags: frozenset[str]
    physical_cores: int
    logical_cpus: int
    wanted_threads: int | None = None  # what OMP_NUM_THREADS asks for
    memory_bytes: int
    available_bytes: int
    compiler: str | None  # a C++ compiler
    nvidia_driver: bool
    gpu_name: str | None = (
        None  # as nvidia-smi tells it; the engine may put in what the driver told torch
    )
    gpu_free_bytes: int | None = None
    has_triton: bool = False
    torch_version: str | None = None  # None: not installed
    torch_cuda: str | None = None  # CUDA version torch was built for

    @classmethod
    def detect(cls, root: Path = Path("/")) -> Machine:
        """Look at the machine; `root` stands for the file system, so that tests can make one up."""
        cpus = _allowed_cpus()
        quota = _cpu_quota(root)
        cores = _physical_cores(root, cpus)
        logical = len(cpus)
        if quota is not None:
            cores, logical = (max(1, min(n, int(quota))) for n in (cores, logical))
        total, available = _memory(root)
        limit = _memory_limit(root)
        if limit is not None:
            total, available = min(total, limit[0]), min(available, limit[1])
        name, flags = _cpu(root)
        torch_version, torch_cuda = _torch()
        driver = _nvidia_driver(root)
        gpu_name, gpu_free = _gpu() if driver else (None, None)
        return cls(
            architecture=platform.machine(),
            cpu_name=name,
            cpu_flags=flags,
            physical_cores=cores,
            logical_cpus=logical,
            wanted_threads=_wanted_threads(),
            memory_bytes=total,
            available_bytes=available,
            compiler=_compiler(),
            nvidia_driver=driver,
            gpu_name=gpu_name,
            gpu_free_bytes=gpu_free,
            has_triton=find_spec("triton") is not None,
            torch_version=torch_version,
            torch_cuda=torch_cuda,
        )

    @property
    def has_bfloat16(self) -> bool:
        """The CPU multiplies bfloat16 in hardware."""
        return bool({"avx512_bf16", "amx_bf16", "bf16"} & self.cpu_flags)

    @property
    def native_missing(self) -> str | None:
        """Why the native CPU kernels cannot be used here; None when they can."""
        if self.compiler is None:
            return "no C++ compiler was found (c++, g++ or clang++ on the PATH, or the one that CXX names)"
        return None

    @property
    def has_cuda(self) -> bool:
        return self.nvidia_driver and self.torch_cuda is not None


def _allowed_cpus() -> list[int]:
    if hasattr(os, "sched_getaffinity"):  # Linux; elsewhere a process may use every CPU
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _physical_cores(root: Path, cpus: list[int]) -> int:
    """CPUs that share a core count once."""
    siblings = set()
    for cpu in cpus:
        file = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        siblings.add(_text(file) or str(cpu))
    return max(1, len(siblings))


def _wanted_threads() -> int | None:
    """The outermost count of OMP_NUM_THREADS ("4" or "4,2"); what is no count is OpenMP's to complain about."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdigit() and int(first) > 0 else None


def _cpu(root: Path) -> tuple[str, frozenset[str]]:
    text = _text(root / "proc/cpuinfo") or ""
    name = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    return (
        name.group(1).strip() if name else platform.processor() or "unknown",
        frozenset(flags.group(1).split()) if flags else frozenset(),
    )


def _memory(root: Path) -> tuple[int, int]:
    """(total, available) bytes of the machine; where there is no /proc, all of it counts as available."""
    text = _text(root / "proc/meminfo") or ""
    found: dict[str, str] = dict(
        re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB", text, re.MULTILINE)
    )
    if "MemTotal" not in found:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return total, total
    return int(found["MemTotal"]) << 10, int(found.get("MemAvailable", found["MemTotal"])) << 10


def _cpu_quota(root: Path) -> float | None:
    """CPUs that the control groups grant, the tightest of the nested ones; None without a limit."""
    found = _nearest_limits(root, "cpu", "cpu.max", _quota_v2)
    for folder in _groups(root, "cpu"):
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota and period and int(quota) > 0:
            found.append(int(quota) / int(period))
    return min(found, default=None)


def _quota_v2(text: str) -> float | None:
    quota, _, period = text.partition(" ")
    return None if quota == "max" else int(quota) / int(period or 100_000)


def _memory_limit(root: Path) -> tuple[int, int] | None:
    """(limit, still free) in bytes of the tightest control group; page cache that can be dropped counts as free."""
    found: list[tuple[int, int]] = []
    names = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
    for folder in _groups(root, "memory"):
        for limit_name, used_name in names:
            limit, used = _text(folder / limit_name), _text(folder / used_name)
            if limit is None or used is None or limit == "max":
                continue
            if int(limit) >= 1 << 60:  # how version 1 writes "no limit"
                continue
            cached = re.search(
                r"^(?:total_)?inactive_file (\d+)$",
                _text(folder / "memory.stat") or "",
                re.MULTILINE,
            )
            busy = int(used) - (int(cached.group(1)) if cached else 0)
            found.append((int(limit), max(0, int(limit) - busy)))
    if not found:
        return None
    return min(total for total, _ in found), min(free for _, free in found)


def _nearest_limits(
    root: Path, controller: str, name: str, parse: Callable[[str], float | None]
) -> list[float]:
    texts = [_text(folder / name) for folder in _groups(root, controller)]
    return [value for text in texts if text and (value := parse(text)) is not None]


def _groups(root: Path, controller: str) -> list[Path]:
    """This process's control group and its parents, for version 2 and for version 1's hierarchy of a controller."""
    folders: list[Path] = []
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / (controllers and controller)
        inner = base / path.lstrip("/")
        while inner != base and base in inner.parents:
            folders.append(inner)
            inner = inner.parent
        folders.append(base)
    return folders


def _nvidia_driver(root: Path) -> bool:
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return (root / "proc/driver/nvidia/version").exists() or (root / "dev/nvidiactl").exists()


def _gpu() -> tuple[str | None, int | None]:
    """Name and free bytes of the first GPU, without starting CUDA in this process."""
    command = ["nvidia-smi", "--query-gpu=name,memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None, None
    name, _, mebibytes = answer.stdout.partition("\n")[0].rpartition(",")
    return name.strip(), int(mebibytes) << 20 if mebibytes.strip().isdigit() else None


def _compiler() -> str | None:
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


def _torch() -> tuple[str | None, str | None]:
    """torch's version and CUDA version, from its files: importing it would take seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None, None
    text = _text(Path(spec.origin).parent / "version.py") or ""
    version = re.search(r"^__version__.*?=\s*'([^']+)'", text, re.MULTILINE)
    cuda = re.search(r"^cuda.*?=\s*'([^']+)'", text, re.MULTILINE)
    return (version.group(1) if version else "unknown", cuda.group(1) if cuda else None)


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
