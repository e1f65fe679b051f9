"""A batch through `kill -9` of its server at random points: nothing lost, nothing billed twice, soon resumed.

    python benchmarks/batch_kills.py --out benchmarks/<date>-<machine>-batch-kills

The engine is the scripted one of the tests. Resuming is timed from the start of the new process to the next line that
is settled, so it holds the start of Python, the server and the engine process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from nonet.bench.provenance import device_facts, library_versions, source_commit
from nonet.config.machine import Machine

sys.path.insert(0, str(Path(__file__).parents[1]))  # the scripted engine is the tests'


def main() -> int:
    from tests.system.batch_kills import dumped, run_kills

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder of results.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = dumped(run_kills(Path(folder), args.lines, args.kills, args.seed))
    print(json.dumps({name: value for name, value in result.items() if name != "kills"}, indent=1))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        facts = {
            "command": sys.argv,
            "commit": source_commit(),
            "device": device_facts(Machine.detect()),
            "libraries": library_versions(),
            "load_average": os.getloadavg(),
        }
        (args.out / "results.json").write_text(json.dumps({**facts, **result}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
