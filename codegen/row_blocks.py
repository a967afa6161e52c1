"""Sums over the rows of an array in blocks: partial sums of so many rows, and the sum of these.

A kernel that passes the rows for another reason can have the partial sums too: what it reads is read once. How many
rows are a block depends on shapes alone, and so does the order of additions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from symgrad.graph import Graph, Node
from symgrad.opdef import OPS
from symgrad.types import static_shape

# Elements of arrays that do not stay in a cache until they are read again.
BLOCKED_ELEMENTS = 1 << 20
# Rows of a block: fewer would make much of the partial sums. Blocks: fewer would be too few to share.
FEWEST_ROWS, MOST_ROWS = 16, 128
FEWEST_BLOCKS = 32
# Columns: fewer would leave lanes idle; the sums of more would not stay near while the rows pass.
FEWEST_COLUMNS, MOST_COLUMNS = 64, 1 << 14


def rows_of_blocks(shape: Sequence[int]) -> int:
    """Into blocks of how many rows an array is cut where its rows are summed: 1 for one that is not cut."""
    if len(shape) < 2 or math.prod(shape) < BLOCKED_ELEMENTS or not FEWEST_COLUMNS <= shape[-1] <= MOST_COLUMNS:
        return 1
    most = min(MOST_ROWS, math.prod(shape[:-1]) // FEWEST_BLOCKS)
    fitting = (rows for rows in range(most, FEWEST_ROWS - 1, -1) if shape[-2] % rows == 0 and shape[-2] > rows)
    return next(fitting, 1)


def sums_rows(node: Node) -> bool:
    """Whether a node is the sum over all axes but the last of an array that is cut into blocks."""
    if node.op.name != "sum" or not node.dtype.is_float or node.attrs[0] != tuple(range(node.inputs[0].ndim - 1)):
        return False
    return rows_of_blocks(static_shape(node.inputs[0].shape)) > 1


def sum_of_blocks(graph: Graph, source: Node) -> Node:
    """The sum of an array over all axes but the last, as a sum of the sums of blocks."""
    shape = static_shape(source.shape)
    rows = rows_of_blocks(shape)
    cut = (*shape[:-2], shape[-2] // rows, rows, shape[-1])
    partial = graph.add(OPS["sum"], (graph.add(OPS["reshape"], (source,), (cut,)),), ((len(shape) - 1,),))
    return graph.add(OPS["sum"], (partial,), (tuple(range(len(shape) - 1)),))


def summed_in_blocks(node: Node) -> tuple[int, ...] | None:
    """The shape of the array of which a node is the sums of blocks of rows; None for any other node."""
    if node.op.name != "sum" or not node.dtype.is_float or node.inputs[0].op.name != "reshape":
        return None
    cut, whole = (static_shape(one.shape) for one in (node.inputs[0], node.inputs[0].inputs[0]))
    rows = rows_of_blocks(whole)
    blocks = (*whole[:-2], whole[-2] // rows, rows, whole[-1]) if rows > 1 else None
    return whole if cut == blocks and node.attrs[0] == (len(whole) - 1,) else None
