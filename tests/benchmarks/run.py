"""Run workloads on systems, each in a process of its own, in turn, and check what they computed."""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np

from tests.benchmarks.systems import SYSTEMS, System, environment
from tests.benchmarks.workloads.base import Array, Workload

ROOT = Path(__file__).resolve().parents[2]
# Threads of some systems spin for up to 0.2 s after their work; the next system waits until they sleep.
SETTLE_SECONDS = 0.25
END_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Options:
    """How to run. `limit` bounds, in seconds, the time to the first result and the time of one block."""

    peer_python: str = sys.executable
    rounds: int = 5
    starts: int = 1
    seconds: float = 0.5
    threads: int = 2
    limit: float = 120
    cache: Path | None = None


@dataclass(slots=True)
class Result:
    """What one system did on one workload. Times in seconds; `problem` is empty when all went well."""

    system: str
    problem: str = ""
    imports: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    blocks: list[float] = field(default_factory=list)
    least: float | None = None
    steps: int = 0
    peak_bytes: int = 0
    error: float | None = None
    is_right: bool = False

    @property
    def step_seconds(self) -> float | None:
        return statistics.median(self.blocks) if self.blocks else None

    @property
    def start_seconds(self) -> float | None:
        """Import and first result together."""
        return statistics.median(map(sum, zip(self.imports, self.firsts, strict=True))) if self.firsts else None


class WorkerError(Exception):
    """A worker gave no answer; the text says why."""


class Worker:
    """A process that runs one workload on one system. Use as a context manager: leaving it ends the process."""

    def __init__(self, system: System, arguments: Sequence[str], options: Options, folder: Path) -> None:
        self.limit = options.limit
        caches = options.cache or folder / "caches"
        caches.mkdir(parents=True, exist_ok=True)
        self._log = folder / "log"
        python = options.peer_python if system.is_peer else sys.executable
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [python, "-m", "tests.benchmarks.worker", system.name, *arguments],
                cwd=ROOT,
                env=environment(options.threads, caches, cached=options.cache is not None),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # A group of its own, so that compilers the system starts end with it.
                start_new_session=True,
            )
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError, WorkerError):
            self._send({})
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            # What could not be written to a process that died is dropped.
            with contextlib.suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()

    def answer(self) -> dict[str, Any]:
        """The next answer; WorkerError when there is none within the limit."""
        try:
            line = self._answers.get(timeout=self.limit)
        except queue.Empty:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            raise WorkerError(f"no result in {self.limit:g} s") from None
        if not line:
            raise WorkerError(self._last_words())
        return json.loads(line)

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        try:
            self._send(request)
        except BrokenPipeError:
            raise WorkerError(self._last_words()) from None
        return self.answer()

    def _send(self, request: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def _last_words(self) -> str:
        code = self._process.wait()
        lines = self._log.read_text(errors="replace").split("\n")
        errors = [line for line in lines if line[:1].strip() and "Error" in line.split(":")[0]]
        text = [line.strip() for line in lines if line.strip()]
        last = (errors or text or [""])[-1]
        died = f"signal {-code}" if code < 0 else f"exit {code}"
        return f"{died}: {last}" if last else died


def probe(systems: Sequence[System], options: Options) -> dict[str, dict[str, str] | str]:
    """The versions of every system, or why it cannot run. Importing once also warms the file cache for the timing."""
    found: dict[str, dict[str, str] | str] = {}
    for system in systems:
        with _folder() as folder, Worker(system, (), options, folder) as worker:
            try:
                found[system.name] = worker.answer()["versions"]
            except WorkerError as failure:
                missing = any(f"No module named '{m}'" in str(failure) for m in system.modules)
                found[system.name] = "not installed" if missing else str(failure)
    return found


def run_workload(
    workload: Workload,
    systems: Sequence[str],
    unavailable: Mapping[str, str],
    options: Options,
    report: Callable[[str], None],
) -> list[Result]:
    """Start every system on the workload, check the first results, then time blocks of steps in turn."""
    reference = workload.reference(workload.make_inputs())
    results: list[Result] = []
    with contextlib.ExitStack() as stack:
        live: list[tuple[Result, Worker]] = []
        for name in systems:
            result = Result(name, problem=unavailable.get(name, ""))
            results.append(result)
            if result.problem:
                continue
            report(f"{workload.name}: starting {name}")
            worker = _start(result, workload, reference, options, stack)
            if worker is not None:
                live.append((result, worker))
        for number in range(options.rounds):
            report(f"{workload.name}: round {number + 1} of {options.rounds}")
            for result, worker in live:
                if not result.problem:
                    _time_block(result, worker, options)
    return results


def _start(
    result: Result,
    workload: Workload,
    reference: Sequence[tuple[Array, ...]],
    options: Options,
    stack: contextlib.ExitStack,
) -> Worker | None:
    """Start the system as often as asked, keep the last process running; None when it fails."""
    for remaining in reversed(range(options.starts)):
        with contextlib.ExitStack() as attempt:
            folder = attempt.enter_context(_folder())
            file = folder / "outputs.npz"
            arguments = (workload.name, str(options.threads), str(file))
            worker = attempt.enter_context(Worker(SYSTEMS[result.system], arguments, options, folder))
            try:
                ready = worker.answer()
            except WorkerError as failure:
                result.problem = str(failure)
                return None
            result.imports.append(ready["import_seconds"])
            result.firsts.append(ready["first_seconds"])
            result.peak_bytes = max(result.peak_bytes, ready["peak_bytes"])
            if remaining:
                continue
            _compare(result, workload, reference, file)
            file.unlink()
            stack.push(attempt.pop_all())
            return worker
    return None


def _compare(result: Result, workload: Workload, reference: Sequence[tuple[Array, ...]], file: Path) -> None:
    """Record the largest error relative to the largest magnitude of each output."""
    result.error = 0.0
    with np.load(file) as saved:
        for i, row in enumerate(reference):
            for name, expected in zip(workload.outputs, row, strict=True):
                got = saved[f"{i}.{name}"]
                if got.shape != np.shape(expected):
                    result.error = float("inf")
                    return
                # NaN must stay visible: max would drop it depending on the order of its arguments.
                error = float(np.max(np.abs(got - expected)) / np.max(np.abs(expected)))
                result.error = error if np.isnan(error) else max(result.error, error)
                if np.isnan(error):
                    return
    result.is_right = result.error <= workload.tolerance


def _time_block(result: Result, worker: Worker, options: Options) -> None:
    sleep(SETTLE_SECONDS)
    try:
        block = worker.ask({"seconds": options.seconds})
    except WorkerError as failure:
        result.problem = str(failure)
        return
    result.blocks.append(block["median"])
    result.least = block["least"] if result.least is None else min(result.least, block["least"])
    result.steps += block["steps"]
    result.peak_bytes = max(result.peak_bytes, block["peak_bytes"])


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    # Compilers that were killed a moment ago may still write into the folder.
    with tempfile.TemporaryDirectory(prefix="symgrad-benchmark-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
