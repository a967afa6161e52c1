"""The table, the summary and the JSON of a benchmark run."""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.benchmarks.run import Result
from tests.benchmarks.workloads.base import Workload

OURS = "symgrad"
COLUMNS = ("system", "import", "first", "ours/its", "step", "blocks", "least", "ours/its", "peak MB", "error")
# A system without modules to import, NumPy, takes less than this.
NO_IMPORT_SECONDS = 1e-5


def machine() -> dict[str, Any]:
    """The machine and its load now."""
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return {
        "cpu": _proc_value("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "flags": _vector_flags(),
        "cores": len(affinity),
        "memory": _proc_value("/proc/meminfo", "MemTotal"),
        "os": platform.platform(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def _proc_value(path: str, key: str) -> str:
    if not Path(path).exists():
        return ""
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _vector_flags() -> list[str]:
    flags = _proc_value("/proc/cpuinfo", "flags") or _proc_value("/proc/cpuinfo", "Features")
    wanted = ("avx2", "fma", "avx512f", "avx512_vnni", "amx_tile", "asimd", "sve")
    return [flag for flag in wanted if flag in flags.split()]


def fastest_peer(results: Sequence[Result]) -> Result | None:
    """The peer with right results and the smallest step time."""
    peers = [r for r in results if r.system != OURS and r.is_right and not r.problem and r.blocks]
    return min(peers, key=lambda r: statistics.median(r.blocks), default=None)


def table(workload: Workload, results: Sequence[Result]) -> str:
    """The results of a workload as aligned text; the fastest peer has a star."""
    ours = next((r for r in results if r.system == OURS), None)
    best = fastest_peer(results)
    rows: list[Sequence[str]] = [COLUMNS]
    notes: list[str] = []
    for result in results:
        rows.append(_row(result, ours, "*" if result is best else ""))
        if result.problem:
            notes.append(f"  {result.system}: {result.problem}")
        elif not result.is_right:
            notes.append(f"  {result.system}: WRONG, error {result.error:.2g} above {workload.tolerance:g}")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  " + "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    head = f"{workload.name}: {workload.summary} (tolerance {workload.tolerance:g})"
    return "\n".join([head, *lines, *notes])


def _row(result: Result, ours: Result | None, mark: str) -> tuple[str, ...]:
    step, start = result.step_seconds, result.start_seconds
    ours_right = ours is not None and ours.is_right and not ours.problem and result is not ours
    return (
        result.system + mark,
        duration(statistics.median(result.imports)) if max(result.imports, default=0) > NO_IMPORT_SECONDS else "-",
        duration(statistics.median(result.firsts)) if result.firsts else "-",
        _ratio(ours.start_seconds, start) if ours is not None and ours_right else "-",
        duration(step) if step is not None else "-",
        f"{duration(min(result.blocks))}..{duration(max(result.blocks))}" if result.blocks else "-",
        duration(result.least) if result.least is not None else "-",
        _ratio(ours.step_seconds, step) if ours is not None and ours_right else "-",
        f"{result.peak_bytes / 1e6:.0f}" if result.peak_bytes else "-",
        f"{result.error:.1e}" if result.error is not None else "-",
    )


def _ratio(ours: float | None, its: float | None) -> str:
    return "-" if ours is None or its is None else f"{ours / its:.2f}"


def duration(seconds: float) -> str:
    """A time with three digits and a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}" if seconds < 1000 * scale else f"{seconds / scale:.0f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def summary(measured: Sequence[tuple[Workload, Sequence[Result]]]) -> str:
    """One line per workload: our step time, the fastest peer and the ratio (below 1: ours is faster)."""
    lines = ["summary: step time of ours and of the fastest peer"]
    for workload, results in measured:
        ours = next((r for r in results if r.system == OURS), None)
        best = fastest_peer(results)
        our_step = ours.step_seconds if ours is not None and ours.is_right and not ours.problem else None
        best_step = best.step_seconds if best is not None else None
        lines.append(
            f"  {workload.name:<24}{duration(our_step) if our_step is not None else '-':>10}"
            f"{duration(best_step) if best_step is not None else '-':>10}  "
            f"{best.system if best is not None else '-':<14}{_ratio(our_step, best_step):>6}"
        )
    return "\n".join(lines)


def as_json(workload: Workload, results: Sequence[Result]) -> dict[str, Any]:
    """The results of a workload with every measured number."""
    return {
        "workload": workload.name,
        "summary": workload.summary,
        "tolerance": workload.tolerance,
        "results": [asdict(r) | {"step_seconds": r.step_seconds, "start_seconds": r.start_seconds} for r in results],
    }
