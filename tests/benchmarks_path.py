"""The scripts of `benchmarks/` import each other by bare names, as when they are run; this makes those importable."""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "benchmarks"

if str(FOLDER) not in sys.path:
    sys.path.append(str(FOLDER))
