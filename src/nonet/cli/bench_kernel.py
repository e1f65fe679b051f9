"""`nonet bench kernel`: single operations of the kernels, against what this device can do."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter

from nonet.bench.device.kernels import KERNEL_BENCHES
from nonet.bench.provenance import device_facts, library_versions, source_commit
from nonet.cli.bench_flags import JsonFile
from nonet.cli.flags import ENGINE, configured
from nonet.cli.terminal import note, table
from nonet.config.load import Loaded
from nonet.config.machine import Machine
from nonet.config.resolved import Resolved
from nonet.core.catalogue import did_you_mean
from nonet.core.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from nonet.bench.device.ceilings import Ceilings
    from nonet.bench.device.kernels.problem import Measured

__all__ = ["command"]


def bench_kernel(
    loaded: Loaded,
    name: Annotated[str | None, Parameter(help="a kernel, or all; none lists them")] = None,
    *,
    weights: Annotated[
        str, Parameter(help="weight formats of linear, with commas")
    ] = "dense,fp8,int8,int4",
    rows: Annotated[
        tuple[int, ...],
        Parameter(help="rows of linear and logits; few to many when unset", consume_multiple=True),
    ] = (),
    json: JsonFile = None,
) -> int:
    """Time, bytes, operations and shares of the peak of single kernels, on the shapes of a model."""
    known = KERNEL_BENCHES.names()
    if name is None:
        print("\n".join([*known, "all"]))
        return 0
    if name not in (*known, "all"):
        raise UnknownNameError(
            f"no kernel benchmark {name!r}. {did_you_mean(name, [*known, 'all'])}"
        )
    if any(count < 1 for count in rows):
        raise ConfigError(f"--rows is {min(rows)}; each must be at least 1")
    import torch

    from nonet.bench.device.ceilings import measure_ceilings
    from nonet.bench.device.kernels.problem import Bench, measure
    from nonet.engine.assemble import make_ops
    from nonet.engine.prepare import resolve_config
    from nonet.kv.format import KV_FORMATS

    resolved, spec = resolve_config(loaded.config)
    ceilings = measure_ceilings(torch.device(resolved.device))
    has_format = resolved.kv_format != resolved.dtype
    found: list[Measured] = []
    for kernel in known if name == "all" else [name]:
        # Kernels remember which formats they were given, so each benchmark has its own.
        bench = Bench(
            ops=make_ops(resolved.kernels, resolved.dtype, resolved.device, resolved.threads),
            spec=spec,
            weight_formats=tuple(weights.split(",")),
            kv_format=KV_FORMATS.build(resolved.kv_format) if has_format else None,
            block_size=resolved.block_size,
            rows=rows,
        )
        for problem in KERNEL_BENCHES.load(kernel)(bench):
            found.append(measure(kernel, problem, bench, ceilings))
            note(" ".join([kernel, *_cells(found[-1])[1:3]]))
        bench.ops.close()
    print(table([HEADINGS, *(_cells(row) for row in found)]))
    if json is not None:
        write_result(json, resolved, ceilings, found)
    return 0


command = configured(bench_kernel, *ENGINE)


def write_result(file: Path, resolved: Resolved, ceilings: Ceilings, rows: list[Measured]) -> None:
    """All figures, with what is needed to judge them."""
    record = {
        "command": sys.argv,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": source_commit(),
        "device": device_facts(Machine.detect()),
        "libraries": library_versions(),
        "kernels": resolved.kernels,
        "dtype": resolved.dtype,
        "model": resolved.served_name,
        "ceilings": ceilings,
        "rows": rows,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    note(f"written to {file}")


HEADINGS = ("kernel", "case", "us", "GB/s", "bandwidth", "TFLOP/s", "compute", "others, us")


def _cells(row: Measured) -> tuple[str, ...]:
    case = " ".join(f"{key}={value}" for key, value in row.case.items())
    others = ", ".join(
        f"{name} {value if isinstance(value, str) else format(1e6 * value, '.1f')}"
        for name, value in row.rivals.items()
    )
    if row.seconds is None:
        return (row.kernel, case, "-", "", "", "", "", f"not run: {row.error}; {others}")
    return (
        row.kernel,
        case,
        f"{1e6 * row.seconds:.1f}",
        f"{row.num_bytes / row.seconds / 1e9:,.0f}",
        f"{row.bandwidth_share or 0:.0%}",
        f"{row.flops / row.seconds / 1e12:,.3g}",
        f"{row.compute_share or 0:.0%}",
        others,
    )
