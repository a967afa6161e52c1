"""The first ten derivatives of sin(tanh(x²)): how large they get, what they cost, how exact they are.

    python examples/higher_order.py [--points 1001] [--out higher_order.png]

Every derivative is a graph of ordinary nodes, compiled to one kernel. The values are checked against 50 digits, and
drawn if matplotlib is installed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

import symgrad as sg

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

ORDERS = range(1, 11)
TOLERANCE = 1e-13

# The derivatives of order 1 to 10 at two points, to 50 digits, from truncated power series in 90-digit arithmetic.
REFERENCE = {
    0.5: (
        "0.91196203334340477871633379665874449571395797492724",
        "1.1629512107524312076947169099766039113742701659819",
        "-5.9525138694200212559814382428752692658147111861074",
        "-24.710558042641176360452584421649663888784842256420",
        "35.003918118641385917745041066765994987377042695297",
        "1271.4325897414405455007655742390490159482298186987",
        "5034.4784664014060480387074957819107341177240983902",
        "-67302.869485088032510105443617758412244047783334926",
        "-1005364.4085944538228587185710245094426663903434443",
        "-120537.61082935748038918208112210713506777026281528",
    ),
    1.25: (
        "0.24558175716166229923550306754034397384585231166202",
        "-1.0569890498318100859100468323886501034645475321509",
        "3.3770137711618609997574456464772684765160313385734",
        "-3.0330757360059046025067700862505829165692842381758",
        "-62.238468505494012653384599303153929871715854725569",
        "603.10608947479987675457142772706541390848432034133",
        "-2334.9860286860639951654356482118760015874332882422",
        "-21281.192076815418538613544539010115648803224993212",
        "508805.35825476682891271517053285206033294280678091",
        "-3715198.3312640077410549655732758275429828283641350",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Derivatives of order 1 to 10 of sin(tanh(x^2)).")
    parser.add_argument("--points", type=int, default=1001, help="points of the grid from -2.5 to 2.5 (default 1001)")
    parser.add_argument(
        "--out", type=Path, default=Path("higher_order.png"), help="the drawing (default higher_order.png)"
    )
    arguments = parser.parse_args()
    if arguments.points < 2:
        parser.error("--points is at least 2")
    grid = np.linspace(-2.5, 2.5, arguments.points)

    g = sg.Graph()
    x = g.input("x", ("points",), sg.float64)
    y = sg.sin(sg.tanh(x * x))

    print("f(x) = sin(tanh(x²)); the derivative of each order, with all nodes it is made of")
    print("order  nodes  new nodes   build ms  compile ms  run µs   largest |value|")
    values: list[Array] = []
    at_references: list[Array] = []
    for order in ORDERS:
        before = len(g.nodes)
        start = time.perf_counter()
        node = sg.derivative(y, x, order)
        built = time.perf_counter()
        function = sg.compile([x], node, name=f"order{order}").prepare(points=len(grid))
        compiled = time.perf_counter()
        values.append(function(grid))
        at_references.append(function(np.array(list(REFERENCE))))
        # Derivatives of all orders live in one graph and share nodes: few are new at each order.
        largest = np.abs(values[-1]).max()
        print(
            f"{order:5}  {len(function.program.nodes):5}  {len(g.nodes) - before:9}  {(built - start) * 1e3:9.1f}"
            f"  {(compiled - built) * 1e3:10.1f}  {run_time(function, grid) * 1e6:6.1f}  {largest:16.6g}"
        )

    check_references(at_references)
    check_grid(grid, values)
    if importlib.util.find_spec("matplotlib") is None:
        print("no drawing: matplotlib is not installed (it comes with the extra 'examples')")
    else:
        draw(grid, values, arguments.out)
        print(f"drew {arguments.out}")


def run_time(function: sg.Function, grid: Array) -> float:
    """The median time of a call, in seconds."""
    times: list[float] = []
    for _ in range(50):
        start = time.perf_counter()
        function(grid)
        times.append(time.perf_counter() - start)
    return median(times)


def check_references(values: list[Array]) -> None:
    """Compare with the digits in this file. Those beyond float64 are rounded away."""
    exact = np.array([[float(text) for text in column] for column in REFERENCE.values()]).T
    error = float(np.max(np.abs(np.array(values) - exact) / np.abs(exact)))
    report(f"{exact.size} reference values at x = {' and '.join(map(str, REFERENCE))}: largest relative error", error)


def check_grid(grid: Array, values: list[Array]) -> None:
    """Compare with mpmath on about 40 points of the grid.

    The derivatives cross zero, so errors are relative to the largest value of each order.
    """
    if importlib.util.find_spec("mpmath") is None:
        print("no check on the grid: mpmath is not installed (it comes with the extra 'test')")
        return
    mpmath: Any = importlib.import_module("mpmath")
    chosen = range(0, len(grid), max(1, len(grid) // 40))
    with mpmath.workdps(50):

        def f(x: Any) -> Any:
            return mpmath.sin(mpmath.tanh(x * x))

        series = {k: mpmath.taylor(f, mpmath.mpf(float(grid[k])), ORDERS[-1]) for k in chosen}
        error = 0.0
        for order, column in zip(ORDERS, values, strict=True):
            exact = {k: series[k][order] * mpmath.factorial(order) for k in chosen}
            worst = max(abs(mpmath.mpf(float(column[k])) - exact[k]) for k in chosen)
            error = max(error, float(worst) / float(np.abs(column).max()))
    report(f"50-digit derivatives at {len(chosen)} points of the grid: largest error over largest value", error)


def report(what: str, error: float) -> None:
    print(f"against {what} {error:.1e}")
    if not error <= TOLERANCE:
        raise SystemExit(f"the error is above {TOLERANCE:.0e}")


def draw(grid: Array, values: list[Array], path: Path) -> None:
    """One panel for each order: their heights differ by seven powers of ten."""
    # Typed as Any because matplotlib is an optional dependency of this example.
    figures: Any = importlib.import_module("matplotlib.figure")
    figure = figures.Figure(figsize=(12, 5.4), dpi=130, layout="constrained")
    panels = figure.subplots(2, 5, sharex=True)
    for panel, order, column in zip(panels.flat, ORDERS, values, strict=True):
        power = int(np.floor(np.log10(np.abs(column).max())))
        scale = 10.0**power if power > 1 else 1.0
        unit = f"  (times $10^{power}$)" if power > 1 else ""
        panel.axhline(0.0, color="0.75", linewidth=0.8)
        panel.plot(grid, column / scale, color="#1f5fa8", linewidth=1.4)
        for point, digits in REFERENCE.items():
            exact = float(digits[order - 1]) / scale
            panel.plot(point, exact, "o", markersize=4.5, markerfacecolor="white", markeredgecolor="#c4421a")
        panel.set_title(f"order {order}{unit}", fontsize=10)
        panel.tick_params(labelsize=8)
        panel.set_xlim(float(grid[0]), float(grid[-1]))
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    figure.supxlabel("x", fontsize=10)
    figure.suptitle(
        "Derivatives of sin(tanh(x²)): compiled (lines) and 50-digit reference values (circles)", fontsize=12
    )
    figure.savefig(path)


if __name__ == "__main__":
    main()
