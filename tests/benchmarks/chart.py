"""The table and the picture of the README from the JSON of benchmark runs: `python -m tests.benchmarks.chart`."""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

from tests.benchmarks.report import OURS, duration, fastest_peer
from tests.benchmarks.run import Result
from tests.benchmarks.workloads import WORKLOADS

HEAD = "| workload | symgrad | fastest peer | ratio | first result, symgrad | first result, JAX |"
PICTURE = "step-times"
# Colors of Okabe and Ito, which people with any color vision tell apart, and a shape for each system.
MARKS = {
    "jax": ("s", "#E69F00"),
    "jax.jet": ("P", "#E69F00"),
    "torch": ("^", "#D55E00"),
    "torch.compile": ("D", "#CC79A7"),
    "pytensor": ("v", "#009E73"),
    "numpy": ("X", "#888888"),
}
TICKS = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16, 32)
# Slower systems are drawn at the edge, with a number.
LIMIT = 32
# Inches of a row, and the part of it over which the systems are spread.
ROW = 0.3
SPREAD = 0.4


@dataclass(frozen=True, slots=True)
class Theme:
    """Colors of a picture on a page of GitHub; its background is that of the page."""

    name: str
    page: str
    text: str
    grid: str
    ours: str


THEMES = (
    Theme("light", "#ffffff", "#1f2328", "#d1d9e0", "#0072B2"),
    Theme("dark", "#0d1117", "#f0f6fc", "#3d444d", "#56B4E9"),
)


def load(files: Sequence[Path]) -> dict[str, list[Result]]:
    """The results of workloads by name, in the order of the workloads; later files replace those of earlier ones."""
    known = {f.name for f in fields(Result)}
    found: dict[str, list[Result]] = {}
    for file in files:
        for entry in json.loads(file.read_text(encoding="utf-8"))["measured"]:
            rows: list[Mapping[str, Any]] = entry["results"]
            found[entry["workload"]] = [Result(**{k: v for k, v in row.items() if k in known}) for row in rows]
    return {name: found[name] for name in WORKLOADS if name in found}


def table(measured: Mapping[str, Sequence[Result]]) -> str:
    """The step time of ours and of the fastest peer, and times from import to the first result, as Markdown."""
    lines = [HEAD, "|---" * HEAD.count(" | ") + "|---|"]
    for name, results in measured.items():
        ours, best = _named(results, OURS), fastest_peer(results)
        jax = _named(results, "jax")
        ratio = "-" if ours is None or best is None else f"{_step(ours) / _step(best):.2f}"
        lines.append(
            f"| `{name}` | {_duration(ours and ours.step_seconds)} "
            f"| {'-' if best is None else f'{_duration(best.step_seconds)} ({best.system})'} | {ratio} "
            f"| {_duration(ours and ours.start_seconds)} | {_duration(jax and jax.start_seconds)} |"
        )
    return "\n".join(lines) + "\n"


def _named(results: Sequence[Result], system: str) -> Result | None:
    return next((r for r in results if r.system == system and r.is_right and not r.problem and r.blocks), None)


def _step(result: Result) -> float:
    return statistics.median(result.blocks)


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds).replace("us", "µs")


def with_table(page: str, text: str) -> str:
    """A page with its table of benchmarks replaced. ValueError where it has none."""
    start = page.find(HEAD)
    if start < 0:
        raise ValueError(f"the page has no table that begins with {HEAD}")
    return page[:start] + text + page[page.index("\n\n", start) + 1 :]


def draw(measured: Mapping[str, Sequence[Result]], folder: Path) -> list[Path]:
    """Step times relative to the fastest peer as pictures in a folder, one per theme."""
    return [_draw(_relative(measured), theme, folder / f"{PICTURE}-{theme.name}.svg") for theme in THEMES]


def _relative(measured: Mapping[str, Sequence[Result]]) -> list[tuple[str, dict[str, float]]]:
    """For each workload the step times of all systems by that of the fastest peer, our best first."""
    rows: list[tuple[str, dict[str, float]]] = []
    for name, results in measured.items():
        best = fastest_peer(results)
        if best is not None and _named(results, OURS) is not None:
            right = [r for r in results if _named(results, r.system) is not None]
            rows.append((name, {r.system: _step(r) / _step(best) for r in right}))
    return sorted(rows, key=lambda row: row[1][OURS])


