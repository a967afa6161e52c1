"""Colorings of sparse matrices: columns of one color are found with one product.

Greedy, in two orders of which the one of fewer colors is taken. The colors each row or neighbor has are bits of one
integer, so the work grows with the number of entries, and a full row costs little more than its entries.
"""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Indices: TypeAlias = npt.NDArray[np.int64]
    Lists: TypeAlias = tuple[Indices, Indices]

MOST_PAIRS = 1 << 21
"""The pairs of columns with a common row up to which they are colored by saturation: some seconds."""


def color_columns(rows: Lists, columns: Lists) -> Indices:
    """A color for each column such that no row has entries in two columns of one color.

    `rows` are the columns of the entries of each row, as where each list starts and the lists; `columns` are the rows
    of the entries of each column. Every entry is then alone in its row among the columns of its color (Curtis, Powell
    and Reid, "On the Estimation of Sparse Jacobian Matrices", 1974); coloring as in Coleman and Moré, "Estimation of
    Sparse Jacobian Matrices and Graph Coloring Problems", 1983. In the order of the columns, which suits bands; where
    some row has fewer entries than there are colors, also by saturation, which suits grids.
    """
    colors = _columns_greedily(rows, columns)
    counts = np.diff(rows[0])
    if colors.max(initial=-1) < counts.max(initial=0) or int((counts * counts).sum()) > MOST_PAIRS:
        return colors
    return min(colors, _columns_by_saturation(rows, columns), key=_count)


def color_symmetric(rows: Lists) -> Indices:
    """A star coloring of a symmetric pattern: neighbors differ, and every path of four vertices has three colors.

    Then for each entry (i, j) either j is the only neighbor of i of its color, or i the only one of j, and one product
    for each color gives every entry or its mirror image (Coleman and Moré, "Estimation of Sparse Hessian Matrices and
    Graph Coloring Problems", 1984; the survey is Gebremedhin, Manne and Pothen, "What Color Is Your Jacobian? Graph
    Coloring for Computing Derivatives", 2005). Greedy, knowing the leaves of the stars of two colors, as Gebremedhin,
    Tarafdar, Manne and Pothen, "New Acyclic and Star Coloring Algorithms with Application to Computing Hessians", 2007.
    """
    counts = np.diff(rows[0])
    orders = [np.arange(counts.size)]
    if counts.max(initial=0) * counts.size > 2 * counts.sum():
        # Hubs first: what is left between them needs few colors.
        orders.append(np.argsort(-counts, kind="stable"))
    return min([_stars_greedily(order.tolist(), rows) for order in orders], key=_count)


def _count(colors: Indices) -> int:
    return int(colors.max(initial=-1)) + 1


def _lists(lists: Lists) -> list[list[int]]:
    flat = lists[1].tolist()
    ends = lists[0].tolist()
    return [flat[a:b] for a, b in pairwise(ends)]


def _columns_greedily(rows: Lists, columns: Lists) -> Indices:
    colors: list[int] = []
    taken = [0] * (rows[0].size - 1)
    for places in _lists(columns):
        forbidden = 0
        for row in places:
            forbidden |= taken[row]
        color = ~forbidden & (forbidden + 1)
        for row in places:
            taken[row] |= color
        colors.append(color.bit_length() - 1)
    return np.array(colors, np.int64)


def _columns_by_saturation(rows: Lists, columns: Lists) -> Indices:
    """Next comes the column with the fewest colors left (Brélaz, "New Methods to Color the Vertices of a Graph", 1979).

    Of equal ones the first that shares rows with most.
    """
    members, places = _lists(rows), _lists(columns)
    count = len(places)
    shared = [sum(len(members[row]) for row in p) for p in places]
    order = sorted(range(count), key=lambda column: -shared[column])
    rank = sorted(range(count), key=order.__getitem__)
    forbidden, own = [0] * count, [0] * count
    waiting = [(0, k) for k in range(count)]
    while waiting:
        saturation, k = heappop(waiting)
        column = order[k]
        if own[column] or forbidden[column].bit_count() != -saturation:
            continue  # an entry of the time before a neighbor was colored
        color = own[column] = ~forbidden[column] & (forbidden[column] + 1)
        for row in places[column]:
            for other in members[row]:
                if not own[other] and not forbidden[other] & color:
                    forbidden[other] |= color
                    heappush(waiting, (-forbidden[other].bit_count(), rank[other]))
    return np.array([bits.bit_length() - 1 for bits in own], np.int64)


def _stars_greedily(order: list[int], rows: Lists) -> Indices:
    neighbors = _lists(rows)
    count = len(neighbors)
    # Bits of colors: of the vertex, of its neighbors, of two neighbors or more, and of the hubs it is a leaf of.
    own, near, twice, leaf = [0] * count, [0] * count, [0] * count, [0] * count
    for v in order:
        colored = [w for w in neighbors[v] if w != v and own[w]]
        seen, repeated, forbidden = 0, 0, 0
        for w in colored:
            repeated |= seen & own[w]
            seen |= own[w]
            # A neighbor that is the leaf of a star cannot become a hub of the same two colors.
            forbidden |= own[w] | leaf[w]
        if repeated:
            # Between two neighbors of one color, this vertex is a hub, whose leaves have no others of its color.
            for w in colored:
                if own[w] & repeated:
                    forbidden |= near[w]
        color = ~forbidden & (forbidden + 1)
        own[v], near[v], twice[v] = color, seen, repeated
        for w in colored:
            if own[w] & repeated:
                leaf[w] |= color
            elif near[w] & color:
                leaf[v] |= own[w]
                if not twice[w] & color:
                    twice[w] |= color
                    first = next(x for x in neighbors[w] if own[x] == color and x not in (v, w))
                    leaf[first] |= own[w]
            near[w] |= color
    return np.array([max(0, bits.bit_length() - 1) for bits in own], np.int64)
