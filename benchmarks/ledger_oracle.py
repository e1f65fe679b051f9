"""The ledger against books kept apart, over many simulated requests: equal to the last pico, or it fails.

python benchmarks/ledger_oracle.py --out benchmarks/<date>-<machine>-ledger-oracle
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

from nonet.bench.provenance import library_versions, source_commit

sys.path.insert(0, str(Path(__file__).parents[1]))  # the scripted engine is the tests'


def main() -> int:
    from tests.ledger_oracle import compare, run

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder of results.json")
    args = parser.parse_args()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        books, told = asyncio.run(run(Path(folder), args.requests, args.seed))
    compare(books, told)
    result = {
        "requests": books.rows,
        "kinds": dict(books.kinds),
        "output_tokens": books.output_tokens,
        "cost": str(sum(books.cost.values())),
        "saved": {name: str(money) for name, money in books.saved.items()},
        "difference": "0",
        "seconds": round(time.monotonic() - began_s, 1),
    }
    print(json.dumps(result, indent=1))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        facts = {"command": sys.argv, "commit": source_commit(), "libraries": library_versions()}
        (args.out / "results.json").write_text(json.dumps({**facts, **result}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
