"""Scheduling and block bookkeeping import and run where torch does not exist."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "numpy"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, NoTorch())
import pkgutil, importlib
import nonet.scheduler, nonet.kv
for package in (nonet.scheduler, nonet.kv):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.startswith(("nonet.kv.prune.", "nonet.kv.storage")):
            importlib.import_module(module.name)
assert "torch" not in sys.modules
print("imported", "nonet.scheduler.scheduler" in sys.modules, "nonet.kv.cache" in sys.modules)
"""


def test_imports_without_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["imported", "True", "True"]
