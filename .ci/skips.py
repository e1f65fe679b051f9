"""Prints every skipped test with its reason and fails for a reason that allowed_skips.txt does not list.

Usage: python .ci/skips.py JUNIT_XML ALLOWED. A line of ALLOWED is a reason as pytest prints it; # begins a comment.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from xml.etree import ElementTree


def main() -> int:
    report, allowed = Path(sys.argv[1]), read_allowed(Path(sys.argv[2]))
    if not report.exists():
        print(f"{report} is missing: the tests did not run to their end")
        return 1
    skips = read_skips(report)
    refused = [(test, reason) for test, reason in skips if reason not in allowed]
    for test, reason in skips:
        print(f"{'skip' if reason in allowed else 'SKIP NOT ALLOWED'}  {test}: {reason}")
    print(f"{len(skips)} skipped, {len(refused)} for a reason that is not allowed")
    return 1 if refused else 0


def read_allowed(file: Path) -> frozenset[str]:
    lines = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return frozenset(line for line in lines if line)


def read_skips(report: Path) -> list[tuple[str, str]]:
    """(test or module, reason) of each skip; expected failures are not skips."""
    found = []
    for case in ElementTree.parse(report).iter("testcase"):
        name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
        for skip in case.iter("skipped"):
            reason = skip.get("message") or ""
            if reason == "collection skipped":  # a whole module: its text is (file, line, reason)
                reason = ast.literal_eval(skip.text or "")[2]
            elif skip.get("type") != "pytest.skip":
                continue
            found.append((name, reason.removeprefix("Skipped: ")))
    return found


if __name__ == "__main__":
    sys.exit(main())
