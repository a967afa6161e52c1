"""Command line of the benchmarks: `python -m tests.benchmarks --peer-python PYTHON`."""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.benchmarks import report
from tests.benchmarks.run import Options, Result, probe, run_workload
from tests.benchmarks.systems import SYSTEMS
from tests.benchmarks.workloads import WORKLOADS
from tests.benchmarks.workloads.base import Workload


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the tables; 1 when some system computed something wrong, else 0."""
    parsed = _parser().parse_args(arguments)
    options = Options(
        peer_python=parsed.peer_python,
        rounds=parsed.rounds,
        starts=parsed.starts,
        seconds=parsed.seconds,
        threads=parsed.threads,
        limit=parsed.limit,
        cache=parsed.cache.resolve() if parsed.cache else None,
    )
    described = report.machine()
    print(", ".join(f"{key} {value}" for key, value in described.items()))
    workloads = [WORKLOADS[name] for name in parsed.workloads]
    used = [name for name in parsed.systems if any(name in w.builds for w in workloads)]
    found = probe([SYSTEMS[name] for name in used], options)
    for name, versions in found.items():
        print(f"{name}: {versions if isinstance(versions, str) else _joined(versions)}")
    unavailable = {name: reason for name, reason in found.items() if isinstance(reason, str)}
    measured: list[tuple[Workload, list[Result]]] = []
    for workload in workloads:
        systems = [name for name in parsed.systems if name in workload.builds]
        measured.append((workload, run_workload(workload, systems, unavailable, options, _progress)))
        _progress("")
        print("\n" + report.table(*measured[-1]), flush=True)
        if parsed.json:
            content = {
                "machine": described,
                "versions": found,
                "options": {k: str(v) for k, v in vars(parsed).items()},
                "measured": [report.as_json(*pair) for pair in measured],
            }
            parsed.json.write_text(json.dumps(content, indent=1) + "\n")
    print("\n" + report.summary(measured))
    return int(any(r.error is not None and not r.is_right for _, results in measured for r in results))


def _joined(versions: dict[str, str]) -> str:
    return ", ".join(f"{package} {version}" for package, version in versions.items())


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Time symgrad and its peers.")
    parser.add_argument("--peer-python", default=sys.executable, help="Python that has the peers installed")
    parser.add_argument("--workloads", type=_names(WORKLOADS), default=list(WORKLOADS), help="comma-separated")
    parser.add_argument("--systems", type=_names(SYSTEMS), default=list(SYSTEMS), help="comma-separated")
    parser.add_argument("--rounds", type=int, default=5, help="blocks of steps per system, in turn")
    parser.add_argument("--starts", type=int, default=1, help="processes started per system for the first result")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a block")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=120, help="seconds to the first result, and for a block")
    parser.add_argument("--cache", type=Path, help="folder for compilation caches that are kept; without it none is")
    parser.add_argument("--json", type=Path, help="write every number, the machine and the versions to this file")
    return parser


def _names(table: Mapping[str, object]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = [n for n in names if n not in table]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(table)}")
        return names

    return parse


if __name__ == "__main__":
    sys.exit(main())
