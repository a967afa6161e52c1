"""The process that runs one workload on one system, told what to do by lines of JSON.

Started as `python -m tests.benchmarks.worker SYSTEM WORKLOAD THREADS FILE`. It imports the system, makes the inputs,
builds, runs the compared steps, saves their outputs to FILE and prints one line of JSON. Then for every line
`{"seconds": s}` it runs steps for that long and prints their times; `{}` ends it. With SYSTEM alone it imports the
system and prints the versions.
"""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import sys
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

import numpy as np

from tests.benchmarks.systems import SYSTEMS, System
from tests.benchmarks.workloads.base import Step

LEAST_STEPS = 3
WARM_SHARE = 0.2


def main(arguments: list[str]) -> None:
    # What a system prints must not mix with the answers: they keep the real standard output for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    system = SYSTEMS[arguments[0]]
    import_seconds = _import_system(system)
    if len(arguments) == 1:
        _answer(answers, {"versions": _versions(system)})
        return
    name, threads, file = arguments[1], int(arguments[2]), Path(arguments[3])
    _limit_torch(system, threads)
    first = _first_result(system.name, name, threads, file)
    _answer(answers, {"import_seconds": import_seconds, "first_seconds": first[1], "peak_bytes": _peak_bytes()})
    for line in sys.stdin:
        request = json.loads(line)
        if not request:
            return
        _answer(answers, _run_block(first[0], request["seconds"]) | {"peak_bytes": _peak_bytes()})


def _import_system(system: System) -> float:
    start = perf_counter()
    for module in system.modules:
        importlib.import_module(module)
    return perf_counter() - start


def _versions(system: System) -> dict[str, str]:
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    for package in system.packages:
        # A system that runs from its source tree has no installed distribution.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _limit_torch(system: System, threads: int) -> None:
    if "torch" in system.modules:
        import torch

        torch.set_num_threads(threads)


def _first_result(system: str, name: str, threads: int, file: Path) -> tuple[Step, float]:
    """The step and the time from made inputs to the first outputs as NumPy arrays, building included."""
    from tests.benchmarks.workloads import WORKLOADS

    workload = WORKLOADS[name]
    inputs = workload.make_inputs()
    start = perf_counter()
    step = workload.builds[system](inputs, threads)
    outputs = [np.asarray(v) for v in step()]
    seconds = perf_counter() - start
    # Copies, because a system may reuse the memory of its outputs in the next step.
    saved = [[v.copy() for v in outputs]]
    for _ in range(workload.compared_steps - 1):
        saved.append([np.array(v) for v in step()])
    names = [f"{i}.{output}" for i in range(len(saved)) for output in workload.outputs]
    np.savez(file, **dict(zip(names, (v for row in saved for v in row), strict=True)))  # pyright: ignore[reportArgumentType]
    return step, seconds


def _run_block(step: Step, seconds: float) -> dict[str, Any]:
    """Times of single steps for about that many seconds, after a warm-up that is not counted."""
    gc.collect()
    end = perf_counter() + seconds * WARM_SHARE
    step()
    while perf_counter() < end:
        step()
    times: list[float] = []
    start = perf_counter()
    end = start + seconds
    while start < end or len(times) < LEAST_STEPS:
        step()
        stop = perf_counter()
        times.append(stop - start)
        start = stop
    return {"steps": len(times), "median": statistics.median(times), "least": min(times)}


def _peak_bytes() -> int:
    """The largest resident size of this process so far.

    Linux gives `ru_maxrss` of a new process the size of the one that started it, so the process's own mark is read.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _answer(stream: TextIO, message: dict[str, Any]) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
