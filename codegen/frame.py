"""What is given in a contraction: which of its loops runs along the lanes, which is tiled as rows, where both lie."""

from __future__ import annotations

import math
from collections.abc import Sequence

from codegen.loop import Finish, Kernel, Load, Loop, Stmt, Store, loops_of, statements_of, used
from codegen.stage import Contraction, contraction_of
from codegen.target import Target
from symgrad.record import record

# Lines of a factor that meets one row: how many are read at once.
ROW_GROUP = 4
# Lanes that a tile stores one by one, where its columns are not those of the result: more only take long to compile.
MAX_SCATTERED = 16
# Terms of a sum that take the time in which its share of a tile is turned, and rows that take the time in which columns
# are packed; the share of the time in which loads do not wait that cross lines of the cache.
TURN_TERMS = 16
PACK_ROWS = 40
UNALIGNED = 0.9
# Elements this far apart cost a translation and a cache set each.
FAR_BYTES = 1024
# Multiply-adds in a cycle.
MULTIPLY_ADDS = 2


@record
class Frame:
    """What is given in a tiling: columns run along the lanes, rows are those of the other factor."""

    kernel: Kernel
    shape: Contraction
    target: Target
    row_factor: str
    column_factor: str
    rows: Loop | None
    own: tuple[Loop, ...]  # the loops of the row factor alone
    columns: Loop
    others: tuple[Loop, ...]  # further loops of the column factor alone
    lanes: int
    turned: bool = False  # the result lies along the rows: tiles are turned before they are stored

    @property
    def height(self) -> int:
        return self.rows.extent if self.rows is not None else 1

    @property
    def depth(self) -> int:
        return math.prod(one.extent for one in self.shape.inner)

    def tallest(self, vectors: int) -> int:
        """The most rows of so many vectors that registers hold, beside those of the columns and a row's element.

        Turned ones are no more than the lanes.
        """
        registers = self.target.registers
        rows = min(registers - 4, registers - 1 - vectors) // vectors
        # With an odd number of multiply-adds the last one would be alone in its cycle.
        rows = max(1, rows - rows * vectors % MULTIPLY_ADDS)
        return min(rows, self.lanes) if self.turned else rows

    def tiles(self, vectors: int) -> int:
        """How many register tiles of so many vectors the columns take."""
        return -(-self.columns.extent // (self.lanes * vectors))

    def column_bytes(self, vectors: int) -> int:
        """Bytes of the packed columns of one register tile."""
        return self.lanes * vectors * self.depth * itemsize_of(self.shape, self.column_factor)


def frame_of(kernel: Kernel, target: Target) -> Frame | None:
    """The loops of the register tile: None when nothing is summed or no factor has a loop to run along the lanes."""
    if not _has_sum(kernel):
        return None
    shape = contraction_of(kernel)
    left, right = shape.factors
    depends = {f: shape.loops_of(f) for f in (left, right)}
    own = {
        f: [o for o in shape.outer if o.extent > 1 and o.name in depends[f] - depends[g]]
        for f, g in ((left, right), (right, left))
    }
    stores = [s for s in statements_of(kernel.body) if isinstance(s, Store)]
    lanes = target.lanes(_sum_bytes(kernel))
    best: tuple[bool, int, int, str, str] | None = None
    for factor in (left, right):
        for one in own[factor]:
            load = shape.load(factor)
            unit = 1 if load is not None and load.index.factor(one.name) == 1 else 0
            stored = 2 if any(s.index.factor(one.name) == 1 for s in stores) else 0
            # A loop over the few places in a window would leave most lanes idle, which costs more than packing. But a
            # factor that has other loops of its own is packed for all of them: with windows, every place of every one.
            alone = all(o is one for o in own[factor])
            good = 2 * one.extent >= lanes and (unit > 0 or alone)
            score = (good, unit + stored, one.extent, one.name, factor)
            if best is None or score > best:
                best = score
    if best is None:
        return None
    factor = best[4]
    other = right if factor == left else left
    columns = next(o for o in own[factor] if o.name == best[3])
    if _is_better_turned(shape, own[factor], columns, own[other], lanes):
        factor, other, columns = other, factor, own[other][0]
    rows = max(own[other], key=lambda o: (o.extent, o.name), default=None)
    turned = False
    if not any(s.index.factor(columns.name) == 1 for s in stores):
        along = [o for o in own[other] if all(s.index.factor(o.name) == 1 for s in stores) and 4 * o.extent >= lanes]
        turned = bool(along)
        rows = along[0] if turned else rows
        lanes = lanes if turned else min(lanes, MAX_SCATTERED)
    others = tuple(o for o in own[factor] if o is not columns)
    return Frame(kernel, shape, target, other, factor, rows, tuple(own[other]), columns, others, lanes, turned)


def _is_better_turned(
    shape: Contraction, places: Sequence[Loop], columns: Loop, channels: Sequence[Loop], lanes: int
) -> bool:
    """Whether the only loop of one factor fills the lanes better than one of several loops of the other.

    Vectors of the latter end where that loop ends, and with windows lie across lines of the cache. The other way costs
    that the factor of the one loop is packed, and that tiles are turned.
    """
    if len(places) < 2 or len(channels) != 1:
        return False
    found = [load for f in shape.factors if (load := shape.load(f)) is not None and columns.name in used(load)]
    stride = found[0].index.factor(columns.name) if found else 0
    windows = any(load.index.factor(o.name) == stride for load in found for o in shape.inner)
    plain = _filled(columns.extent, lanes) * (UNALIGNED if windows else 1)
    depth, passes = (math.prod(o.extent for o in loops) for loops in (shape.inner, places))
    return _filled(channels[0].extent, lanes) * _share(depth, TURN_TERMS) * _share(passes, PACK_ROWS) > plain


def _filled(extent: int, lanes: int) -> float:
    """The share of the lanes that a loop fills."""
    return extent / (-(-extent // lanes) * lanes)


def _share(work: int, once: int) -> float:
    """The share of work in the time of it and of what is done once."""
    return work / (work + once)


def is_one_row(frame: Frame) -> bool:
    """Whether one row meets a factor that lies along the columns, in lines far apart, and is read only once."""
    shape = frame.shape
    if frame.rows is not None or len(shape.inner) != 1 or shape.inner[0].extent < 2 * ROW_GROUP:
        return False
    return can_read_columns(frame) and is_far(shape, frame.column_factor, shape.inner[0].name)


def can_read_columns(frame: Frame) -> bool:
    """Whether the column factor can be read where it is, with neighbors along the lanes."""
    load = frame.shape.load(frame.column_factor)
    return load is not None and load.index.factor(frame.columns.name) == 1


def rows_lie_along(frame: Frame, least: int) -> bool:
    """Whether at least so many neighbors in the sum are neighbors in the rows."""
    load = frame.shape.load(frame.row_factor)
    last = frame.shape.inner[-1] if frame.shape.inner else None
    return load is not None and last is not None and last.extent >= least and load.index.factor(last.name) == 1


def is_far(shape: Contraction, factor: str, loop: str) -> bool:
    """Whether neighbors in a loop lie on different pages and in the same few sets of the first cache."""
    load = shape.load(factor)
    return load is not None and abs(load.index.factor(loop)) * itemsize_of(shape, factor) >= FAR_BYTES


def is_shifted(load: Load, one: Loop, loops: Sequence[Loop]) -> bool:
    """Whether what a loop reads at one step overlaps with what it reads at the next, as one of other loops passes it.

    They move along one axis then, as places and the elements of windows do.
    """
    own = load.index.factor(one.name), one.extent
    for other in loops:
        (low, extent), (high, _) = sorted((own, (load.index.factor(other.name), other.extent)))
        if low > 0 and high < low * extent:
            return True
    return False


def array_bytes(frame: Frame, factor: str) -> int:
    """Bytes of the array that a factor is read from; 0 where it is computed."""
    load = frame.shape.load(factor)
    if load is None:
        return 0
    buffer = frame.kernel.buffer(load.buffer)
    return buffer.size * buffer.dtype.itemsize


def itemsize_of(shape: Contraction, factor: str) -> int:
    return shape.dtype(factor).itemsize


def passed_arrays(kernel: Kernel, rows: str) -> int:
    """How many arrays the statements after the sums read or write in other places for every row."""
    return len({s.buffer for s in epilogue(kernel) if isinstance(s, Load | Store) and s.index.factor(rows)})


def epilogue(kernel: Kernel) -> list[Stmt]:
    """The statements that finish sums or stand beside those that do."""
    return [s for f in loops_of(kernel.body) if any(isinstance(s, Finish) for s in f.body) for s in f.body]


def _has_sum(kernel: Kernel) -> bool:
    return any(f.loop.name.startswith("k") for f in loops_of(kernel.body))


def _sum_bytes(kernel: Kernel) -> int:
    """The width of the sums: what follows them may be wider, and takes several registers then."""
    return next(kernel.buffer(s.buffer).dtype.itemsize for s in statements_of(kernel.body) if isinstance(s, Finish))


def lane_bytes(kernel: Kernel) -> int:
    """The width that decides the lanes: of the floats if there are any, else of the widest number."""
    floats = [b.dtype.itemsize for b in kernel.params + kernel.locals if b.dtype.is_float]
    return max(floats or [b.dtype.itemsize for b in kernel.params + kernel.locals], default=4)
