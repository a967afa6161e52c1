"""Blocks turned in registers, and rows joined element by element, by shuffles, two registers at a time."""

from __future__ import annotations

from collections.abc import Sequence

from codegen.scalar_builder import ScalarBuilder, Value, llvm_type

# Shuffles within pieces of so many bytes are single instructions on every machine, and so is moving whole pieces.
CHUNK_BYTES = 16
# The widest block that chunks are moved around in: four by four chunks.
BLOCK_BYTES = 64
# LLVM looks for one shuffle instead of several in a row, in time that grows with the power of their number: it is not
# let past the point where chunks are done. It would find none there, but where parts of rows are unknown or unwanted.
# The kernel takes half the time to compile.
_FENCE = "llvm.arithmetic.fence"


def transposed(b: ScalarBuilder, rows: Sequence[Value | None], count: int, *, whole: bool) -> list[Value]:
    """The columns of a block of `count` rows, of which those given as None are whatever they are.

    Rows have one dtype. Their lanes and `count`, the lanes of a column, are powers of two, at least 2. `whole` says
    that all lanes of rows are wanted.
    """
    first = next(row for row in rows if row is not None)
    width = first.lanes
    size = min(width, count, BLOCK_BYTES // first.dtype.itemsize)
    columns: list[Value] = []
    for start in range(0, width, size):
        groups: list[list[Value]] = []
        for top in range(0, count, size):
            block = [row and _part(b, row, start, size) for row in rows[top : top + size]]
            if any(block):
                known = [_unknown(first, size) if row is None else row for row in block]
                groups.append(_square(b, known, fenced=whole and all(block) and _may_be_fenced(b, first, size)))
            else:
                groups.append([_unknown(first, size)] * size)
        columns += [_joined(b, list(pieces)) for pieces in zip(*groups, strict=True)]
    return columns


def interleaved(b: ScalarBuilder, rows: Sequence[Value]) -> Value:
    """The elements of 2 or 4 rows in turn: all first ones, all second ones, and so on."""
    rows = list(rows)
    while len(rows) > 1:
        half, lanes = len(rows) // 2, rows[0].lanes
        picks = [place for lane in range(lanes) for place in (lane, lanes + lane)]
        rows = [_shuffled(b, low, high, picks) for low, high in zip(rows[:half], rows[half:], strict=True)]
    return rows[0]


def _unknown(like: Value, lanes: int) -> Value:
    return Value("poison", like.dtype, lanes)


def _part(b: ScalarBuilder, row: Value, start: int, count: int) -> Value:
    return row if count == row.lanes else b.part(row, start, count)


def _joined(b: ScalarBuilder, pieces: list[Value]) -> Value:
    """Pieces one after the other."""
    while len(pieces) > 1:
        pieces = [
            _shuffled(b, low, high, range(2 * low.lanes)) for low, high in zip(pieces[::2], pieces[1::2], strict=True)
        ]
    return pieces[0]


def _square(b: ScalarBuilder, rows: list[Value], *, fenced: bool) -> list[Value]:
    """The columns of as many rows as they have lanes, with a fence before chunks are exchanged or without.

    Places in chunks: first the elements of pairs of rows are interleaved, then pairs of elements, until a chunk has
    one column of its group of rows; then chunks are exchanged between the groups.
    """
    size = len(rows)
    chunk = min(size, max(1, CHUNK_BYTES // rows[0].dtype.itemsize))
    stages: list[tuple[int, Sequence[Sequence[int]]]] = []
    run = 1
    while run < chunk:
        stages.append((run, [_interleaved(size, chunk, run, half) for half in (0, 1)]))
        run *= 2
    # The first exchange of two brings halves together, the second one every other chunk.
    lanes = range(size)
    exchanges = ([k // (size // 2) for k in lanes], [k // chunk % 2 for k in lanes])
    for keys in exchanges[: (size // chunk).bit_length() - 1]:
        own = [[k for k in lanes if keys[k] == which] for which in (0, 1)]
        stages.append((run, [[*half, *(size + k for k in half)] for half in own]))
        run *= 2
    columns: list[Sequence[int]] = [lanes] * size
    for distance, picks in stages:
        if distance == chunk and fenced:
            rows = [_fenced(b, row) for row in rows]
        for k in range(size):
            if not k & distance:
                pair, places = (rows[k], rows[k + distance]), [*columns[k], *columns[k + distance]]
                for at, pick in zip((k, k + distance), picks, strict=True):
                    rows[at], columns[at] = _shuffled(b, *pair, pick), [places[p] for p in pick]
    numbered = {places[0]: row for row, places in zip(rows, columns, strict=True)}
    return [numbered[k] for k in lanes]


def _may_be_fenced(b: ScalarBuilder, row: Value, size: int) -> bool:
    """Whether chunks are exchanged between rows that are whole registers of floats."""
    bytes_ = size * row.dtype.itemsize
    return row.dtype.is_float and size == row.lanes and bytes_ == b.target.vector_bytes and bytes_ > CHUNK_BYTES


def _fenced(b: ScalarBuilder, row: Value) -> Value:
    """The value, which LLVM takes for another one."""
    kind = llvm_type(row.dtype, row.lanes)
    name = f"@{_FENCE}.v{row.lanes}f{row.dtype.bits}"
    b.declarations.add(f"declare {kind} {name}({kind})")
    return b.emit(row.dtype, row.lanes, f"call {kind} {name}({kind} {row.text})")


def _interleaved(size: int, chunk: int, run: int, half: int) -> list[int]:
    """In every chunk, runs of elements of two rows in turn: those of the lower or the upper half of the chunk."""
    picks: list[int] = []
    for start in range(0, size, chunk):
        for at in range(start + half * chunk // 2, start + (half + 1) * chunk // 2, run):
            picks += range(at, at + run)
            picks += range(size + at, size + at + run)
    return picks


def _shuffled(b: ScalarBuilder, low: Value, high: Value, picks: Sequence[int]) -> Value:
    kind = llvm_type(low.dtype, low.lanes)
    places = ", ".join(f"i32 {k}" for k in picks)
    text = f"shufflevector {kind} {low.text}, {kind} {high.text}, <{len(picks)} x i32> <{places}>"
    return b.emit(low.dtype, len(picks), text)
