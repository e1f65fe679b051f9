"""Machine facts from a made-up file system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nonet.config.machine import Machine

GIB = 2**30


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    write(
        tmp_path, "proc/meminfo", "MemTotal: 16777216 kB\nMemFree: 1 kB\nMemAvailable: 8388608 kB\n"
    )
    write(tmp_path, "proc/cpuinfo", "model name\t: Test CPU\nflags\t\t: avx2 avx512_bf16\n")
    for cpu in range(4):
        write(
            tmp_path,
            f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list",
            f"{cpu % 2},{cpu % 2 + 2}\n",
        )
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_siblings_count_once(root: Path) -> None:
    machine = Machine.detect(root)
    assert (machine.physical_cores, machine.logical_cpus) == (2, 4)
    assert machine.cpu_name == "Test CPU"
    assert machine.has_bfloat16
    assert (machine.memory_bytes, machine.available_bytes) == (16 * GIB, 8 * GIB)
    assert not machine.has_cuda


def test_affinity_is_respected(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2})
    assert Machine.detect(root).physical_cores == 1


@pytest.mark.parametrize(
    ("said", "wanted"),
    [("3", 3), (" 2,4", 2), ("", None), ("many", None), ("0", None), (None, None)],
)
def test_openmp_count(
    root: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, wanted: int | None
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert Machine.detect(root).wanted_threads == wanted


def test_version_2_limits_of_every_level(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/outer/inner\n")
    write(root, "sys/fs/cgroup/outer/cpu.max", "100000 100000\n")
    write(root, "sys/fs/cgroup/outer/inner/cpu.max", "max 100000\n")
    write(root, "sys/fs/cgroup/outer/inner/memory.max", f"{2 * GIB}\n")
    write(root, "sys/fs/cgroup/outer/inner/memory.current", f"{GIB}\n")
    write(root, "sys/fs/cgroup/outer/inner/memory.stat", f"anon 5\ninactive_file {GIB // 2}\n")
    machine = Machine.detect(root)
    assert (machine.physical_cores, machine.logical_cpus) == (1, 1)
    assert machine.memory_bytes == 2 * GIB
    assert machine.available_bytes == 2 * GIB - GIB // 2


def test_version_1_limits(root: Path) -> None:
    write(root, "proc/self/cgroup", "3:cpu,cpuacct:/job\n4:memory:/job\n")
    write(root, "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "150000")
    write(root, "sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000")
    write(root, "sys/fs/cgroup/memory/job/memory.limit_in_bytes", str(GIB))
    write(root, "sys/fs/cgroup/memory/job/memory.usage_in_bytes", "0")
    write(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    write(root, "sys/fs/cgroup/memory/memory.usage_in_bytes", "0")
    machine = Machine.detect(root)
    assert machine.physical_cores == 1
    assert machine.memory_bytes == machine.available_bytes == GIB


def test_a_driver_without_visible_devices_is_none(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(root, "proc/driver/nvidia/version", "NVRM")
    monkeypatch.setenv("PATH", "")
    assert Machine.detect(root).nvidia_driver
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not Machine.detect(root).nvidia_driver


def test_this_machine() -> None:
    machine = Machine.detect()
    assert machine.physical_cores >= 1
    assert 0 < machine.available_bytes <= machine.memory_bytes
    assert machine.torch_version is not None
