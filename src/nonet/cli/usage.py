"""`nonet usage report | export`: the ledger of a server, read from its folder; the server may be running."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from nonet.cli.flags import JsonFlag
from nonet.cli.terminal import print_json, table

__all__ = ["export", "report"]

DataDir = Annotated[Path, Parameter(help="the data_dir of the server")]
Since = Annotated[str | None, Parameter(help="first day or Unix time; UTC")]
Until = Annotated[str | None, Parameter(help="end, itself left out")]
Tenant = Annotated[str | None, Parameter(help="one tenant only")]


def report(
    data_dir: DataDir,
    *,
    by: Annotated[
        str, Parameter(help="split by: day, tenant, key, model, route, tier, cache, finish")
    ] = "model",
    since: Since = None,
    until: Until = None,
    tenant: Tenant = None,
    json: JsonFlag = False,
) -> int:
    """Requests, tokens and cost, and what each technique saved."""
    from nonet.telemetry.usage import savings_report, span_of, usage_report

    span = span_of(since, until, tenant)
    names = [name for name in by.split(",") if name]
    with _open(data_dir) as ledger:
        lines = usage_report(ledger, span, names)
        saved = savings_report(ledger, span)
    if json:
        print_json({"usage": lines, "savings": saved})
        return 0
    for rows in (lines, saved):
        if rows:
            shown = [name for name in rows[0] if name != "cost_picos"]
            print(table([shown, *[[str(row[name]) for name in shown] for row in rows]]))
            print()
    if not lines:
        print("nothing was used in that time")
    return 0


def export(
    data_dir: DataDir, *, since: Since = None, until: Until = None, tenant: Tenant = None
) -> int:
    """Every row of the ledger as JSON lines, oldest first."""
    from nonet.telemetry.prices import as_money
    from nonet.telemetry.usage import export_rows, span_of

    with _open(data_dir) as ledger:
        for row in export_rows(ledger, span_of(since, until, tenant)):
            plain = {**row._asdict(), "cost": as_money(row.cost_picos)}
            plain["savings"] = msgspec.json.decode(row.savings) if row.savings else []
            sys.stdout.write(msgspec.json.encode(plain).decode() + "\n")
    return 0


def _open(data_dir: Path) -> AbstractContextManager[sqlite3.Connection]:
    from nonet.gateway.assemble import DATABASE
    from nonet.store.database import open_for_reading

    return closing(open_for_reading(data_dir.expanduser() / DATABASE))