def _draw(rows: Sequence[tuple[str, Mapping[str, float]]], theme: Theme, path: Path) -> Path:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit(
            "the picture is drawn by matplotlib, which is not installed; it comes with the extra 'examples': "
            "pip install -e '.[examples]'"
        ) from None
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": PICTURE,
        "font.family": ["DejaVu Sans", "sans-serif"],
        "font.size": 9,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(8, 1.3 + ROW * len(rows)), layout="constrained")
        axes = figure.subplots()
        places = range(len(rows))
        ours = [times[OURS] for _, times in rows]
        axes.barh(places, [t - 1 for t in ours], left=1, height=0.62, color=theme.ours, label=OURS, zorder=2)
        for place, (system, (marker, color)) in enumerate(MARKS.items()):
            # Systems of equal speed stand one below the other.
            shift = SPREAD * (place / (len(MARKS) - 1) - 0.5)
            points = [(times[system], k + shift) for k, (_, times) in enumerate(rows) if system in times]
            if points:
                xs, ys = zip(*[(min(x, LIMIT), y) for x, y in points], strict=True)
                look = {"s": 30, "marker": marker, "color": color, "edgecolors": theme.page, "linewidths": 0.6}
                axes.scatter(xs, ys, label=system, zorder=4, clip_on=False, **look)
        for k, (_, times) in enumerate(rows):
            if slow := ", ".join(f"{times[s]:,.0f}×" for s in MARKS if times.get(s, 0) > LIMIT):
                axes.annotate(f"{slow}  ", (LIMIT, k), ha="right", va="center", color=theme.text)
            if k % 2:
                axes.axhspan(k - 0.5, k + 0.5, color=theme.grid, alpha=0.3, linewidth=0, zorder=0)
        axes.axvline(1, color=theme.text, linewidth=1, zorder=3)
        axes.set_xscale("log")
        axes.set_xticks(TICKS, [f"{Fraction(tick)}×" for tick in TICKS])
        axes.set_xlim(min([*ours, 1.0]) / 1.1, LIMIT * 1.1)
        axes.set_xticks([], minor=True)
        axes.set_yticks(places, [name for name, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        numbers = axes.secondary_yaxis("right")
        numbers.set_yticks(places, [f"{t:.2f}" for t in ours])
        axes.set_xlabel(
            "time of a step relative to the fastest peer (numbers: symgrad); left of the line symgrad is faster"
        )
        axes.grid(axis="x", color=theme.grid, linewidth=0.8, zorder=0)
        handles, labels = axes.get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda k: labels[k] != OURS)
        handles, labels = [handles[k] for k in order], [labels[k] for k in order]
        figure.legend(
            handles,
            labels,
            loc="outside upper center",
            ncols=7,
            frameon=False,
            labelcolor=theme.text,
            handletextpad=0.3,
        )
        for part in (axes, numbers):
            part.tick_params(colors=theme.text, which="both", length=0)
            for spine in part.spines.values():
                spine.set_visible(False)
        axes.xaxis.label.set_color(theme.text)
        figure.savefig(path, transparent=True, bbox_inches="tight", pad_inches=0.15, metadata={"Date": None})
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and write it to a page and the pictures to a folder where asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.chart", description="Table and picture of results."
    )
    parser.add_argument(
        "results", type=Path, nargs="+", help="JSON of runs; later files replace workloads of earlier ones"
    )
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help=f"write {PICTURE}-light.svg and -dark.svg there"
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="replace the table in this Markdown file")
    parsed = parser.parse_args(arguments)
    measured = load(parsed.results)
    text = table(measured)
    print(text, end="")
    if parsed.page is not None:
        parsed.page.write_text(with_table(parsed.page.read_text(encoding="utf-8"), text), encoding="utf-8")
    if parsed.pictures is not None:
        draw(measured, parsed.pictures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
